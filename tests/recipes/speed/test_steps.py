"""A training step is only timed beside one that gives the same loss and the same gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_janus, tiny_llamagen, tiny_var

from recipes.config import compose
from recipes.speed import contrastive, group_relative
from recipes.speed.alone import main as alone
from recipes.speed.alone import peak_alone


def trainer(**changes: Any) -> dict[str, Any]:
    section = dict(compose("bench_train", []).trainer)
    short = {"max_steps": 2, "save_strategy": "no", "report_to": [], "seed": 0}
    return section | short | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1} | changes


@pytest.mark.parametrize("make", [tiny_llamagen, tiny_var], ids=["llamagen", "var"])
@pytest.mark.parametrize("micro_batch", [4, 1])
def test_ours_and_the_plain_step_agree(make: Any, micro_batch: int, tmp_path: Path) -> None:
    found = contrastive.check(contrastive.Task(make, trainer(), micro_batch), tmp_path)
    assert set(found) == {"ours, cached reference", "ours, frozen reference"}
    for difference in found.values():
        assert difference["loss"] < contrastive.LOSS_TOLERANCE
        assert difference["gradient"] < contrastive.GRADIENT_TOLERANCE


def test_another_loss_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "plain_loss", lambda *given, real=contrastive.plain_loss: real(*given) * 1.001)
    with pytest.raises(ValueError, match="does not compute what it is compared with: of the loss 1.0e-03 differs"):
        contrastive.check(contrastive.Task(tiny_llamagen, trainer(), 4), tmp_path)


def test_micro_batches_that_do_not_fill_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match="micro_batch=3 must divide a step's 4 rows"):
        contrastive.Task(tiny_llamagen, trainer(), 3)


def test_gradients_that_are_missing_count_as_zeros() -> None:
    one, none = torch.ones(3), None
    assert contrastive.gradient_difference([one, none], [one, one]) == pytest.approx(0.5**0.5)


def test_every_variant_ends_as_many_steps_as_it_makes(tmp_path: Path) -> None:
    task = contrastive.Task(tiny_llamagen, trainer(max_steps=3), 2)
    for name, train in contrastive.VARIANTS.items():
        steps: list[int] = []
        train(task, tmp_path / name, lambda steps=steps: steps.append(1))  # type: ignore[misc]
        assert len(steps) == 3


def test_a_variant_alone_says_its_peak(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.speed.models.make_model", lambda **_: tiny_llamagen())
    alone(json.dumps({"model": {}, "trainer": trainer(), "micro_batch": 2, "variant": "plain", "threads": 1}))
    assert int(capsys.readouterr().out) > 1e6


@pytest.mark.slow
def test_a_process_of_its_own_says_its_peak() -> None:
    model = {"model": "mnist-llamagen", "size": None, "length": None, "device": "cpu"}
    settings = {"model": model, "trainer": trainer(max_steps=1), "micro_batch": 4, "variant": "plain", "threads": 1}
    assert peak_alone(settings) > 1e8


@pytest.mark.slow
def test_grpo_agrees_with_trl(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    task = group_relative.Task(
        lambda: tiny_janus(), trainer(gradient_accumulation_steps=2, per_device_train_batch_size=2), 2
    )
    found = group_relative.check(task, tmp_path)["ours"]
    assert found["loss"] < contrastive.LOSS_TOLERANCE
    assert found["gradient"] < contrastive.GRADIENT_TOLERANCE
    for name, train in group_relative.VARIANTS.items():
        phases: list[dict[str, float]] = []
        steps: list[int] = []
        train(task, tmp_path / f"{name}-run", phases, lambda steps=steps: steps.append(1))  # type: ignore[misc]
        assert len(steps) == len(phases) == 2
        assert all(phase["generate"] > 0 for phase in phases)
