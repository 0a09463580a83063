"""Questions about each image, answered by a vision-language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evaluation.suites import SCORES, Question, read_questions
from rewards.base import PartialScores
from rewards.builtin.answers import read_chance, read_word
from rewards.builtin.chat import ChatModel, QuestionTemplate
from rewards.builtin.endpoint import EndpointError
from rewards.builtin.partial import partial_scores

TEMPLATE = "{question} Answer with one word."
_READERS: dict[str, Callable[..., float]] = {"soft": read_chance, "hard": read_word}


class VqaJudge:
    """How well a model's answers to the questions of a row fit, in [0, 1]: GenEval 2's Soft-TIFA, DPG-Bench's score, TIFA.

    Rows carry `questions` as `evaluation.suites.read_suite` gives them; NaN where there are none. An image of which a
    question has no answer is a failure with the server's words, never a 0.

    Args:
        score: what the answers make. `soft-tifa-gm`, `soft-tifa-am`: geometric or arithmetic mean of the probabilities of
            the right answers as the first token; the server must give log-probabilities. `tifa`: share of right answers.
            `dpg`: the same, where a question fails with one that it depends on. `compbench-vqa`: product of probabilities.
        template: how a question is asked, with {question} and any other column of the row in braces.
        base_url, model, api_key_env, concurrency, call_timeout, deadline, extra_body: as of vlm-judge.

    Raises:
        ValueError: a setting that is none of these, or an environment variable that is not set.
    """

    remote = True

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        score: str = "soft-tifa-gm",
        template: str = TEMPLATE,
        api_key_env: str | None = None,
        concurrency: int = 8,
        call_timeout: float = 60.0,
        deadline: float = 240.0,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        if score not in SCORES:
            raise ValueError(f"unknown score {score!r}; allowed: {', '.join(SCORES)}")
        if "{question}" not in template:
            raise ValueError(f"the template {template!r} has no {{question}}, so that all would be asked the same")
        self.score, self.model = score, model
        self._template = QuestionTemplate(template)
        soft = SCORES[score].answers == "soft"
        body = {**({"logprobs": True, "top_logprobs": 20} if soft else {}), **(extra_body or {})}
        self._chat = ChatModel(
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            concurrency=concurrency,
            call_timeout=call_timeout,
            deadline=deadline,
            body=body,
        )
        asked = json.dumps([model, template, SCORES[score].answers, body], sort_keys=True)
        self.fingerprint = hashlib.sha256(asked.encode()).hexdigest()[:16]

    def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> PartialScores:
        """[B] scores for uint8 images [B, H, W, 3]."""
        combine = SCORES[self.score].combine
        return partial_scores(
            [
                answered if isinstance(answered, Exception) else combine(answered, asked) if asked else torch.nan
                for answered, asked in zip(self.answers(images, conditions), _questions(conditions), strict=True)
            ]
        )

    def answers(self, images: Tensor, conditions: Sequence[Mapping[str, Any]]) -> list[list[float] | EndpointError]:
        """Of each image how right each answer is, in [0, 1], in the order of the row's questions; or why one is missing.

        Raises:
            ValueError: a row's questions are damaged, or it lacks a column that the template names.
        """
        asked_BQ = _questions(conditions)
        texts_BQ = [
            [self._template.fill({**row, "question": one.text}, index) for one in asked_Q]
            for index, (row, asked_Q) in enumerate(zip(conditions, asked_BQ, strict=True))
        ]
        pictures = images.cpu().numpy()
        asked = [([picture], text) for picture, texts in zip(pictures, texts_BQ, strict=True) for text in texts]
        replies = iter(self._chat.ask(asked, _as_it_is))
        return [self._read([next(replies) for _ in asked_Q], asked_Q) for asked_Q in asked_BQ]

    def _read(self, replies: Sequence[Any], asked: Sequence[Question]) -> list[float] | EndpointError:
        read = _READERS[SCORES[self.score].answers]
        right: list[float] = []
        for reply, question in zip(replies, asked, strict=True):
            try:
                if isinstance(reply, Exception):
                    raise reply
                right.append(read(reply, question.answers))
            except EndpointError as error:
                return EndpointError(f"asked {question.text!r}: {error}")
        return right


def _as_it_is(reply: Any) -> Any:
    return reply


def _questions(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Question, ...]]:
    found = []
    for index, row in enumerate(rows):
        try:
            found.append(read_questions(row))
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from error
    return found
