"""Runs on rollouts: several updates on each, through a checkpoint in between, and what they log."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_var
from training.harness import (
    BRIGHTNESS,
    OBJECTIVES,
    Novelty,
    assert_same,
    darkness,
    killed_at,
    logs,
    make_trainer,
    step_batches,
    train,
    weights,
)

from align.generators import Generator
from align.objectives import policy_gradient
from align.sampling import sample
from align.training.inputs import Scoring
from align.training.penalties import KLPenalty
from align.training.reference import FrozenReference
from align.types import SamplingConfig
from rewards.base import Reward

GUIDED = SamplingConfig(guidance_scale=2.5, seed=3)


@pytest.mark.parametrize("family", [tiny_llamagen, tiny_var])
def test_one_update_for_each_rollout_has_a_ratio_of_exactly_one(tmp_path: Path, family: Any) -> None:
    train(tmp_path, "grpo", generator=family(), max_steps=3, supplies={"reference": None})
    for record in logs(tmp_path):
        assert record["ratio_mean"] == record["ratio_max"] == 1
        assert record["approx_kl"] == record["clip_low"] == record["clip_high"] == 0
        assert record["mismatch"] <= record["mismatch_max"] < 1e-5


def test_one_update_for_each_rollout_keeps_no_old_logprobs(tmp_path: Path) -> None:
    (batch,) = step_batches(make_trainer(tmp_path, "grpo"))
    assert "old" not in batch


def test_two_updates_for_each_rollout_see_the_same_ones(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "grpo", supplies={"rollout": {"num_iterations": 2}})
    steps = [step_batches(trainer, index)[0] for index in range(4)]
    assert torch.equal(steps[0]["rollout"], steps[1]["rollout"])
    assert torch.equal(steps[0]["old"], steps[1]["old"])
    assert torch.equal(steps[2]["rollout"], steps[3]["rollout"])
    assert not torch.equal(steps[0]["rollout"], steps[2]["rollout"])


def test_the_ratio_leaves_one_on_the_second_update(tmp_path: Path) -> None:
    train(tmp_path, "grpo", supplies={"rollout": {"num_iterations": 2}, "reference": None})
    records = logs(tmp_path)
    assert [record["ratio_max"] == 1 for record in records] == [True, False, True, False]
    assert [record["ratio_mean"] == 1 for record in records] == [True, False, True, False]
    # what is logged of collecting is logged when it happens
    assert ["reward/brightness" in record for record in records] == [True, False, True, False]


def test_clipping_acts_on_the_second_update_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "narrow", partial(policy_gradient, loss_type="grpo", epsilon=0.01))
    train(tmp_path, "narrow", max_steps=2, supplies={"rollout": {"num_iterations": 2}, "reference": None})
    first, second = logs(tmp_path)
    assert first["clip_high"] == first["clip_low"] == 0
    assert second["clip_high"] > 0


def test_rollouts_of_other_prompts_are_not_taken(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "grpo", supplies={"rollout": {"num_iterations": 2}})
    batches = step_batches(trainer, 0)
    moved = [{**batch, "position": batch["position"] + 1} for batch in batches]
    with pytest.raises(ValueError, match="belong to other prompts; start the run anew, without resume"):
        trainer.prepare(moved, 1)


@pytest.mark.parametrize(
    "changes",
    [{}, {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2}, {"logging_steps": 2}],
    ids=["whole", "micro-batches", "log-spans-the-checkpoint"],
)
def test_resuming_in_the_middle_of_a_buffer_equals_never_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    """The checkpoint of step 3 holds rollouts of which one update is made; step 4 makes the other."""

    def run(folder: Path, **more: Any) -> Any:
        supplies = {
            "rollout": {"num_iterations": 2, "kl_in_reward": 0.01, "sampling": GUIDED, "scoring": Scoring(GUIDED)},
            "rewards": [*BRIGHTNESS, Reward("darkness", darkness, 0.0), Reward("novelty", Novelty(), 0.5)],
            "reference": FrozenReference(tiny_llamagen(), sync_steps=2),
            "penalties": [KLPenalty(0.1, estimator="k2", target=0.01)],
        }
        return train(folder, "grpo", supplies=supplies, save_steps=3, **changes, **more)

    unbroken = run(tmp_path / "unbroken")
    with killed_at(4):
        run(tmp_path / "broken")
    torch.manual_seed(99)
    resumed = run(tmp_path / "broken", resume=True)
    assert_same(unbroken, resumed)
    assert logs(tmp_path / "unbroken") == logs(tmp_path / "broken")


def test_the_reward_rises(tmp_path: Path) -> None:
    settings = {"max_steps": 12, "per_device_train_batch_size": 24, "save_steps": 100, "learning_rate": 2e-2}
    supplies = {"rollout": {"num_generations": 6}, "reference": None}
    train(tmp_path, "grpo", supplies=supplies, **settings)
    records = logs(tmp_path)
    assert records[-1]["reward/brightness"] > records[0]["reward/brightness"] + records[0]["group_std"]


def test_training_through_guidance_raises_the_guided_reward(tmp_path: Path) -> None:
    """What is drawn under guidance is scored, and improved, under guidance."""
    rollout = {"num_generations": 6, "sampling": GUIDED, "scoring": Scoring(GUIDED), "probe_every": 5}
    settings = {"max_steps": 12, "per_device_train_batch_size": 24, "save_steps": 100, "learning_rate": 2e-2}
    supplies = {"rollout": rollout, "reference": None}
    train(tmp_path, "grpo", supplies=supplies, **settings)
    records = logs(tmp_path)
    assert all(record["mismatch"] < 1e-4 for record in records)
    assert records[-1]["reward/brightness"] > records[0]["reward/brightness"] + records[0]["group_std"]
    assert [index for index, record in enumerate(records) if "reward_unguided/brightness" in record] == [0, 5, 10]


def test_noise_above_the_clip_range_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several updates clipping would act on the difference between sampling and training."""
    monkeypatch.setitem(OBJECTIVES, "narrow", partial(policy_gradient, loss_type="gspo", epsilon=1e-9))
    with pytest.raises(FloatingPointError, match="more than the clip range.*rollout.num_iterations=1"):
        train(tmp_path / "two", "narrow", supplies={"rollout": {"num_iterations": 2}})
    train(tmp_path / "one", "narrow", max_steps=1)


