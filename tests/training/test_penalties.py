"""KL and entropy as terms of the loss: their gradients, their coefficients' adaptation, and the coefficients' checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training.harness import first_step, killed_at, logs, make_generator, make_trainer, means, step_batches, train

from align.objectives import adapt_coefficient, exact_kl
from align.training.inputs import Scoring
from align.training.penalties import EntropyBonus, KLPenalty, Penalty
from align.training.reference import FrozenReference
from align.training.trainer import AlignTrainer
from align.types import SamplingConfig

LOG_VOCABULARY = math.log(16)


def moved_trainer(folder: Path, objective: str, *penalties: Penalty, by: float = 0.1, **supplies: Any) -> AlignTrainer:
    """A policy that has left its reference."""
    generator = make_generator(objective)
    supplies = {"reference": FrozenReference(generator), "penalties": penalties, **supplies}
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=rng))
    return make_trainer(folder, objective, generator=generator, supplies=supplies)


def share_of_the_penalty(folder: Path, objective: str, penalty: Penalty, **more: Any) -> tuple[float, Tensor]:
    """Loss and gradient with a penalty, less those without."""
    loss, gradient = first_step(moved_trainer(folder, objective, penalty, **more))
    plain, plain_gradient = first_step(moved_trainer(folder, objective, **more))
    return loss - plain, gradient - plain_gradient


# --- KL


@pytest.mark.parametrize(
    ("objective", "estimator"),
    [("sft", "k2"), ("sft", "k3"), ("sft", "exact"), ("dpo", "k2"), ("grpo", "k2"), ("grpo", "exact")],
)
def test_kl_neither_counts_nor_pulls_at_the_start_and_does_later(
    tmp_path: Path, objective: str, estimator: str
) -> None:
    penalty = KLPenalty(5.0, estimator=estimator)
    loss, gradient = share_of_the_penalty(tmp_path, objective, penalty, by=0.0)
    assert loss == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() < 1e-5
    loss, gradient = share_of_the_penalty(tmp_path, objective, penalty)
    assert loss > 0.01
    assert gradient.abs().max() > 1e-3


def test_the_estimators_pull_as_they_should(tmp_path: Path) -> None:
    """k3 with importance weights has k2's gradient, to the last token; the others have each their own."""
    k2, k3, weighed_k3, k1, exact = (
        share_of_the_penalty(tmp_path, "sft", KLPenalty(1.0, estimator=estimator, importance=importance))[1]
        for estimator, importance in (("k2", False), ("k3", False), ("k3", True), ("k1", True), ("exact", False))
    )
    torch.testing.assert_close(weighed_k3, k2, atol=1e-5, rtol=1e-3)
    different = [k2, k3, k1, exact]
    for index, one in enumerate(different):
        assert one.abs().max() > 1e-3
        assert all(not torch.allclose(one, other, atol=1e-3) for other in different[:index])


def test_kl_is_taken_on_what_the_objective_scores(tmp_path: Path) -> None:
    """sft: real images. The exact KL of every position, times the coefficient, is the loss's share."""
    trainer = moved_trainer(tmp_path, "sft", KLPenalty(0.5, estimator="exact"))
    (batch,) = step_batches(trainer)
    with torch.no_grad():
        known = trainer.inputs(trainer.generator, batch)
    kl = exact_kl(known["policy_positive_BLV"], known["reference_positive_BLV"]).mean().item()
    loss, _ = share_of_the_penalty(tmp_path, "sft", KLPenalty(0.5, estimator="exact"))
    assert loss == pytest.approx(0.5 * kl, rel=1e-3)
    first_step(trainer)
    logged = means(trainer.pending)
    assert logged["kl"] == pytest.approx(kl, rel=1e-4)
    assert logged["kl_coefficient"] == 0.5


@pytest.mark.parametrize("estimator", ["k2", "exact"])
def test_kl_on_rollouts_leaves_the_filters_out(tmp_path: Path, estimator: str) -> None:
    """Guidance and temperature count: it is the tempered, guided distribution that is held."""
    shares = {}
    for name, config in {
        "plain": SamplingConfig(),
        "filtered": SamplingConfig(top_k=15),
        "guided": SamplingConfig(guidance_scale=2.0, guided_blocks=3),
    }.items():
        rollout = {"sampling": config, "scoring": Scoring(config)}
        trainer = moved_trainer(tmp_path, "grpo", KLPenalty(1.0, estimator=estimator), rollout=rollout)
        first_step(trainer)
        shares[name] = means(trainer.pending)["kl"]
        (batch,) = step_batches(trainer)
        with torch.no_grad():
            known = trainer.inputs(trainer.generator, batch)
        assert "policy_unfiltered_BLV" in known or "policy_unfiltered_BL" in known
    assert all(math.isfinite(value) and value > 0 for value in shares.values())
    assert shares["guided"] != pytest.approx(shares["plain"], rel=1e-3)


