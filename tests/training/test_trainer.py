"""AlignTrainer: exact accumulation, exact resuming, the reference, and what it logs."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen
from torch import Tensor
from transformers import Trainer

from align.data import Codes, TrainingStream
from align.generators import LlamaGen
from align.objectives import cca, sft
from align.training import callbacks
from align.training.checkpoints import is_complete, latest_checkpoint
from align.training.reference import CachedReference
from recipes.train import train_generator

OBJECTIVES = {"cca": partial(cca, beta=0.1, lambda_=4.0), "sft": partial(sft)}
SETTINGS: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 6,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "linear",
    "optim": "adamw_torch",
    "max_grad_norm": 1.0,
    "logging_steps": 1,
    "save_steps": 2,
    "report_to": "none",
    "seed": 0,
    "precision": "fp32",
    "sample_every": 0,
    "gradient_checkpointing": False,
}


def train(
    folder: Path,
    objective: str = "cca",
    *,
    generator: LlamaGen | None = None,
    reference: str = "frozen",
    resume: bool = False,
    label_drop: float = 0.3,
    **changes: Any,
) -> LlamaGen:
    generator = generator or tiny_llamagen()
    settings = {**SETTINGS, **changes}
    rng = torch.Generator().manual_seed(5)
    codes = Codes(torch.randint(0, 16, (20, 6), generator=rng), torch.randint(0, 4, (20,), generator=rng), "t")
    rows = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    stream = TrainingStream(codes, length=settings["max_steps"] * rows, seed=1, label_drop=label_drop)
    train_generator(
        generator,
        OBJECTIVES[objective],
        stream,
        settings,
        folder=folder,
        reference=reference,
        resume=resume,
        description="test",
    )
    return generator


def weights(generator: LlamaGen) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in generator.state_dict().items()}


def logs(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(a: LlamaGen, b: LlamaGen, **tolerance: float) -> None:
    torch.testing.assert_close(weights(a), weights(b), **(tolerance or {"atol": 0, "rtol": 0}))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_micro_batches_equal_one_batch(tmp_path: Path, objective: str, micro_batch: int) -> None:
    """Also at micro-batch 1, where rolling labels inside a micro-batch would have no negatives."""
    whole = train(tmp_path / "whole", objective)
    parts = train(
        tmp_path / "parts",
        objective,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=6 // micro_batch,
    )
    assert_same(whole, parts, atol=2e-5, rtol=1e-4)
    for one, other in zip(logs(tmp_path / "whole"), logs(tmp_path / "parts"), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_the_gap_starts_at_exactly_zero_and_the_loss_at_its_constant(tmp_path: Path) -> None:
    train(tmp_path, max_steps=1, label_drop=0.0)
    first = logs(tmp_path)[0]
    assert first["gap_positive"] == first["gap_negative"] == first["abs_gap"] == 0
    assert "gap_null" not in first  # nothing was dropped: no number, rather than a zero


def test_training_moves_the_gaps_apart(tmp_path: Path) -> None:
    train(tmp_path, max_steps=10)
    last = logs(tmp_path)[-1]
    assert last["gap_positive"] > last["gap_negative"]
    assert {"gap_null", "accuracy", "entropy", "margin", "abs_gap", "grad_norm", "learning_rate", "loss"} <= last.keys()


@pytest.mark.parametrize(
    "changes", [{}, {"logging_steps": 3}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}]
)
def test_resuming_equals_never_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    """Dropout is on, so that the random state must be restored as well; logs may span the checkpoint."""
    unbroken = train(tmp_path / "unbroken", generator=tiny_llamagen(dropout=0.2), max_steps=6, **changes)

    original = callbacks.ProgressBar.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.ProgressBar, "on_step_end", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path / "broken", generator=tiny_llamagen(dropout=0.2), max_steps=6, **changes)
    torch.manual_seed(99)  # what the new process would start with does not matter
    resumed = train(tmp_path / "broken", generator=tiny_llamagen(dropout=0.2), max_steps=6, resume=True, **changes)
    assert_same(unbroken, resumed)
    assert logs(tmp_path / "unbroken") == logs(tmp_path / "broken")


def test_a_torso_of_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    unbroken = train(tmp_path / "unbroken")
    train(tmp_path / "broken")
    torso = tmp_path / "broken" / "checkpoint-4"
    (torso / "model.safetensors").write_bytes((torso / "model.safetensors").read_bytes()[:100])
    assert not is_complete(torso)
    assert latest_checkpoint(tmp_path / "broken") == tmp_path / "broken" / "checkpoint-2"
    assert_same(unbroken, train(tmp_path / "broken", resume=True))


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Trainer._save_optimizer_and_scheduler

    def full(self: Any, output_dir: str) -> None:
        if output_dir.endswith("checkpoint-4"):
            raise OSError(28, "No space left on device")
        original(self, output_dir)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(OSError, match="earlier checkpoints are untouched.*resume=auto"):
        train(tmp_path)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()


def test_cached_reference_equals_the_frozen_one(tmp_path: Path) -> None:
    frozen = train(tmp_path / "frozen")
    cached = train(tmp_path / "cached", reference="cached")
    assert_same(frozen, cached, atol=1e-5, rtol=1e-4)
    # a second run finds the table, and another generator is refused it
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "cached" / "reference_logprobs.safetensors", tmp_path / "again")
    assert_same(cached, train(tmp_path / "again", reference="cached"))
    with pytest.raises(ValueError, match="computed with another reference"):
        train(tmp_path / "again", generator=tiny_llamagen(seed=1), reference="cached")
    with pytest.raises(ValueError, match="computed with another stream"):
        train(tmp_path / "again", reference="cached", label_drop=0.1)


def test_cached_reference_says_what_it_lacks() -> None:
    reference = CachedReference(torch.zeros(4, 1), "f")
    batch = {"position": torch.tensor([0]), "tokens": torch.zeros(1, 6)}
    with pytest.raises(ValueError, match="holds 1 log-probs an image; 2 were asked for"):
        reference.score(batch, [None, None])


def test_a_non_finite_loss_stops_before_the_update(tmp_path: Path) -> None:
    generator = tiny_llamagen()
    with torch.no_grad():
        generator.output.weight[0, 0] = torch.nan
    before = weights(generator)
    with pytest.raises(FloatingPointError, match="nothing was updated"):
        train(tmp_path, "sft", generator=generator)
    torch.testing.assert_close(weights(generator), before, equal_nan=True)


def test_an_objective_of_unknown_inputs_is_refused(tmp_path: Path) -> None:
    def odd(policy_positive_B: Tensor, rewards_B: Tensor, *, normalizer: float | None = None) -> None: ...

    OBJECTIVES["odd"] = odd
    try:
        with pytest.raises(ValueError, match=r"takes rewards_B, which nothing supplies.*policy_positive_B"):
            train(tmp_path, "odd")
    finally:
        del OBJECTIVES["odd"]


def test_an_unknown_trainer_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="learning_rat"):
        train(tmp_path, learning_rat=1.0)


def test_bfloat16_and_gradient_checkpointing_train(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain")
    checkpointed = train(tmp_path / "checkpointed", gradient_checkpointing=True)
    assert_same(plain, checkpointed, atol=1e-6, rtol=1e-5)
    train(tmp_path / "bf16", precision="bf16", label_drop=0.0)
    first = logs(tmp_path / "bf16")[0]
    assert first["abs_gap"] == 0  # policy and reference run in the same precision
    assert logs(tmp_path / "bf16")[-1]["margin"] != 0
