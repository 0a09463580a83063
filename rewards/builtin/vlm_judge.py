"""A vision-language model as judge, behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, or a hosted one)."""

from __future__ import annotations

import base64
import io
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from string import Formatter
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from rewards.base import PartialScores
from rewards.builtin.answers import read_number, read_probability, read_yes_no
from rewards.builtin.endpoint import EndpointError, post_json
from rewards.builtin.partial import partial_scores


@dataclass(frozen=True)
class Style:
    """A way to ask, and to read the answer; with a pattern the answer holds a number from low to high."""

    question: str
    read: Callable[..., float]
    pattern: str = ""
    low: float = 0.0
    high: float = 1.0
    body: Mapping[str, Any] | None = None  # what the request needs besides


YES_NO = "Does this image show the following, in every detail? Answer with one word, yes or no.\n\n{prompt}"
STYLES = {
    "number": Style(
        "How well does this image show the following?\n\n{prompt}\n\nGive reasons in a few words, then one line: Score: <0 to 10>",
        read_number,
        r"Score:\s*(\d+(?:\.\d+)?)",
        high=10.0,
    ),
    "yes-no": Style(YES_NO, read_yes_no),
    "yes-probability": Style(YES_NO, read_probability, body={"logprobs": True, "top_logprobs": 20}),
    "unified-reward": Style(
        "Judge this generated image: how well it matches its caption (objects, their attributes and relations) and how good it looks (clarity, detail, colours). End with 'Final Score: ' and a number from 1 to 5.\n\nCaption: {prompt}",
        read_number,
        r"Final Score:\s*(\d+(?:\.\d+)?)",
        high=5.0,
    ),
}


class VlmJudge:
    """A model's answer to a question about each image, as a number in [0, 1]. Images are sent as PNG, unchanged.

    An image whose answer cannot be read, or does not come, is a failure with the server's words, never a 0.

    Args:
        base_url: such as http://localhost:8000/v1; /chat/completions is put after it.
        model: as the server names it.
        answer: `number`: the last one that fits `pattern`, scaled from [low, high] to [0, 1]. `yes-no`: 1 or 0, by the
            answer's first word. `yes-probability`: that of yes against no as the first word; the server must give
            log-probabilities. `unified-reward`: "Final Score: x" over 5, as UnifiedReward (Wang et al. 2025, arXiv
            2503.05236) answers; the question is in our words, so for published numbers give the model card's.
        question: with the row's columns in braces, such as {prompt}; None takes the answer's own. Other braces double.
        pattern: a regular expression with one group, for `number` and `unified-reward`; so are `low` and `high`.
        api_key_env: the environment variable that holds the key; None sends none.
        concurrency: questions that are asked at once.
        call_timeout: seconds for one try. There are two further ones where the connection failed or the server was
            busy (408, 429, 5xx), after 0.5 and 1 seconds.
        deadline: seconds for the whole batch; images without an answer by then have failed. Keep it below the timeout
            of rewards, which would lose the others' answers too.
        extra_body: further fields of the request, such as {"max_tokens": 512}; None as a value leaves a field out.

    Raises:
        ValueError: a setting that is none of these, or an environment variable that is not set.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        answer: str = "number",
        question: str | None = None,
        pattern: str | None = None,
        low: float | None = None,
        high: float | None = None,
        api_key_env: str | None = None,
        concurrency: int = 8,
        call_timeout: float = 60.0,
        deadline: float = 240.0,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url is {base_url!r}; it begins with http:// or https://, and mostly ends in /v1")
        if answer not in STYLES:
            raise ValueError(f"unknown answer {answer!r}; allowed: {', '.join(STYLES)}")
        if not (concurrency >= 1 and call_timeout > 0 and deadline > 0):
            raise ValueError(
                f"concurrency is {concurrency}, call_timeout {call_timeout} and deadline {deadline}; at least 1, and seconds above 0"
            )
        style = STYLES[answer]
        self.question = style.question if question is None else question
        self._columns = _columns(self.question)
        self._read = _reader(answer, style, pattern, low, high)
        self._body = {"model": model, "temperature": 0, **(style.body or {}), **(extra_body or {})}
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._headers = {} if api_key_env is None else {"Authorization": f"Bearer {_key(api_key_env)}"}
        self.concurrency, self.call_timeout, self.deadline = concurrency, call_timeout, deadline

    def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> PartialScores:
        """[B] scores for uint8 images [B, H, W, 3] and rows with the columns that the question names."""
        until = time.monotonic() + self.deadline
        questions = [self._ask(row, index) for index, row in enumerate(conditions)]
        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="vlm-judge") as pool:
            judge = lambda image, question: self._judge(image.numpy(), question, until)  # noqa: E731
            return partial_scores(list(pool.map(judge, images.cpu(), questions)))

    def _ask(self, row: dict[str, Any], index: int) -> str:
        if missing := [column for column in self._columns if row.get(column) is None]:
            raise ValueError(f"row {index} has no {missing[0]!r}, which the question names; it has {sorted(row)}")
        return self.question.format(**{column: row[column] for column in self._columns})

    def _judge(self, image_HW3: np.ndarray, question: str, until: float) -> float | Exception:
        content = [
            {"type": "image_url", "image_url": {"url": _data_url(image_HW3)}},
            {"type": "text", "text": question},
        ]
        body = {**self._body, "messages": [{"role": "user", "content": content}]}
        body = {field: value for field, value in body.items() if value is not None}
        try:
            answer = post_json(self._url, body, headers=self._headers, call_timeout=self.call_timeout, until=until)
            return self._read(answer)
        except EndpointError as error:
            return error


def _data_url(image_HW3: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _columns(question: str) -> list[str]:
    try:
        columns = [name for _, name, _, _ in Formatter().parse(question) if name is not None]
    except ValueError as error:
        raise ValueError(
            f"the question cannot be read ({error}): {question!r}. Braces that name no column double"
        ) from error
    if strange := [name for name in columns if not name.isidentifier()]:
        raise ValueError(f"the question names {{{strange[0]}}}; a column's name is needed there, or doubled braces")
    return columns


def _reader(
    answer: str, style: Style, pattern: str | None, low: float | None, high: float | None
) -> Callable[[Any], float]:
    if not style.pattern:
        if (pattern, low, high) != (None, None, None):
            raise ValueError(f"pattern, low and high are for answers with a number; the answer is {answer!r}")
        return style.read
    low, high = style.low if low is None else low, style.high if high is None else high
    if not low < high:
        raise ValueError(f"low is {low} and high {high}; low must be below")
    try:
        compiled = re.compile(style.pattern if pattern is None else pattern)
    except re.error as error:
        raise ValueError(f"pattern is {pattern!r}, which is no regular expression: {error}") from error
    if compiled.groups != 1:
        raise ValueError(f"pattern {pattern!r} has {compiled.groups} groups; it needs one, for the number")
    return lambda reply: style.read(reply, compiled, low, high)


def _key(variable: str) -> str:
    if not os.environ.get(variable):
        raise ValueError(f"the environment variable {variable} is to hold the key (api_key_env), but is not set")
    return os.environ[variable]
