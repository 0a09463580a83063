"""Alarms: each on logs that call for it, once, on all processes; and a run that one stops leaves a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training.harness import BRIGHTNESS, OBJECTIVES, logs, train
from transformers import TrainerControl, TrainerState

from align.training.alarms import WINDOW, Alarms
from align.training.checkpoints import ALARMS_FILE, METRICS_FILE, latest_checkpoint, rewind_logs
from align.training.penalties import KLPenalty
from align.types import LossOutput, SamplingConfig
from rewards.base import Reward


def told(folder: Path) -> list[dict[str, Any]]:
    path = folder / ALARMS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def log(alarms: Alarms, step: int, logged: dict[str, float], *, main: bool = True) -> TrainerControl:
    args: Any = None
    control = TrainerControl()
    state = TrainerState(global_step=step, is_world_process_zero=main)
    alarms.on_log(args, state, control, logs=logged)
    return control


@pytest.mark.parametrize(
    ("name", "limit", "below", "above", "message"),
    [
        ("kl", 0.1, {"kl": 0.1}, {"kl": 0.2}, "0.2 nats a token from the reference, limit 0.1; raise kl.coefficient"),
        ("duplicates", 0.5, {"duplicates": 0.5}, {"duplicates": 0.75}, "75% of the rollouts are copies, limit 50%"),
        ("zero_variance", 0.9, {"zero_variance": 0.9}, {"zero_variance": 1.0}, "100% of the groups have equal rewards"),
        ("entropy", 0.3, {"entropy": 2.0}, {"entropy": 0.5}, "the entropy fell from 2 to 0.5 nats a token"),
    ],
)
def test_each_alarm_on_what_it_is_for_and_once(
    tmp_path: Path, name: str, limit: float, below: dict[str, float], above: dict[str, float], message: str
) -> None:
    alarms = Alarms(tmp_path, **{name: limit})
    control = log(alarms, 1, below)
    assert told(tmp_path) == []
    log(alarms, 2, above)
    control = log(alarms, 3, above)
    (record,) = told(tmp_path)
    assert (record["step"], record["alarm"]) == (2, name)
    assert message in record["message"]
    assert not control.should_training_stop  # none was asked to
    # logs without the number say nothing, and neither does an alarm without a limit
    assert Alarms(tmp_path, **{name: limit}).check({"loss": 1.0}) == {}
    silent = Alarms(tmp_path)
    silent.check(below)
    assert silent.check(above) == {}


def test_the_entropy_is_compared_with_the_first_one() -> None:
    alarms = Alarms(Path(), entropy=0.5)
    assert [set(alarms.check({"entropy": value})) for value in (3.0, 1.6, 1.4, 2.0)] == [
        set(),
        set(),
        {"entropy"},
        set(),
    ]


def rewards_of(trained: list[float], held_out: list[float]) -> list[dict[str, float]]:
    return [{"reward/a": a, "reward/b": b} for a, b in zip(trained, held_out, strict=True)]


RISING, FALLING = [0.1 * step for step in range(12)], [-0.1 * step for step in range(12)]
NOISE = [1.0, -1.0] * 6


@pytest.mark.parametrize(
    ("trained", "held_out", "raised"),
    [
        (RISING, FALLING, True),
        (RISING, RISING, False),
        (FALLING, FALLING, False),
        (RISING, NOISE, False),
        (NOISE, FALLING, False),
        (RISING, [value + 0.01 * noise for value, noise in zip(FALLING, NOISE, strict=True)], True),
    ],
)
def test_a_reward_is_gamed_when_a_held_out_one_falls(
    tmp_path: Path, trained: list[float], held_out: list[float], raised: bool
) -> None:
    alarms = Alarms(tmp_path, trained=["a"], held_out=["b"])
    for step, logged in enumerate(rewards_of(trained, held_out)):
        log(alarms, step, logged)
    assert [record["alarm"] for record in told(tmp_path)] == (["gamed"] if raised else [])
    if raised:
        assert "held-out reward b falls while the trained one rises" in told(tmp_path)[0]["message"]


def test_a_trend_takes_two_windows() -> None:
    alarms = Alarms(Path(), trained=["a"], held_out=["b"])
    found = [alarms.check(logged) for logged in rewards_of(RISING, FALLING)]
    assert [bool(each) for each in found] == [step >= 2 * WINDOW - 1 for step in range(12)]


def test_stopping_saves_first_and_happens_on_every_process(tmp_path: Path) -> None:
    """A process that went on alone would wait for the others for ever."""
    for main in (True, False):
        folder = tmp_path / str(main)
        folder.mkdir()
        alarms = Alarms(folder, kl=0.1, duplicates=0.5, stop=["kl"])
        control = log(alarms, 1, {"duplicates": 1.0}, main=main)
        assert not control.should_training_stop
        control = log(alarms, 2, {"kl": 1.0}, main=main)
        assert control.should_save
        assert control.should_training_stop
        assert len(told(folder)) == (2 if main else 0)  # one process writes


def test_a_resumed_run_watches_on_from_what_was_logged(tmp_path: Path) -> None:
    """Up to the checkpoint; nothing is said twice."""

    def made() -> Alarms:
        return Alarms(tmp_path, kl=0.1, entropy=0.5, trained=["a"], held_out=["b"])

    metrics = [
        {"kl": float(step == 3), "entropy": 3.0 - 0.1 * step, **both}
        for step, both in enumerate(rewards_of(RISING, FALLING))
    ]
    lines = [json.dumps({"step": step, **logged}) for step, logged in enumerate(metrics)]
    (tmp_path / METRICS_FILE).write_text("\n".join([*lines, json.dumps({"step": 12, "entropy": 0.1}), '{"step": 1']))
    unbroken, broken = made(), made()
    for step, logged in enumerate(metrics):
        log(unbroken, step, logged)
    args: Any = None
    broken.on_train_begin(args, TrainerState(global_step=11), TrainerControl())
    assert [record["alarm"] for record in told(tmp_path)] == ["kl", "gamed"]
    assert unbroken.raised == broken.raised
    log(broken, 12, {"kl": 1.0, "entropy": 1.4, "reward/a": 0.0, "reward/b": 0.0})
    assert [record["alarm"] for record in told(tmp_path)] == ["kl", "gamed", "entropy"]


def test_an_unknown_alarm_is_refused() -> None:
    with pytest.raises(
        ValueError, match="alarms.stop names colapse; known: kl, entropy, duplicates, zero_variance, gamed"
    ):
        Alarms(Path(), stop=["colapse"])


# --- runs


def test_an_alarm_ends_a_run_with_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    supplies = {"penalties": [KLPenalty(1e-3, estimator="k2")]}
    stopping = {"kl": 1e-3, "stop": ["kl"]}
    with pytest.raises(
        FloatingPointError, match=r"stopped at step 2 of 6 with a checkpoint by an alarm: the policy is"
    ):
        train(tmp_path / "run", "sft", supplies=supplies, alarms=stopping, max_steps=6, save_steps=100)
    assert told(tmp_path / "run")[0]["step"] == 2
    assert latest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-2"
    # and the run that goes on regardless is the one that never stopped
    train(tmp_path / "run", "sft", supplies=supplies, max_steps=6, save_steps=100, resume=True)
    assert told(tmp_path / "run")[0]["step"] == 2
    train(tmp_path / "whole", "sft", supplies=supplies, max_steps=6, save_steps=100)
    assert logs(tmp_path / "run") == logs(tmp_path / "whole")


def test_an_alarm_that_stops_nothing_is_only_said(tmp_path: Path) -> None:
    train(tmp_path, "sft", supplies={"penalties": [KLPenalty(1e-3, estimator="k2")]}, alarms={"kl": 1e-3})
    assert [record["alarm"] for record in told(tmp_path)] == ["kl"]
    assert logs(tmp_path)[-1]["step"] == 4


def test_copies_and_dull_rewards_are_said(tmp_path: Path) -> None:
    def dull(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        return torch.ones(len(images))

    greedy = SamplingConfig(top_k=1)
    rollout = {"sampling": greedy, "importance_cap": 2.0}
    supplies = {"rollout": rollout, "rewards": [Reward("dull", dull)], "reference": None}
    train(tmp_path, "grpo", supplies=supplies, max_steps=2, alarms={"duplicates": 0.5, "zero_variance": 0.9})
    assert {record["alarm"] for record in told(tmp_path)} == {"duplicates", "zero_variance"}
    train(tmp_path / "fine", "grpo", supplies={"reference": None}, alarms={"duplicates": 0.5, "zero_variance": 0.9})
    assert told(tmp_path / "fine") == []


def test_a_gamed_reward_ends_a_run(tmp_path: Path) -> None:
    """The held-out reward is the opposite of the trained one."""
    from training.harness import darkness

    supplies = {
        "rollout": {"num_generations": 6},
        "rewards": [*BRIGHTNESS, Reward("darkness", darkness, 0.0)],
        "reference": None,
    }
    watch = {"trained": ["brightness"], "held_out": ["darkness"], "stop": ["gamed"]}
    settings = {"max_steps": 20, "per_device_train_batch_size": 24, "save_steps": 100, "learning_rate": 2e-2}
    with pytest.raises(FloatingPointError, match="by an alarm: the held-out reward darkness falls"):
        train(tmp_path, "grpo", supplies=supplies, alarms=watch, **settings)


def test_a_collapse_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def collapse(policy_positive_entropy_BL: Tensor, *, normalizer: float) -> LossOutput:
        return LossOutput(policy_positive_entropy_BL.sum() / normalizer)

    monkeypatch.setitem(OBJECTIVES, "collapse", collapse)
    settings = {"max_steps": 8, "learning_rate": 5e-2, "save_steps": 100}
    train(tmp_path, "collapse", alarms={"entropy": 0.7}, **settings)
    assert [record["alarm"] for record in told(tmp_path)] == ["entropy"]


def test_a_resumed_run_forgets_alarms_that_it_has_yet_to_raise(tmp_path: Path) -> None:
    lines = [{"step": step, "alarm": "kl", "message": "m"} for step in (2, 4)]
    (tmp_path / ALARMS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5')
    rewind_logs(tmp_path, 3)
    assert told(tmp_path) == lines[:1]
