"""AlignTrainer: exact accumulation for every objective, exact resuming, and what it logs and refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_var
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from training.harness import OBJECTIVES, assert_same, killed_at, logs, make_generator, make_trainer, train, weights
from transformers import Trainer

from align.training import callbacks
from align.training.checkpoints import is_complete, latest_checkpoint, mark_complete
from align.training.inputs import Needs
from align.training.trainer import AlignTrainer


@pytest.fixture(scope="module", params=["cca", "sft"])
def one_batch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    """An objective, the weights of a run without accumulation, and its log."""
    folder = tmp_path_factory.mktemp("whole")
    return request.param, train(folder, request.param), logs(folder)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_micro_batches_equal_one_batch(tmp_path: Path, one_batch: tuple[str, Any, Any], micro_batch: int) -> None:
    """Also at micro-batch 1, where rolling labels inside a micro-batch would have no negatives."""
    objective, whole, log = one_batch
    parts = train(
        tmp_path,
        objective,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=6 // micro_batch,
    )
    assert_same(whole, parts, atol=2e-5, rtol=1e-4)
    for one, other in zip(log, logs(tmp_path), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_micro_batches_of_one_equal_one_batch(tmp_path: Path, objective: str) -> None:
    """Whatever the objective needs beside its data is made for the whole step; groups span micro-batches."""
    settings = {"max_steps": 2, "learning_rate": 1e-3, "save_steps": 10}
    whole = train(tmp_path / "whole", objective, **settings)
    parts = train(
        tmp_path / "parts", objective, **settings, per_device_train_batch_size=1, gradient_accumulation_steps=6
    )
    assert_same(whole, parts, atol=1e-5, rtol=1e-4)
    start = weights(make_generator(objective))
    assert any(not torch.equal(start[name], new) for name, new in weights(whole).items())
    for one, other in zip(logs(tmp_path / "whole"), logs(tmp_path / "parts"), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if Needs.of(OBJECTIVES[name]).source != "rollouts"])
def test_steps_of_one_row_whose_label_is_dropped(tmp_path: Path, objective: str) -> None:
    """Nothing to compare with and no condition: a loss and weights that are numbers, and no metric of no rows."""
    settings = {"max_steps": 2, "per_device_train_batch_size": 1, "save_steps": 10}
    trained = train(tmp_path, objective, supplies={"label_drop": 1.0}, **settings)
    assert all(tensor.isfinite().all() for tensor in weights(trained).values())
    records = logs(tmp_path)
    assert all(math.isfinite(value) for record in records for value in record.values())
    conditional = {"gap_positive", "gap_real", "gap_chosen", "margin", "nll_mixture", "erase_kl"}
    assert not conditional & records[-1].keys()


@pytest.mark.parametrize("objective", ["grpo", "dapo", "reinforce"])
def test_a_group_of_one_has_no_baseline_but_the_batch(tmp_path: Path, objective: str) -> None:
    with pytest.raises(ValueError, match="a group of one has no baseline.*estimator=reinforce_pp"):
        train(tmp_path / "grpo", objective, supplies={"rollout": {"num_generations": 1}})
    rollout = {"num_generations": 1, "advantages": {"estimator": "reinforce_pp"}}
    trained = train(tmp_path / "batch", objective, supplies={"rollout": rollout}, max_steps=2)
    assert all(tensor.isfinite().all() for tensor in weights(trained).values())
    assert logs(tmp_path / "batch")[0]["kept"] == 1
    # one row in all has nothing to be compared with, and moves nothing
    alone = train(
        tmp_path / "one", objective, supplies={"rollout": rollout}, max_steps=1, per_device_train_batch_size=1
    )
    assert_same(alone, tiny_llamagen())
    assert logs(tmp_path / "one")[0]["kept"] == 0


def test_the_gap_starts_at_exactly_zero_and_the_loss_at_its_constant(tmp_path: Path) -> None:
    train(tmp_path, max_steps=1, supplies={"label_drop": 0.0})
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
    unbroken = train(
        tmp_path / "unbroken", generator=tiny_llamagen(dropout=0.2, with_tokenizer=False), max_steps=6, **changes
    )

    with killed_at(5):
        train(tmp_path / "broken", generator=tiny_llamagen(dropout=0.2, with_tokenizer=False), max_steps=6, **changes)
    torch.manual_seed(99)  # what the new process would start with does not matter
    resumed = train(
        tmp_path / "broken",
        generator=tiny_llamagen(dropout=0.2, with_tokenizer=False),
        max_steps=6,
        resume=True,
        **changes,
    )
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


def test_the_older_checkpoint_goes_when_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path) -> None:
        if folder.name == "checkpoint-4":
            raise OSError(28, "No space left on device")
        mark_complete(folder)

    train(tmp_path / "fine", save_total_limit=1)
    assert [path.name for path in (tmp_path / "fine").glob("checkpoint-*")] == ["checkpoint-4"]
    monkeypatch.setattr("align.training.trainer.mark_complete", broken)
    with pytest.raises(OSError, match="earlier checkpoints are untouched"):
        train(tmp_path / "full", save_total_limit=1)
    assert latest_checkpoint(tmp_path / "full") == tmp_path / "full/checkpoint-2"


def test_what_goes_wrong_after_a_checkpoint_is_whole_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that dies right after it, say."""

    def broken(run: str, limit: int | None) -> None:
        raise RuntimeError("connection closed by peer")

    monkeypatch.setattr("align.training.trainer.rotate_checkpoints", broken)
    with pytest.raises(OSError, match="connection closed"):
        train(tmp_path)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


