"""VA-pi's actions and the straight-through baseline: drawn by position alone, decoded, compared with the real image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_var
from torch import Tensor
from training.harness import first_step, make_generator, make_trainer, means, step_batches

from align.objectives import group_advantages, pixel_reward
from align.training.actions import Actions, ActionSettings, Perceptual
from align.training.straight_through import StraightThrough
from align.types import Condition

FAMILIES: dict[str, Callable[..., Any]] = {"llamagen": tiny_llamagen, "var": tiny_var}


def mean_difference(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
    """A stand-in for a perceptual distance: of the mean colours."""
    return (a_NCHW.mean(dim=(2, 3)) - b_NCHW.mean(dim=(2, 3))).square().sum(dim=1)


PERCEPTUAL = Perceptual("colours", mean_difference)


def joined(batches: list[dict[str, Any]], name: str) -> Tensor:
    return torch.cat([batch[name] for batch in batches])


def pixels(generator: Any, tokens: Tensor) -> Tensor:
    return generator.decode(tokens).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_actions_are_rewarded_by_their_pixels(tmp_path: Path, family: str) -> None:
    generator = FAMILIES[family]()
    actions = {"mse_weight": 2.0, "perceptual_weight": 0.5, "batch_size": 4, "advantage_clip": 1.0}
    trainer = make_trainer(
        tmp_path, "va_pi", generator=generator, supplies={"actions": actions, "perceptual": PERCEPTUAL}
    )
    (batch,) = step_batches(trainer)
    assert batch["actions"].shape == (6, 3, generator.layout.length)
    assert torch.equal(batch["context"], batch["tokens"])  # without noise
    real = pixels(generator, batch["tokens"])
    drawn = torch.stack([pixels(generator, batch["actions"][:, g]) for g in range(3)], dim=1)
    distance = torch.stack([mean_difference(drawn[:, g], real) for g in range(3)], dim=1)
    reward_BG = pixel_reward(drawn, real, distance, mse_weight=2.0, perceptual_weight=0.5)
    expected = group_advantages(reward_BG.view(-1, 1), num_generations=3, clip=1.0).advantages_N.view(6, 3)
    torch.testing.assert_close(batch["advantages"], expected, atol=1e-3, rtol=1e-3)
    logged = means(trainer.pending)
    assert logged["reward/reconstruction"] == pytest.approx(reward_BG.mean().item(), rel=1e-4)
    assert logged["distance/colours"] == pytest.approx(distance.mean().item(), rel=1e-4)


def test_actions_are_drawn_from_the_policy_given_the_context(tmp_path: Path) -> None:
    """Frequencies over many draws against the probabilities, at every position."""
    generator = make_generator("va_pi")
    settings = {"per_device_train_batch_size": 1, "max_steps": 1}
    trainer = make_trainer(
        tmp_path,
        "va_pi",
        generator=generator,
        supplies={"actions": {"num_generations": 800}, "label_drop": 1.0},
        **settings,
    )
    (batch,) = step_batches(trainer)
    with torch.no_grad():
        logits = generator(batch["context"], Condition({"label": torch.tensor([4])}))  # dropped: the null condition
    drawn_LG = batch["actions"][0].T
    frequency_LV = torch.stack([torch.bincount(row, minlength=16) for row in drawn_LG]) / 800
    # five standard errors at most
    torch.testing.assert_close(frequency_LV, logits[0].softmax(dim=-1), atol=0.09, rtol=0)


@pytest.mark.parametrize("objective", ["va_pi", "ste"])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_what_is_drawn_depends_on_the_position_alone(tmp_path: Path, objective: str, micro_batch: int) -> None:
    settings = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": 6 // micro_batch}
    supplies = {"actions": {"noise": 0.5} if objective == "va_pi" else {}}
    generator = make_generator(objective)
    whole, parts = (
        make_trainer(tmp_path, objective, generator=generator, supplies=supplies, **more) for more in ({}, settings)
    )
    if objective == "va_pi":
        for name in ("context", "actions"):
            assert torch.equal(joined(step_batches(whole), name), joined(step_batches(parts), name))
    assert first_step(whole)[0] == pytest.approx(first_step(parts)[0], rel=1e-5)
    torch.testing.assert_close(first_step(whole)[1], first_step(parts)[1], atol=1e-5, rtol=1e-4)


def test_noise_replaces_its_share_of_the_context(tmp_path: Path) -> None:
    settings = {"per_device_train_batch_size": 60, "max_steps": 1}
    trainer = make_trainer(tmp_path, "va_pi", supplies={"actions": {"noise": 0.5}}, **settings)
    (batch,) = step_batches(trainer)
    changed = (batch["context"] != batch["tokens"]).float().mean()
    # half of them, of which one in sixteen draws the token that was there; five standard errors of 360 tokens
    assert abs(changed - 0.5 * 15 / 16) < 0.13
    assert len(batch["context"][batch["context"] != batch["tokens"]].unique()) == 16  # by tokens of the whole book
    # the tokens that are scored stay the real ones
    known = trainer.inputs(trainer.generator, batch)
    with torch.no_grad():
        own = torch.where(batch["dropped"], 4, batch["label"])
        logits = trainer.generator(batch["context"], Condition({"label": own}))
    expected = logits.log_softmax(-1).gather(-1, batch["tokens"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(known["policy_real_BL"], expected, atol=1e-5, rtol=1e-5)


def test_the_ratio_of_actions_is_exactly_one(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "va_pi", supplies={"actions": {"noise": 0.3}})
    first_step(trainer)
    logged = means(trainer.pending)
    assert logged["ratio_mean"] == logged["ratio_max"] == 1


def test_dropping_labels_in_the_update_is_a_fault_on_request(tmp_path: Path) -> None:
    """Actions are drawn with the condition and scored without it: the same actions, other ratios."""
    right = make_trainer(tmp_path, "va_pi", supplies={"actions": {}, "label_drop": 0.0})
    wrong = make_trainer(tmp_path, "va_pi", supplies={"actions": {"label_drop_in_update": 1.0}, "label_drop": 0.0})
    (good,), (bad,) = step_batches(right), step_batches(wrong)
    assert torch.equal(good["actions"], bad["actions"])
    assert torch.equal(good["advantages"], bad["advantages"])
    assert not good["dropped"].any()
    assert bad["dropped"].all()
    known = wrong.inputs(wrong.generator, bad)
    torch.testing.assert_close(
        known["old_actions_BGL"], right.inputs(right.generator, good)["policy_actions_BGL"].detach()
    )
    assert not torch.allclose(known["policy_actions_BGL"], known["old_actions_BGL"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_drop_in_update": -0.1}, "label_drop_in_update is -0.1; it is a probability"),
        ({"noise": 1.5}, "actions.noise is 1.5; it is a probability"),
        ({"num_generations": 1}, "actions.num_generations is 1; advantages compare draws of one image"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionSettings(**settings)


def test_a_perceptual_weight_needs_a_distance() -> None:
    with pytest.raises(ValueError, match="set actions.perceptual, or actions.perceptual_weight=0"):
        Actions(ActionSettings(perceptual_weight=1.0), None, seed=1)


# --- the straight-through baseline


@pytest.mark.parametrize("family", FAMILIES)
def test_straight_through_pixels_are_those_of_tokens_drawn_from_the_policy(tmp_path: Path, family: str) -> None:
    generator = FAMILIES[family]()
    trainer = make_trainer(tmp_path, "ste", generator=generator, supplies={"perceptual": PERCEPTUAL})
    (batch,) = step_batches(trainer)
    known = trainer.inputs(generator, batch)
    torch.testing.assert_close(known["real_BCHW"], pixels(generator, batch["tokens"]))
    source = trainer.source
    assert isinstance(source, StraightThrough)
    gumbel = source._gumbel(batch["position"], known["policy_real_BLV"])
    tokens = (known["policy_real_BLV"] + gumbel).argmax(dim=-1)
    assert not torch.equal(tokens, known["policy_real_BLV"].argmax(dim=-1))
    decoded = known["decoded_BCHW"]
    # up to the rounding to bytes
    torch.testing.assert_close(decoded.detach().clamp(-1, 1), pixels(generator, tokens), atol=1.01 / 127.5, rtol=0)
    torch.testing.assert_close(known["perceptual_B"], mean_difference(decoded, known["real_BCHW"]))
    # the gradient reaches the policy through the pixels alone
    (gradient,) = torch.autograd.grad(decoded.square().sum(), [next(iter(generator.parameters()))])
    assert gradient.abs().max() > 0