def test_importance_is_relative_to_the_rollouts_old_logprobs(tmp_path: Path) -> None:
    """On the second update of a rollout the weight has left 1, and with it the loss."""
    losses = []
    for importance in (False, True):
        penalty = KLPenalty(1.0, estimator="k3", importance=importance)
        trainer = moved_trainer(tmp_path, "grpo", penalty, rollout={"num_iterations": 2})
        (batch,) = step_batches(trainer, 0)
        first = trainer.compute_loss(trainer.generator, batch).item()
        with torch.no_grad():
            next(iter(trainer.generator.parameters())).mul_(1.3)
        trainer.state.global_step = 1
        losses.append((first, trainer.compute_loss(trainer.generator, batch).item()))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0][1] != pytest.approx(losses[1][1], rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"estimator": "k1"}, "k1 in the loss has a gradient of mean zero; use kl.estimator=k2"),
        ({"estimator": "k4"}, "unknown kl.estimator 'k4'; known: k1, k2, k3, exact"),
        ({"coefficient": -0.1}, "kl.coefficient is -0.1; it must be at least 0"),
        ({"target": 0.0}, "kl.target is 0.0; it must be positive"),
    ],
)
def test_what_no_penalty_can_be_is_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KLPenalty(**{"coefficient": 0.1, **settings})


def test_kl_on_actions_is_exact_or_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="KL is exact there; set kl.estimator=exact"):
        moved_trainer(tmp_path, "va_pi", KLPenalty(0.1, estimator="k2"))
    loss, gradient = share_of_the_penalty(tmp_path, "va_pi", KLPenalty(1.0, estimator="exact"))
    assert loss > 0.01
    assert gradient.abs().max() > 1e-3


def test_kl_needs_a_reference(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this objective compares the policy with a reference"):
        make_trainer(tmp_path, "sft", supplies={"penalties": [KLPenalty(0.1)], "reference": None})


# --- adaptation


def test_the_coefficient_adapts_to_the_kl_of_each_step(tmp_path: Path) -> None:
    penalty = KLPenalty(0.5, estimator="k2", target=1e-4)
    train(tmp_path, "sft", supplies={"penalties": [penalty]})
    records = logs(tmp_path)
    expected = [0.5]
    for record in records:
        expected.append(adapt_coefficient(expected[-1], record["kl"], 1e-4, minimum=1e-4, maximum=10.0))
    assert [record["kl_coefficient"] for record in records] == pytest.approx(expected[:-1])
    assert penalty.coefficient == pytest.approx(expected[-1])
    assert expected[1] < 0.5  # below the target at first: nothing has moved
    assert expected[-1] > expected[1]  # above it later


def test_a_fixed_coefficient_stays(tmp_path: Path) -> None:
    train(tmp_path, "sft", max_steps=2, supplies={"penalties": [KLPenalty(0.5, estimator="k2")]})
    assert {record["kl_coefficient"] for record in logs(tmp_path)} == {0.5}


@pytest.mark.parametrize("logging_steps", [1, 3])
def test_coefficients_survive_a_checkpoint(tmp_path: Path, logging_steps: int) -> None:
    def run(folder: Path, **more: Any) -> list[Penalty]:
        penalties: list[Penalty] = [
            KLPenalty(0.5, estimator="k2", target=1e-4),
            EntropyBonus.for_vocabulary(16, base=0.01, target=0.99, maximum=1.0),
        ]
        train(folder, "sft", supplies={"penalties": penalties}, logging_steps=logging_steps, **more)
        return penalties

    whole = run(tmp_path / "unbroken")
    with killed_at(3):
        run(tmp_path / "broken")
    stored = json.loads((tmp_path / "broken/checkpoint-2/align_state.json").read_text())["coefficients"]
    assert stored["kl"] != 0.5
    resumed = run(tmp_path / "broken", resume=True)
    assert [penalty.coefficient for penalty in resumed] == [penalty.coefficient for penalty in whole]
    assert logs(tmp_path / "unbroken") == logs(tmp_path / "broken")


# --- entropy


def test_a_bonus_raises_the_entropy(tmp_path: Path) -> None:
    settings = {"max_steps": 8, "save_steps": 100}
    without = train(tmp_path / "without", "sft", **settings)
    bonus = EntropyBonus.for_vocabulary(16, base=2.0)
    with_bonus = train(tmp_path / "with", "sft", supplies={"penalties": [bonus]}, **settings)
    assert without is not with_bonus
    last, plain = logs(tmp_path / "with")[-1], logs(tmp_path / "without")[-1]
    assert last["entropy"] > plain["entropy"] + 0.1
    assert last["entropy"] > logs(tmp_path / "with")[0]["entropy"]
    assert last["entropy_coefficient"] == 2.0


def test_the_bonus_of_the_loss_is_its_coefficient_times_the_entropy(tmp_path: Path) -> None:
    loss, gradient = share_of_the_penalty(tmp_path, "sft", EntropyBonus.for_vocabulary(16, base=0.3))
    trainer = moved_trainer(tmp_path, "sft")
    first_step(trainer)
    assert loss == pytest.approx(-0.3 * means(trainer.pending)["entropy"], rel=1e-3)
    assert gradient.abs().max() > 1e-4


def test_the_bonus_adapts_around_its_target() -> None:
    bonus = EntropyBonus.for_vocabulary(16, base=1e-3, target=0.8, band=0.05, gain=3.0)
    for share, expected in ((0.8, 1e-3), (0.84, 1e-3), (0.6, 1e-3 * math.exp(0.6)), (1.0, 1e-3 * math.exp(-0.6))):
        bonus.update({"entropy": share * LOG_VOCABULARY})
        assert bonus.coefficient == pytest.approx(expected)
    bonus.update({"entropy": 0.0})
    assert bonus.coefficient == 4e-3  # its bound
    fixed = EntropyBonus.for_vocabulary(16, base=1e-3)
    fixed.update({"entropy": 0.0})
    assert fixed.coefficient == 1e-3
