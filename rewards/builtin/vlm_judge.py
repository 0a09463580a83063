"""A vision-language model as judge, behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, or a hosted one)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rewards.base import PartialScores
from rewards.builtin.answers import read_number, read_probability, read_yes_no
from rewards.builtin.chat import ChatModel, QuestionTemplate
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
        answer: `number`: the last one that fits `pattern`, scaled from [low, high] to [0, 1]. `yes-no`: 1 or 0, by the
            answer's first word. `yes-probability`: that of yes against no as the first word; the server must give
            log-probabilities. `unified-reward`: "Final Score: x" over 5, as UnifiedReward (Wang et al. 2025, arXiv
            2503.05236) answers; the question is in our words, so for published numbers give the model card's.
        question: with the row's columns in braces, such as {prompt}; None takes the answer's own. Other braces double.
        pattern: a regular expression with one group, for `number` and `unified-reward`; so are `low` and `high`.
        base_url: such as http://localhost:8000/v1.
        model: as the server names it.
        api_key_env: the environment variable that holds the key; None sends none.
        concurrency: questions that are asked at once.
        call_timeout: seconds for one try; there are three where the connection fails or the server is busy.
        deadline: seconds for a whole batch; keep it below the timeout of rewards.
        extra_body: further fields of the request, such as {"max_tokens": 512}; None as a value leaves a field out.

    Raises:
        ValueError: a setting that is none of these, or an environment variable that is not set.
    """

    remote = True

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
        if answer not in STYLES:
            raise ValueError(f"unknown answer {answer!r}; allowed: {', '.join(STYLES)}")
        style = STYLES[answer]
        self._question = QuestionTemplate(style.question if question is None else question)
        self._read = _reader(answer, style, pattern, low, high)
        self._chat = ChatModel(
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            concurrency=concurrency,
            call_timeout=call_timeout,
            deadline=deadline,
            body={**(style.body or {}), **(extra_body or {})},
        )

    def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> PartialScores:
        """[B] scores for uint8 images [B, H, W, 3] and rows with the columns that the question names."""
        texts = [self._question.fill(row, index) for index, row in enumerate(conditions)]
        questions = [([image.numpy()], text) for image, text in zip(images.cpu(), texts, strict=True)]
        return partial_scores(self._chat.ask(questions, self._read))


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
