"""Conditions for rollouts: in groups, reshuffled each pass, repeated for further updates, by position alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from align.data import PromptStream

SETTINGS: dict[str, Any] = {"length": 96, "seed": 1, "num_generations": 3, "rows_per_step": 6}


def stream(prompts: Any = range(8), **changes: Any) -> PromptStream:
    return PromptStream(prompts, **{**SETTINGS, **changes})


def column(items: PromptStream, name: str, rows: range) -> list[Any]:
    values = [items[row][name] for row in rows]
    return [value.item() if isinstance(value, torch.Tensor) else value for value in values]


def test_rows_come_in_groups_of_one_prompt() -> None:
    labels = column(stream(), "label", range(48))
    groups = [labels[start : start + 3] for start in range(0, 48, 3)]
    assert all(len(set(group)) == 1 for group in groups)
    assert column(stream(), "position", range(48)) == list(range(48))
    assert not any(column(stream(), "dropped", range(48)))


def test_every_pass_asks_for_every_prompt_once_in_a_new_order() -> None:
    labels = column(stream(), "label", range(72))[::3]
    passes = [labels[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(each) == list(range(8)) for each in passes)
    assert passes[0] != passes[1] != passes[2]
    assert passes[0] != column(stream(seed=2), "label", range(24))[::3]


def test_a_row_is_the_same_whenever_it_is_asked_for() -> None:
    one, two = stream(), stream()
    backwards = [two[row]["label"] for row in reversed(range(96))][::-1]
    assert column(one, "label", range(96)) == backwards
    assert len(one) == 96


@pytest.mark.parametrize("num_iterations", [2, 3])
def test_a_steps_rows_come_again_for_further_updates(num_iterations: int) -> None:
    """Positions then name rollouts: what is asked for is what one update each would ask for."""
    once, again = stream(), stream(num_iterations=num_iterations)
    for step in range(4):
        rows = range(6 * step, 6 * (step + 1))
        for repeat in range(num_iterations):
            first = 6 * (step * num_iterations + repeat)
            for name in ("label", "position"):
                assert column(again, name, range(first, first + 6)) == column(once, name, rows)


def test_prompts_may_be_texts() -> None:
    assert set(column(stream(["a red cube", "a dog"]), "label", range(12))) == {"a red cube", "a dog"}


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"num_generations": 2}, {"rows_per_step": 12}, {"num_iterations": 2}, {"length": 90}]
)
def test_the_fingerprint_tells_streams_apart(change: dict[str, int]) -> None:
    assert stream().fingerprint == stream().fingerprint
    assert stream().fingerprint != stream(**change).fingerprint
    assert stream().fingerprint != stream(range(9)).fingerprint


@pytest.mark.parametrize(
    ("prompts", "change", "message"),
    [
        ([], {}, "there are no prompts"),
        (range(8), {"num_generations": 0}, "num_generations is 0 and num_iterations is 1; both must be at least 1"),
        (range(8), {"num_iterations": 0}, "num_iterations is 0; both must be at least 1"),
        (range(8), {"num_generations": 4}, "a step of 6 rows does not divide into groups of num_generations=4"),
    ],
)
def test_what_makes_no_groups_is_refused(prompts: Any, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(prompts, **change)
