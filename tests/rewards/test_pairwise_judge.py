"""Win rates within a group, by a judge that is pretended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from rewards.base import Reward
from rewards.builtin.answers import read_choice
from rewards.builtin.chat import ChatModel, Question
from rewards.builtin.endpoint import EndpointError
from rewards.builtin.pairwise_judge import PairwiseJudge
from rewards.registry import load_reward
from rewards.scoring import score_rewards

IMAGES = torch.tensor([30, 10, 20, 20])[:, None, None, None].expand(4, 2, 2, 3).to(torch.uint8)
ROWS = [{"prompt": "a cup"}] * 4
SETTINGS = {"base_url": "http://localhost:1/v1", "model": "judge"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, str]]:
    """Pairs that were shown, of a judge that prefers the brighter one."""
    seen: list[tuple[int, int, str]] = []

    def ask(self: ChatModel, questions: Sequence[Question], read: Callable[[Any], float]) -> list[float]:
        answers = []
        for (first, second), text in questions:
            a, b = int(first.max()), int(second.max())
            seen.append((a, b, text))
            word = "EQUAL" if a == b else "FIRST" if a > b else "SECOND"
            answers.append(read({"choices": [{"message": {"content": f"The FIRST is red. {word}"}}]}))
        return answers

    monkeypatch.setattr(ChatModel, "ask", ask)
    return seen


def test_an_image_gets_the_share_of_the_others_that_it_beats(asked: list[tuple[int, int, str]]) -> None:
    reward = Reward("pairs", load_reward("vlm-pairwise", **SETTINGS))
    assert reward.kind == "group"
    rows = [*ROWS, *[{"prompt": "a hat"}] * 4]
    scores = score_rewards([reward], IMAGES.repeat(2, 1, 1, 1), rows, timeout=5.0, group_size=4).checked()
    expected = torch.tensor([1.0, 0.0, 0.5, 0.5])
    torch.testing.assert_close(scores.values_NR[:, 0], expected.repeat(2))
    assert [("a cup" in text, "a hat" in text) for *_, text in asked] == [(True, False)] * 6 + [(False, True)] * 6


def test_each_pair_is_asked_about_once_and_no_place_is_favoured(asked: list[tuple[int, int, str]]) -> None:
    images = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 2, 2, 3)
    PairwiseJudge(**SETTINGS)(images, [{"prompt": "x"}] * 8)
    pairs = [(a, b) for a, b, _ in asked]
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == 28
    first = Counter(a for a, _ in pairs)
    assert all(first[index] in (3, 4) for index in range(8))


def test_a_pair_without_an_answer_fails_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(self: ChatModel, questions: Sequence[Question], read: Callable[[Any], float]) -> list[float | Exception]:
        return [
            EndpointError("it is down") if {int(a.max()), int(b.max())} == {30, 10} else 0.5 for (a, b), _ in questions
        ]

    monkeypatch.setattr(ChatModel, "ask", ask)
    scores = PairwiseJudge(**SETTINGS)(IMAGES, ROWS)
    assert scores.valid.tolist() == [False, False, True, True]
    assert scores.values[2:].tolist() == [0.5, 0.5]
    assert scores.error == "image 0: EndpointError: compared with image 1: it is down"


@pytest.mark.parametrize(("text", "value"), [("FIRST", 1.0), ("not the FIRST:\nSECOND.", 0.0), ("**EQUAL**", 0.5)])
def test_the_last_word_is_the_answer(text: str, value: float) -> None:
    assert read_choice({"choices": [{"message": {"content": text}}]}) == value


def test_an_answer_that_chooses_nothing_is_a_failure() -> None:
    with pytest.raises(EndpointError, match="none of FIRST, SECOND and EQUAL: 'the first'"):
        read_choice({"choices": [{"message": {"content": "the first"}}]})


def test_a_row_must_have_what_the_question_names() -> None:
    with pytest.raises(ValueError, match="row 0 has no 'prompt'"):
        PairwiseJudge(**SETTINGS)(IMAGES, [{"label": 1}] * 4)