@pytest.mark.parametrize(
    ("generator", "parts"),
    [
        pytest.param(tiny_var, ["0", "1", "2"], id="by-scale"),
        pytest.param(
            partial(tiny_llamagen, grid=(6, 3)),
            ["0-2", "3-5", "6-7", "8-9", "10-11", "12-13", "14-15", "16-17"],
            id="by-position",
        ),
    ],
)
def test_mismatch_is_logged_by_scale_or_position(
    tmp_path: Path, generator: Callable[[], Generator], parts: list[str]
) -> None:
    train(tmp_path, "grpo", generator=generator(), max_steps=1, supplies={"reference": None})
    (record,) = logs(tmp_path)
    names = [name for name in record if name.startswith("mismatch/")]
    assert {name.removeprefix("mismatch/").strip("blocks") for name in names} == set(parts)
    assert all(record[name] < 1e-4 for name in names)


@pytest.mark.parametrize("family", [tiny_llamagen, tiny_var])
def test_rollouts_in_bfloat16_follow_the_policy(tmp_path: Path, family: Any) -> None:
    """Drawn from a copy that is rounded anew for every step; what it differs by is logged."""
    generator = family()
    trainer = make_trainer(
        tmp_path, "grpo", generator=generator, supplies={"reference": None, "rollout": {"bf16": True}}
    )
    copies = []
    for index in range(2):
        (batch,) = step_batches(trainer, index)
        rounded = family().bfloat16()
        rounded.load_state_dict(generator.state_dict())
        condition = rounded.encode_condition(batch["label"])
        expected = sample(rounded, condition, trainer.source.settings.sampling, index_B=batch["position"])
        assert torch.equal(batch["rollout"], expected.tokens_BL)
        assert torch.equal(batch["behaviour"], expected.logprobs_BL)
        copies.append(trainer.source.copy.of(generator))
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.mul_(1.5)
    assert copies[0] is copies[1]
    assert all(parameter.dtype == torch.float32 for parameter in generator.parameters())


def test_no_mismatch_is_claimed_off_policy(tmp_path: Path) -> None:
    rollout = {"sampling": GUIDED, "importance_cap": 2.0}
    train(tmp_path, "grpo", max_steps=2, supplies={"rollout": rollout, "reference": None})
    for record in logs(tmp_path):
        assert "mismatch" not in record
        assert record["ratio_max"] == 1
        assert record["importance_weight"] > 0


@pytest.mark.parametrize("config", [SamplingConfig(top_k=3, top_p=0.7), SamplingConfig(temperature=0.3, top_k=2)])
def test_filtered_rollouts_train_and_stay_finite(tmp_path: Path, config: SamplingConfig) -> None:
    """Tokens leave the filter between updates; their ratio is then 0, and nothing turns into NaN."""
    rollout = {"num_iterations": 3, "sampling": config, "scoring": Scoring(config)}
    for estimator in ("k2", "exact"):
        folder = tmp_path / estimator
        supplies = {"rollout": rollout, "penalties": [KLPenalty(0.05, estimator=estimator)]}
        trained = train(folder, "grpo", learning_rate=3e-2, max_steps=3, supplies=supplies)
        assert all(tensor.isfinite().all() for tensor in weights(trained).values())
        records = logs(folder)
        assert all(math.isfinite(value) for record in records for value in record.values())
        assert records[0]["ratio_max"] == 1
        assert records[0]["kl"] == pytest.approx(0, abs=1e-6)
        assert records[-1]["kl"] > 0


def test_the_probe_needs_no_gradient_and_changes_nothing(tmp_path: Path) -> None:
    rollout = {"sampling": GUIDED, "scoring": Scoring(GUIDED)}
    probed, rarely = (
        train(
            tmp_path / str(every),
            "grpo",
            max_steps=2,
            supplies={"rollout": {**rollout, "probe_every": every}, "reference": None},
        )
        for every in (1, 100)
    )
    assert_same(probed, rarely)


def test_reduced_precision_makes_no_gap_and_no_ratio(tmp_path: Path) -> None:
    """Old log-probs, the charge, the null branch and KTO's reference point: all in the precision of the update."""
    found = {}
    for branch in ("trains", "detached", "reference"):
        rollout = {"num_iterations": 2, "kl_in_reward": 0.1, "sampling": GUIDED, "scoring": Scoring(GUIDED, branch)}
        train(tmp_path / branch, "grpo", precision="bf16", supplies={"rollout": rollout}, max_steps=2)
        first, second = logs(tmp_path / branch)
        assert first["ratio_max"] == first["ratio_mean"] == 1
        assert first["kl_charged"] == 0
        assert second["ratio_max"] != 1
        found[branch] = first["mismatch"]
    assert found["reference"] == pytest.approx(found["detached"], rel=1e-6)
    train(tmp_path / "kto", "kto", precision="bf16", max_steps=1)
    assert logs(tmp_path / "kto")[0]["gap_mismatched"] == 0