def test_what_a_run_holds_and_saves_does_not_grow_with_its_log(tmp_path: Path) -> None:
    train(tmp_path)
    assert len(logs(tmp_path)) == 4
    for step in (2, 4):
        state = json.loads((tmp_path / f"checkpoint-{step}/trainer_state.json").read_text())
        assert [record["step"] for record in state["log_history"]] == [step]


def test_curves_of_a_resumed_run_are_drawn_once(tmp_path: Path) -> None:
    with killed_at(5):
        train(tmp_path, max_steps=6, report_to="tensorboard")
    train(tmp_path, max_steps=6, report_to="tensorboard", resume=True)
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    curve = [(event.step, event.value) for event in accumulator.Scalars("train/loss")]
    assert curve == [(int(line["step"]), pytest.approx(line["loss"])) for line in logs(tmp_path)]
    assert len(curve) == 6


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it is another one that got it: after its third step."""
    steps = iter([0.0, 0.0, 1.0])
    monkeypatch.setattr(callbacks, "reduce", lambda told: told + next(steps))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, save_steps=100)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-3"


def test_a_non_finite_loss_stops_before_the_update(tmp_path: Path) -> None:
    generator = tiny_llamagen()
    with torch.no_grad():
        generator.output.weight[0, 0] = torch.nan
    before = weights(generator)
    with pytest.raises(FloatingPointError, match="nothing was updated"):
        train(tmp_path, "sft", generator=generator)
    torch.testing.assert_close(weights(generator), before, equal_nan=True)


def test_an_objective_of_unknown_inputs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(policy_positive_B: Tensor, rewards_B: Tensor, *, normalizer: float | None = None) -> None: ...

    monkeypatch.setitem(OBJECTIVES, "odd", odd)
    with pytest.raises(ValueError, match=r"takes rewards_B, which nothing supplies.*\{policy\|reference\}_\{view\}"):
        train(tmp_path, "odd")


def test_an_unknown_trainer_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="learning_rat"):
        train(tmp_path, learning_rat=1.0)


def test_weight_decay_spares_what_the_authors_spare(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "llamagen", "sft", generator=tiny_llamagen())
    decayed = trainer.get_decay_parameter_names(trainer.generator)
    assert {name for name, _ in trainer.generator.named_parameters()} - set(decayed) == {
        *(f"layers.{i}.{norm}_norm.weight" for i in range(2) for norm in ("attention", "ffn")),
        "norm.weight",
    }
    trainer = make_trainer(tmp_path / "var", "sft", generator=tiny_var(shared_adaln=True))
    decayed = trainer.get_decay_parameter_names(trainer.generator)
    spared = {name for name, _ in trainer.generator.named_parameters()} - set(decayed)
    matrices = {name for name, p in trainer.generator.named_parameters() if p.dim() > 1}
    assert spared & matrices == {
        *("pos_start", "pos_1LC", "lvl_embed.weight", "blocks.0.ada_gss", "blocks.1.ada_gss"),
        *("blocks.0.attn.scale_mul_1H11", "blocks.1.attn.scale_mul_1H11"),
    }
    assert not any(name.endswith("bias") for name in decayed)


def test_bfloat16_and_gradient_checkpointing_train(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain")
    for mode in (True, "selective"):
        checkpointed = train(tmp_path / f"checkpointed-{mode}", gradient_checkpointing=mode)
        assert_same(plain, checkpointed, atol=1e-6, rtol=1e-5)
    train(tmp_path / "bf16", precision="bf16", gradient_checkpointing="selective", supplies={"label_drop": 0.0})
    first = logs(tmp_path / "bf16")[0]
    assert first["abs_gap"] == 0  # policy and reference run in the same precision
    assert logs(tmp_path / "bf16")[-1]["margin"] != 0


# --- parts that do not fit


@pytest.mark.parametrize(
    ("objective", "kind"),
    [("sft", "rollouts"), ("sft", "pairs"), ("dpo", "real"), ("ddo", "real"), ("grpo", "fakes"), ("va_pi", "real")],
)
def test_data_of_another_kind_is_refused(tmp_path: Path, objective: str, kind: str) -> None:
    wanted = Needs.of(OBJECTIVES[objective]).source
    with pytest.raises(ValueError, match=f"data of the kind '{wanted}', but the run supplies '{kind}'"):
        make_trainer(tmp_path, objective, supplies={"kind": kind})


@pytest.mark.parametrize("kind", ["fakes", "actions"])
def test_real_images_are_beside_fakes_and_actions(tmp_path: Path, kind: str) -> None:
    train(tmp_path, "sft", generator=tiny_llamagen(), supplies={"kind": kind}, max_steps=1)
    assert logs(tmp_path)[0]["nll_per_token"] > 0


def test_an_objective_that_compares_needs_a_reference(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set reference.kind=frozen, cached or adapter_off"):
        make_trainer(tmp_path, "cca", supplies={"reference": None})
    make_trainer(tmp_path, "sft", supplies={"reference": None})


def test_a_stream_of_another_length_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "sft")
    trainer.args.max_steps = 5
    with pytest.raises(ValueError, match="the stream has 24 samples; 5 steps of 6 rows need 30"):
        AlignTrainer(trainer.generator, OBJECTIVES["sft"], trainer.stream, trainer.args)


def test_an_unknown_way_of_recomputing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trainer.gradient_checkpointing is 'some'; known: false, selective, true"):
        train(tmp_path, gradient_checkpointing="some")
