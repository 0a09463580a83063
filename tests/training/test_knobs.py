"""No key of train.yaml that reaches a trainer is dead: changing it changes the first step, or a short run.

Goes through `recipes.supplies`, so that a key which the recipe forgets to hand on is found too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from training.harness import SETTINGS, first_step, gradient, real_codes, step_batches
from transformers import TrainingArguments

from align.generators import LlamaGen
from align.training.trainer import AlignTrainer
from recipes.choices import CONF
from recipes.config import compose
from recipes.parts import make_objective, tokenizer_hash
from recipes.supplies import make_supplies
from recipes.train import OURS

REWARDS = """
import torch

def brightness(images, conditions, power=1.0):
    return (images.float().mean(dim=(1, 2, 3)) / 255) ** power

def contrast(images, conditions):
    return images.float().std(dim=(1, 2, 3)) / 255
"""
ROLLOUTS = {"rollout.num_generations": 3}
GUIDED = {**ROLLOUTS, "rollout.sampling.guidance_scale": 2.0}
PLAIN = {**GUIDED, "rollout.scoring": "plain", "rollout.importance_cap": 2.0}
KL = {"kl.coefficient": 0.5}
CHARGED = {**ROLLOUTS, **KL, "kl.where": "reward"}
ENTROPY = {"entropy.coefficient": 0.5, "entropy.target": 0.99, "entropy.maximum": 10.0, "entropy.gain": 30.0}
ACTIONS = {"actions.num_generations": 3}
STRAIGHT = {"actions.perceptual": None, "actions.perceptual_weight": 0.0}
MOVING = {"reference.sync_steps": 1, "reference.mixup": 0.5, "objective.beta": 0.5, "objective.lambda_": 3.0}
DRAWN = {"pairs.num_prompts": 4, "pairs.num_generations": 4, "pairs.margin": 0.0}

# (objective, what is set beside it, key, another value): the first step changes
FIRST_STEP: list[tuple[str, dict[str, Any], str, Any]] = [
    ("cca", {}, "seed", 2),
    ("cca", {}, "data.negative_label", 0),
    ("cca", {}, "trainer.label_drop", 0.9),
    ("cca", {}, "objective.beta", 0.5),
    ("sft", {}, "kl.coefficient", 0.5),
    ("sft", KL, "kl.estimator", "k3"),
    ("sft", KL, "kl.estimator", "exact"),
    ("sft", {**KL, "kl.estimator": "k1", "kl.importance": True}, "kl.estimator", "k2"),
    ("sft", {**KL, "kl.estimator": "k3"}, "kl.importance", True),
    ("sft", {}, "entropy.coefficient", 0.1),
    ("ddo", {}, "seed", 2),
    ("ddo", {}, "fakes.per_class", 2),
    ("gft_sampled", {}, "seed", 2),
    ("dpo", DRAWN, "pairs.num_prompts", 3),
    ("dpo", DRAWN, "pairs.num_generations", 6),
    ("dpo", DRAWN, "pairs.margin", 0.25),
    ("dpo", DRAWN, "reward", "contrast"),
    ("grpo", ROLLOUTS, "seed", 2),
    ("grpo", ROLLOUTS, "rollout.num_generations", 6),
    ("grpo", ROLLOUTS, "rollout.sampling.guidance_scale", 1.5),
    ("grpo", ROLLOUTS, "rollout.sampling.temperature", 0.8),
    ("grpo", ROLLOUTS, "rollout.sampling.top_k", 5),
    ("grpo", ROLLOUTS, "rollout.sampling.top_p", 0.7),
    ("grpo", GUIDED, "rollout.sampling.guided_blocks", 3),
    ("grpo", GUIDED, "rollout.sampling.guidance_schedule", "linear"),
    ("grpo", GUIDED, "rollout.null_branch", "detached"),
    ("grpo", GUIDED, "rollout.null_branch", "reference"),
    ("grpo", {**GUIDED, "rollout.importance_cap": 2.0}, "rollout.scoring", "plain"),
    ("grpo", PLAIN, "rollout.importance_cap", 1.05),
    ("grpo", ROLLOUTS, "rollout.advantages.estimator", "rloo"),
    ("grpo", ROLLOUTS, "rollout.advantages.scale_rewards", "batch"),
    ("grpo", ROLLOUTS, "rollout.advantages.multi_objective_aggregation", "normalize_then_sum"),
    ("grpo", ROLLOUTS, "rollout.advantages.clip", 0.2),
    ("grpo", ROLLOUTS, "rollout.credit", "guidance_contrastive"),
    ("grpo", {**ROLLOUTS, "rollout.credit": "guidance_contrastive"}, "rollout.credit_settings", {"power": 1.0}),
    ("grpo", {**ROLLOUTS, **KL}, "kl.where", "reward"),
    ("grpo", CHARGED, "kl.coefficient", 0.1),
    ("grpo", ROLLOUTS, "reward", "contrast"),
    ("grpo", ROLLOUTS, "reward", "kwargs"),
    ("grpo", ROLLOUTS, "reward", "weight"),
    ("va_pi", ACTIONS, "seed", 2),
    ("va_pi", ACTIONS, "actions.num_generations", 4),
    ("va_pi", ACTIONS, "actions.noise", 0.5),
    ("va_pi", ACTIONS, "actions.mse_weight", 50.0),
    ("va_pi", ACTIONS, "actions.perceptual_weight", 0.0),
    ("va_pi", ACTIONS, "actions.advantage_clip", 0.2),
    ("va_pi", ACTIONS, "reproduce_bugs.label_drop_in_update", 0.9),
    ("ste", STRAIGHT, "seed", 2),
    ("ste", STRAIGHT, "objective.ce_weight", 1.0),
]
# the same, seen after three updates
RUN: list[tuple[str, dict[str, Any], str, Any]] = [
    ("cca", {}, "reference.sync_steps", 1),
    ("cca", MOVING, "reference.sync_steps", 2),
    ("cca", MOVING, "reference.mixup", 0.1),
    ("sft", KL, "kl.target", 1e-3),
    ("sft", {**KL, "kl.target": 1e-3}, "kl.target", 1e3),
    ("sft", {**ENTROPY, "entropy.target": None}, "entropy.target", 0.99),
    ("sft", ENTROPY, "entropy.gain", 10.0),
    ("sft", ENTROPY, "entropy.band", 0.5),
    ("sft", ENTROPY, "entropy.maximum", 0.6),
    ("sft", {**ENTROPY, "entropy.target": 0.1}, "entropy.minimum", 0.4),
    ("grpo", ROLLOUTS, "rollout.num_iterations", 2),
]
# (objective, beside, key, another value): how much is done at once is no part of what is computed
NOTHING: list[tuple[str, dict[str, Any], str, Any]] = [
    ("ddo", {}, "fakes.batch_size", 2),
    ("grpo", ROLLOUTS, "rollout.batch_size", 4),
    ("grpo", GUIDED, "rollout.probe_every", 3),
    ("dpo", DRAWN, "pairs.batch_size", 3),
    ("cca", {}, "reference.kind", "cached"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "rewards.py").write_text(REWARDS)
    generator = tiny_llamagen()
    codes = replace(real_codes(generator), tokenizer=tokenizer_hash(generator) or "")
    codes.save(folder / "codes.safetensors")
    return folder


@lru_cache
def made(with_tokenizer: bool) -> LlamaGen:
    return tiny_llamagen(with_tokenizer=with_tokenizer)


def make_generator(objective: str) -> LlamaGen:
    """With a tokenizer where the objective asks for its gradient, or the recipe for its hash."""
    generator = copy.deepcopy(made(objective in ("ste", "dpo")))
    if objective != "ste":
        generator.decode = show  # type: ignore[method-assign]
    return generator


def show(tokens_BL: Tensor) -> Tensor:
    """Tokens as grey stripes of 28x28 pixels, which the shipped classifier can look at."""
    rows_BL = (tokens_BL * 16).to(torch.uint8).repeat_interleave(5, dim=1)[:, :28]
    return rows_BL[:, :, None, None].expand(-1, -1, 28, 3)


@lru_cache
def composed() -> DictConfig:
    return compose("train", ["data=codes", "data.codes=codes.safetensors", "reward=classifier"])


def reward_section(files: Path, choice: str) -> list[dict[str, Any]]:
    first = {"name": f"{files}/rewards.py:brightness", "weight": 1.0, "kwargs": {}}
    second = {"name": f"{files}/rewards.py:contrast", "weight": 0.5}
    changes: dict[str, dict[str, Any]] = {
        "brightness": {},
        "contrast": {"name": f"{files}/rewards.py:contrast"},
        "kwargs": {"kwargs": {"power": 3.0}},
        "weight": {"weight": 0.1},
    }
    return [{**first, **changes[choice]}, second] if choice != "contrast" else [{**first, **changes[choice]}]


def configured(files: Path, objective: str, settings: dict[str, Any]) -> DictConfig:
    config: DictConfig = composed().copy()
    config.objective = OmegaConf.load(CONF / "objective" / f"{objective}.yaml")
    config.data.codes = str(files / "codes.safetensors")
    config.trainer = {**OmegaConf.to_container(config.trainer), **SETTINGS, "max_steps": 3, "save_steps": 100}  # type: ignore[dict-item]
    settings = dict(settings)
    config.reward.rewards = reward_section(files, settings.pop("reward", "brightness"))
    for key, value in settings.items():
        OmegaConf.update(config, key, value, force_add=True)
    return config


def make_trainer(config: DictConfig, folder: Path, *, moved: bool) -> AlignTrainer:
    objective = make_objective(config.objective)
    generator = make_generator(config.objective._target_.rsplit(".", 1)[-1])
    if "gft_sampled" in config.objective._target_:
        generator.add_beta_embedding(config.sampling_beta)
    supplies = make_supplies(config, generator, folder)
    if moved:  # away from the reference, so that it counts
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    values = {key: value for key, value in OmegaConf.to_container(config.trainer).items() if key not in OURS}  # type: ignore[union-attr]
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, disable_tqdm=True, **{**values, "report_to": "none"})
    return AlignTrainer(
        generator,
        objective,
        supplies.stream,
        args,
        reference=supplies.reference,
        source=supplies.source,
        penalties=supplies.penalties,
    )


def first(files: Path, folder: Path, objective: str, settings: dict[str, Any]) -> Tensor:
    """Gradient of the first step, and the loss behind it."""
    trainer = make_trainer(configured(files, objective, settings), folder, moved=True)
    loss, found = first_step(trainer)
    return torch.cat([found, torch.tensor([loss])])


def after_three(files: Path, folder: Path, objective: str, settings: dict[str, Any]) -> Tensor:
    """The gradient that three updates, made by hand, lead to."""
    trainer = make_trainer(configured(files, objective, settings), folder, moved=False)
    optimizer = torch.optim.SGD(trainer.generator.parameters(), lr=0.5)
    for index in range(3):
        optimizer.zero_grad()
        for batch in step_batches(trainer, index):
            trainer.compute_loss(trainer.generator, batch).backward()
        optimizer.step()
        trainer.state.global_step = index + 1
        trainer.end_step()
    return gradient(trainer.generator)


Before = Callable[[Callable[..., Tensor], str, dict[str, Any]], Tensor]


@pytest.fixture(scope="module")
def before_of(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Before:
    """What comes out with nothing changed, computed once for all keys that are tried beside the same."""
    known: dict[str, Tensor] = {}

    def compute(measure: Callable[..., Tensor], objective: str, beside: dict[str, Any]) -> Tensor:
        key = f"{measure.__name__} {objective} {beside}"
        if key not in known:
            known[key] = measure(files, tmp_path_factory.mktemp("before"), objective, beside)
        return known[key]

    return compute


def ids(cases: list[tuple[str, dict[str, Any], str, Any]]) -> list[str]:
    return [f"{objective}-{key}-{value}" for objective, _, key, value in cases]


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "beside", "key", "value"), FIRST_STEP, ids=ids(FIRST_STEP))
def test_it_changes_the_first_step(
    files: Path, before_of: Before, tmp_path: Path, objective: str, beside: dict[str, Any], key: str, value: Any
) -> None:
    before = before_of(first, objective, beside)
    after = first(files, tmp_path, objective, {**beside, key: value})
    assert before.isfinite().all()
    assert after.isfinite().all()
    assert before[:-1].abs().max() > 1e-4
    assert not torch.allclose(before, after, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "beside", "key", "value"), RUN, ids=ids(RUN))
def test_it_changes_a_short_run(
    files: Path, before_of: Before, tmp_path: Path, objective: str, beside: dict[str, Any], key: str, value: Any
) -> None:
    before = before_of(after_three, objective, beside)
    after = after_three(files, tmp_path, objective, {**beside, key: value})
    assert before.isfinite().all()
    assert not torch.allclose(before, after, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "beside", "key", "value"), NOTHING, ids=ids(NOTHING))
def test_it_changes_nothing(
    files: Path, before_of: Before, tmp_path: Path, objective: str, beside: dict[str, Any], key: str, value: Any
) -> None:
    before = before_of(after_three, objective, beside)
    after = after_three(files, tmp_path, objective, {**beside, key: value})
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-3)


def test_every_key_of_these_sections_is_tried() -> None:
    tried = {key for _, _, key, _ in (*FIRST_STEP, *RUN, *NOTHING)}
    elsewhere = {
        *("pairs.file", "reference.cache"),  # tests/recipes/test_supplies.py
        "reproduce_bugs.reference_dropout",  # below
        "actions.perceptual",  # a group: its kinds are tests/rewards' and its weights a file
    }
    config = composed()
    expected = set()
    for section in ("reference", "kl", "entropy", "fakes", "pairs", "rollout", "actions", "reproduce_bugs"):
        for key, value in OmegaConf.to_container(config[section]).items():  # type: ignore[union-attr]
            if isinstance(value, dict) and key in ("sampling", "advantages"):
                expected |= {f"{section}.{key}.{inner}" for inner in value}
            else:
                expected.add(f"{section}.{key}")
    assert expected - tried == elsewhere


def test_the_reference_drops_out_where_asked(files: Path, tmp_path: Path) -> None:
    for asked in (False, True):
        settings = {"reproduce_bugs.reference_dropout": asked, "trainer.dropout": 0.1}
        supplies = make_supplies(configured(files, "cca", settings), tiny_llamagen(dropout=0.1), tmp_path)
        assert supplies.reference is not None
        assert supplies.reference.generator is not None
        assert supplies.reference.generator.training == asked
