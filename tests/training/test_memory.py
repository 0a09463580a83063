"""The estimate of a run's memory, against what its first step is seen to allocate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import FAMILIES

from align.generators import Generator
from align.training.inputs import Needs, Scoring
from align.training.memory import MemoryEstimate, _Allocations, _peak_of_update, estimate_memory

WANTED = Needs(("policy_positive_B", "policy_negative_B")).of_model("policy")


def raw(generator: Generator) -> Any:
    return 1 if generator.num_classes else "a red cube"


def test_storages_are_counted_once_and_until_they_are_given_back() -> None:
    with _Allocations() as seen:
        kept = torch.zeros(100)
        view = kept.view(10, 10)[:5]
        for _ in range(3):
            torch.ones(50)
        kept.add_(1)
        assert (seen.now, seen.peak) == (400, 600)
        del kept
        assert seen.now == 400, "a view keeps it"
        del view
    assert (seen.now, seen.peak) == (0, 600)


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_more_rows_follow_from_one_and_two(make: Callable[[], Any]) -> None:
    generator = make()
    estimate = estimate_memory(
        generator,
        WANTED,
        raw(generator),
        rows=5,
        scoring=Scoring(),
        make_optimizer=torch.optim.AdamW,
        reference=copy.deepcopy(generator),
        rollout_rows=4,
    )
    measured = _peak_of_update(generator, WANTED, raw(generator), Scoring(), 5)
    assert estimate.update == pytest.approx(measured, rel=0.1)
    parameters = sum(p.nbytes for p in generator.parameters())
    assert (estimate.gradients, estimate.optimizer) == (parameters, 2 * parameters)
    assert estimate.weights == estimate.reference >= parameters
    assert estimate.rollouts > 0
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_rollouts_in_bfloat16_take_half_and_a_copy() -> None:
    generator = FAMILIES["llamagen"]()
    full, half = (
        estimate_memory(
            generator,
            WANTED,
            1,
            rows=2,
            scoring=Scoring(),
            make_optimizer=torch.optim.AdamW,
            reference=None,
            rollout_rows=8,
            rollouts_in_bf16=in_bf16,
        )
        for in_bf16 in (False, True)
    )
    assert (full.copy, half.copy) == (0, sum(2 * parameter.numel() for parameter in generator.parameters()))
    assert half.rollouts == full.rollouts // 2
    assert half.total == full.total + half.copy  # the update takes more than the rollouts of so small a model


def test_a_warning_names_what_lowers_it() -> None:
    estimate = MemoryEstimate(
        weights=10**9, reference=10**9, optimizer=2 * 10**9, gradients=10**9, update=5 * 10**9, rollouts=10**8
    )
    assert str(estimate) == ("memory 10 GB: weights 1, reference 1, optimizer 2, gradients 1, update 5, rollouts 0.1")
    assert estimate.warning(free=8 * 10**9) is None
    warning = estimate.warning(free=7 * 10**9)
    assert warning is not None
    assert "8 GB are still to come and 7 are free" in warning
    for knob in (
        "per_device_train_batch_size",
        "gradient_checkpointing",
        "reference.kind=cached",
        "rollout.batch_size",
    ):
        assert knob in warning
