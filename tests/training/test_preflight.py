"""Each check of the preflight fails on what it is there for, and a run after it is the run without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_var
from torch import Tensor
from training.harness import (
    OBJECTIVES,
    assert_same,
    brightness,
    logs,
    make_generator,
    make_trainer,
    train,
    weights,
    with_visible_tokens,
)

from align.generators import Generator, LlamaGen
from align.training.inputs import Scoring
from align.training.penalties import KLPenalty
from align.training.preflight import PreflightError, preflight
from align.training.reference import AdapterOffReference, FrozenReference
from align.training.rollouts import Rollouts
from align.training.trainer import AlignTrainer
from align.types import LossOutput, SamplingConfig
from rewards.base import Reward

GUIDED = SamplingConfig(guidance_scale=2.0, top_k=12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_right_passes_and_is_told(tmp_path: Path, objective: str) -> None:
    found = preflight(make_trainer(tmp_path, objective))
    assert found[0] == "1 process(es) start from the same weights"
    assert found[1].startswith("teacher-forced log-probs equal the sampler's")
    assert found[-1].startswith("the gradient is finite and not zero")
    told = " ".join(found)
    source = make_trainer(tmp_path, objective).source.supplies
    assert ("the reward varies: standard deviation" in told) == (source in ("rollouts", "actions"))


def test_equality_with_the_reference_is_told(tmp_path: Path) -> None:
    found = preflight(make_trainer(tmp_path, "cca"))
    assert "policy equals reference on positive_B (largest gap 0.0e+00)" in found
    assert "policy equals reference on negative_B (largest gap 0.0e+00)" in found


def test_the_ratio_is_looked_at_where_it_is_kept(tmp_path: Path) -> None:
    rollout = {"num_iterations": 2, "sampling": GUIDED, "scoring": Scoring(GUIDED)}
    found = preflight(make_trainer(tmp_path, "grpo", supplies={"rollout": rollout}))
    assert any(line.startswith("the ratio is 1 before the first update") for line in found)


# --- each check on what it is there for


class OffByOne(LlamaGen):
    """Its sampler feeds other tokens than it drew."""

    def step(self, tokens_Bn: Tensor, cache: Any) -> Tensor:
        return super().step((tokens_Bn + 1) % self.vocab_size, cache)


class StaleCache(LlamaGen):
    """Its sampler forgets the condition after the first token."""

    def step(self, tokens_Bn: Tensor, cache: Any) -> Tensor:
        for layer in cache.layers:
            layer[:, :, :, 0] = 0
        return super().step(tokens_Bn, cache)


@pytest.mark.parametrize("broken", [OffByOne, StaleCache])
def test_a_sampler_that_is_not_the_network(tmp_path: Path, broken: type[LlamaGen]) -> None:
    generator = tiny_llamagen(with_tokenizer=False)
    generator.__class__ = broken
    with pytest.raises(PreflightError, match="log-probs by teacher forcing differ from the sampler's by up to .* nats"):
        preflight(make_trainer(tmp_path, "sft", generator=generator))


def test_a_reference_that_is_not_the_start(tmp_path: Path) -> None:
    other = FrozenReference(tiny_llamagen(seed=1, with_tokenizer=False))
    with pytest.raises(PreflightError, match="policy and reference should be equal.*positive_B differs by up to"):
        preflight(make_trainer(tmp_path, "cca", supplies={"reference": other}))
    penalty = [KLPenalty(0.1, estimator="exact")]
    with pytest.raises(PreflightError, match="policy and reference should be equal.*positive_BLV differs"):
        preflight(make_trainer(tmp_path, "sft", supplies={"reference": other, "penalties": penalty}))


def test_adapters_that_are_not_off(tmp_path: Path) -> None:
    from align.training.adapters import add_adapters

    generator = make_generator("cca")
    add_adapters(generator, rank=2, alpha=4, seed=0)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)  # as weights of an earlier run would
    with pytest.raises(PreflightError, match="policy and reference should be equal"):
        preflight(
            make_trainer(tmp_path, "cca", generator=generator, supplies={"reference": AdapterOffReference(generator)})
        )


def test_old_logprobs_that_are_of_another_distribution(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "grpo", supplies={"rollout": {"num_iterations": 2}})
    source = trainer.source
    assert isinstance(source, Rollouts)
    scores = source._scores
    source._scores = lambda batch, step: {"old": scores(batch, step)["old"] + 0.3}  # type: ignore[method-assign]
    with pytest.raises(PreflightError, match="ratio should be 1 before the first update, but log-probs moved by 0.3"):
        preflight(trainer)


def constant(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
    return torch.ones(len(images))


def not_applicable(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
    return torch.full((len(images),), torch.nan)


def class_number(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
    """Differs between groups, never within one."""
    return torch.tensor([float(row["label"]) for row in conditions])


@pytest.mark.parametrize("reward", [constant, not_applicable, class_number])
def test_a_reward_that_teaches_nothing(tmp_path: Path, reward: Any) -> None:
    supplies = {"rewards": [Reward("dull", reward)], "reference": None}
    with pytest.raises(PreflightError, match="the reward is the same for every sample of every group"):
        preflight(make_trainer(tmp_path, "grpo", supplies=supplies))
    # a reward that is only watched does not save it
    watched = {**supplies, "rewards": [Reward("dull", reward), Reward("brightness", brightness, 0.0)]}
    with pytest.raises(PreflightError, match="the reward is the same"):
        preflight(make_trainer(tmp_path, "grpo", supplies=watched))


def test_groups_of_one_are_compared_over_the_batch(tmp_path: Path) -> None:
    rollout = {"num_generations": 1, "advantages": {"estimator": "reinforce_pp"}}
    assert "the reward varies" in preflight(make_trainer(tmp_path, "reinforce", supplies={"rollout": rollout}))
    dull = {"rollout": rollout, "rewards": [Reward("dull", constant)]}
    with pytest.raises(PreflightError, match="the reward is the same"):
        preflight(make_trainer(tmp_path, "reinforce", supplies=dull))


def no_gradient(policy_positive_B: Tensor, *, normalizer: float) -> LossOutput:
    return LossOutput(policy_positive_B.detach().sum() / normalizer)


def zero_gradient(policy_positive_B: Tensor, *, normalizer: float) -> LossOutput:
    return LossOutput(0 * policy_positive_B.sum() / normalizer)


def infinite_gradient(policy_positive_B: Tensor, reference_positive_B: Tensor, *, normalizer: float) -> LossOutput:
    return LossOutput((policy_positive_B - reference_positive_B).abs().sqrt().sum() / normalizer)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (no_gradient, "the loss does not depend on the policy"),
        (zero_gradient, "the gradient's norm is 0.0 on the first step; the loss does not depend on the policy"),
        (infinite_gradient, "the gradient's norm is (inf|nan) on the first step; lower the precision's risk"),
    ],
)
def test_a_gradient_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: Any, message: str) -> None:
    monkeypatch.setitem(OBJECTIVES, "broken", objective)
    with pytest.raises(PreflightError, match=message):
        preflight(make_trainer(tmp_path, "broken"))


def test_a_first_micro_batch_without_a_signal_is_no_reason_to_stop(tmp_path: Path) -> None:
    """Its only group has equal rewards; the step as a whole teaches something."""

    def later(images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        return brightness(images, conditions) * (torch.arange(len(images)) >= 3)

    settings = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    assert preflight(make_trainer(tmp_path, "grpo", supplies={"rewards": [Reward("later", later)]}, **settings))


def test_a_generator_that_is_frozen(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "sft", generator=make_generator("sft").requires_grad_(False))
    with pytest.raises(PreflightError, match="no parameter gets a gradient; everything is frozen"):
        preflight(trainer)


def test_processes_that_start_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path, "sft")
    monkeypatch.setattr(trainer.accelerator, "gather", lambda own: torch.cat([own, own + 1]))
    with pytest.raises(PreflightError, match="the 2 processes do not start from the same weights"):
        preflight(trainer)


def test_a_failed_check_ends_a_run_before_its_first_step(tmp_path: Path) -> None:
    generator = make_generator("cca")
    before = weights(generator)
    other = FrozenReference(tiny_llamagen(seed=1, with_tokenizer=False))
    with pytest.raises(PreflightError):
        train(tmp_path, "cca", generator=generator, supplies={"reference": other}, check_first=True)
    torch.testing.assert_close(weights(generator), before, atol=0, rtol=0)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "generator",
    [
        pytest.param(lambda: tiny_llamagen(dropout=0.3, with_tokenizer=False), id="dropout"),
        pytest.param(lambda: tiny_var(drop_path=0.5), id="drop_path"),
    ],
)
def test_dropout_is_said_and_not_taken_for_a_gap(tmp_path: Path, generator: Callable[[], Generator]) -> None:
    found = preflight(make_trainer(tmp_path, "cca", generator=generator()))
    assert "dropout is on: gaps to the reference start at its noise, not at 0" in found


def test_rounding_is_no_reason_to_stop(tmp_path: Path) -> None:
    """In bf16 policy and sampler differ by rounding, policy and reference do not."""
    for objective in ("cca", "grpo"):
        train(tmp_path / objective, objective, precision="bf16", max_steps=1, check_first=True)


# --- what it leaves


def test_it_leaves_everything_as_it_was(tmp_path: Path) -> None:
    generator = make_generator("grpo")
    supplies = {"rollout": {"num_iterations": 2}, "penalties": [KLPenalty(0.1, estimator="k2", target=0.1)]}
    trainer: AlignTrainer = make_trainer(tmp_path, "grpo", generator=generator, supplies=supplies)
    before, random = weights(generator), torch.random.get_rng_state()
    preflight(trainer)
    torch.testing.assert_close(weights(generator), before, atol=0, rtol=0)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in generator.parameters())
    assert trainer.pending == trainer.step_averages == {}
    assert isinstance(trainer.source, Rollouts)
    assert trainer.source.buffer == []
    assert trainer.penalties[0].coefficient == 0.1
    assert trainer.state.global_step == 0
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("objective", "supplies", "settings"),
    [
        ("cca", {}, {"gradient_accumulation_steps": 3, "per_device_train_batch_size": 2}),
        ("ddo", {}, {}),
        ("va_pi", {}, {}),
        ("grpo", {"rollout": {"num_iterations": 2}}, {}),
    ],
)
def test_a_run_after_it_is_the_run_without_it(
    tmp_path: Path, objective: str, supplies: dict[str, Any], settings: dict[str, int]
) -> None:
    """Dropout too draws the same noise."""
    runs = []
    for check in (False, True):
        dropout = 0.2 if objective in ("cca", "ddo") else 0.0
        generator = with_visible_tokens(tiny_llamagen(dropout=dropout, with_tokenizer=False))
        extra = {"penalties": [KLPenalty(0.1, estimator="exact", target=1e-4)]}
        torch.manual_seed(3)
        folder = tmp_path / str(check)
        runs.append(
            train(
                folder,
                objective,
                generator=generator,
                supplies={**extra, **supplies},
                check_first=check,
                max_steps=3,
                **settings,
            )
        )
    assert_same(*runs)
    assert logs(tmp_path / "False") == logs(tmp_path / "True")


def test_it_is_not_repeated_on_a_resumed_run(tmp_path: Path) -> None:
    """A resumed policy has left its reference."""
    whole = train(tmp_path, "cca", check_first=True)
    again = train(tmp_path, "cca", check_first=True, resume=True)
    assert_same(whole, again)
