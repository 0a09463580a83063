"""Questions about images for a vision-language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from rewards.builtin.endpoint import EndpointError, post_json
from rewards.threads import map_in_threads

Question = tuple[Sequence[np.ndarray], str]  # images uint8 [H, W, 3], then the text
Answer = TypeVar("Answer")


class ChatModel:
    """Asks many questions at once. Images are sent as PNG, unchanged.

    Args:
        base_url: such as http://localhost:8000/v1; /chat/completions is put after it.
        model: as the server names it.
        api_key_env: the environment variable that holds the key; None sends none.
        concurrency: questions that are asked at once.
        call_timeout: seconds for one try. There are two further ones where the connection failed or the server was
            busy (408, 429, 5xx), after 0.5 and 1 seconds.
        deadline: seconds for a whole batch; questions without an answer by then have failed. Keep it below the timeout
            of rewards, which would lose the others' answers too.
        body: further fields of the request, such as {"max_tokens": 512}; None as a value leaves a field out.

    Raises:
        ValueError: a setting that is none of these, or an environment variable that is not set.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str | None,
        concurrency: int,
        call_timeout: float,
        deadline: float,
        body: Mapping[str, Any],
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url is {base_url!r}; it begins with http:// or https://, and mostly ends in /v1")
        if not (concurrency >= 1 and call_timeout > 0 and deadline > 0):
            raise ValueError(
                f"concurrency is {concurrency}, call_timeout {call_timeout} and deadline {deadline}; at least 1, and seconds above 0"
            )
        self._body = {"model": model, "temperature": 0, **body}
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._headers = {} if api_key_env is None else {"Authorization": f"Bearer {_key(api_key_env)}"}
        self.concurrency, self.call_timeout, self.deadline = concurrency, call_timeout, deadline

    def ask(self, questions: Sequence[Question], read: Callable[[Any], Answer]) -> list[Answer | Exception]:
        """What `read` makes of each answer, in order; an EndpointError where there is none, or it cannot be read."""
        until = time.monotonic() + self.deadline
        urls: dict[int, str] = {}  # by the array's identity: several questions may be about one image

        def url(image_HW3: np.ndarray) -> str:
            if id(image_HW3) not in urls:
                urls[id(image_HW3)] = _data_url(image_HW3)
            return urls[id(image_HW3)]

        return map_in_threads(lambda one: self._ask(one, url, read, until), questions, number=self.concurrency)

    def _ask(
        self, question: Question, url: Callable[[np.ndarray], str], read: Callable[[Any], Answer], until: float
    ) -> Answer | Exception:
        images, text = question
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url(one)}} for one in images]
        body = {**self._body, "messages": [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]}
        body = {field: value for field, value in body.items() if value is not None}
        try:
            return read(post_json(self._url, body, headers=self._headers, call_timeout=self.call_timeout, until=until))
        except EndpointError as error:
            return error


class QuestionTemplate:
    """A question that names columns of a dataset row in braces, such as {prompt}; other braces double.

    Raises:
        ValueError: braces that name no column.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        try:
            self._columns = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
        except ValueError as error:
            raise ValueError(
                f"the question cannot be read ({error}): {template!r}. Braces that name no column double"
            ) from error
        if strange := [name for name in self._columns if not name.isidentifier()]:
            raise ValueError(f"the question names {{{strange[0]}}}; a column's name is needed there, or doubled braces")

    def fill(self, row: Mapping[str, Any], index: int) -> str:
        """The question about the image of row number `index`. Raises ValueError for a column that it lacks."""
        if missing := [column for column in self._columns if row.get(column) is None]:
            raise ValueError(f"row {index} has no {missing[0]!r}, which the question names; it has {sorted(row)}")
        return self.template.format(**{column: row[column] for column in self._columns})


def _data_url(image_HW3: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _key(variable: str) -> str:
    if not os.environ.get(variable):
        raise ValueError(f"the environment variable {variable} is to hold the key (api_key_env), but is not set")
    return os.environ[variable]
