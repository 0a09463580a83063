"""A vision-language model that compares the images of one prompt in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from torch import Tensor

from rewards.base import PartialScores
from rewards.builtin.answers import read_choice
from rewards.builtin.chat import ChatModel, QuestionTemplate
from rewards.builtin.endpoint import EndpointError
from rewards.builtin.partial import partial_scores

QUESTION = (
    "Two images were made for this prompt:\n\n{prompt}\n\nWhich one fits it better and looks better? Give reasons in a few "
    "words, then one last line with one word in capitals: FIRST, SECOND or EQUAL."
)


class PairwiseJudge:
    """Share of the other images of its prompt that a model finds worse than an image; in [0, 1], a tie is a half.

    A win rate has no unit to drift and no gaps too small to mean anything, which scores by themselves have (Pref-GRPO,
    Wang et al. 2025, arXiv 2508.20751). Each pair is asked about once, G (G - 1) / 2 questions for a group of G. Judges
    favour a place, so that an image stands first in half of its pairs, or in one more or less. An image of which a
    pair has no answer has failed.

    Args:
        question: about two images, with the row's columns in braces; the answer is read by its last FIRST, SECOND or EQUAL.
        base_url, model, api_key_env, concurrency, call_timeout, deadline, extra_body: as of vlm-judge.

    Raises:
        ValueError: a setting that is none of these, or an environment variable that is not set.
    """

    kind = "group"
    remote = True

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        question: str = QUESTION,
        api_key_env: str | None = None,
        concurrency: int = 8,
        call_timeout: float = 60.0,
        deadline: float = 240.0,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        self._question = QuestionTemplate(question)
        self._chat = ChatModel(
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            concurrency=concurrency,
            call_timeout=call_timeout,
            deadline=deadline,
            body=extra_body or {},
        )

    def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> PartialScores:
        """[G] win rates of uint8 images [G, H, W, 3] of one prompt."""
        pictures, text = list(images.cpu().numpy()), self._question.fill(conditions[0], 0)
        # (a, b): a is shown first; by the parity of their distance each image leads in half of its pairs
        pairs = [(a, b) if (b - a) % 2 else (b, a) for a, b in combinations(range(len(images)), 2)]
        answers = self._chat.ask([([pictures[a], pictures[b]], text) for a, b in pairs], read_choice)
        wins: list[float | Exception] = [0.0] * len(images)
        for (first, second), answer in zip(pairs, answers, strict=True):
            for index in (first, second):
                earlier = wins[index]
                if isinstance(earlier, Exception):
                    continue
                if isinstance(answer, Exception):
                    wins[index] = EndpointError(f"compared with image {first + second - index}: {answer}")
                else:
                    wins[index] = earlier + (answer if index == first else 1 - answer)
        others = max(1, len(images) - 1)
        return partial_scores([win if isinstance(win, Exception) else win / others for win in wins])
