"""What the tests of training share: tiny data of every kind, every objective, and a run in one call."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen
from torch import Tensor
from transformers import TrainingArguments

from align.data import Codes, PairStream, PreferencePairs, PromptStream, Stream, TrainingStream
from align.generators import Generator, LlamaGen
from align.objectives import (
    best_of_n,
    cca,
    ddo,
    dpo,
    erasure,
    gft,
    gft_sampled,
    kto,
    policy_gradient,
    sft,
    simpo,
    spin,
    ste,
    va_pi,
)
from align.training import callbacks
from align.training.actions import Actions, ActionSettings, Perceptual
from align.training.credit import TokenCredit
from align.training.fakes import FakePool
from align.training.inputs import Needs, Objective
from align.training.penalties import Penalty
from align.training.reference import CachedReference, FrozenReference, Reference
from align.training.rollouts import Rollouts, RolloutSettings
from align.training.sources import Betas, Fakes, Pairs, RealData, Source
from align.training.straight_through import StraightThrough
from align.training.trainer import AlignTrainer
from align.types import Average
from recipes.supplies import Supplies
from recipes.train import OURS, train_generator
from rewards.base import Reward, groupwise

gc.freeze()  # accelerate collects garbage at the start of each run, and walking torch's objects would take most of it

OBJECTIVES: dict[str, Objective] = {
    "sft": partial(sft),
    "cca": partial(cca, beta=0.1, lambda_=4.0),
    "gft": partial(gft, beta=0.6),
    "gft_sampled": partial(gft_sampled),
    "erasure": partial(erasure, eta=0.5),
    "ddo": partial(ddo, beta=0.1, alpha=2.0),
    "spin": partial(spin, beta=0.1),
    "best_of_n": partial(best_of_n),
    "dpo": partial(dpo, beta=0.1),
    "simpo": partial(simpo, beta=2.0, simpo_gamma=0.5),
    "kto": partial(kto, beta=0.1),
    "grpo": partial(policy_gradient, loss_type="grpo", epsilon=0.2),
    "dapo": partial(policy_gradient, loss_type="dapo", epsilon=0.2, epsilon_high=0.28),
    "gspo": partial(policy_gradient, loss_type="gspo", epsilon=0.1),
    "cispo": partial(policy_gradient, loss_type="cispo", epsilon_high=5.0),
    "reinforce": partial(policy_gradient, loss_type="reinforce"),
    "va_pi": partial(va_pi, ce_weight=0.1),
    "ste": partial(ste, mse_weight=1.0, perceptual_weight=0.0, ce_weight=0.1),
}
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


# --- rewards


def brightness(images: Tensor, conditions: Sequence[Mapping[str, Any]]) -> Tensor:
    """Mean of the pixels, in [0, 1]."""
    return images.float().mean(dim=(1, 2, 3)) / 255


def darkness(images: Tensor, conditions: Sequence[Mapping[str, Any]]) -> Tensor:
    return 1 - brightness(images, conditions)


BRIGHTNESS = (Reward("brightness", brightness),)


@groupwise
def place(images: Tensor, conditions: Sequence[Mapping[str, Any]]) -> Tensor:
    """The place of each image in its group by brightness, from 0."""
    return brightness(images, conditions).argsort().argsort().float()


class Novelty:
    """How far an image's brightness is from the moving mean of the steps before, and from that of its own step."""

    def __init__(self) -> None:
        self.mean = torch.zeros(1, dtype=torch.float64)

    def describe(self, images: Tensor, conditions: Sequence[Mapping[str, Any]]) -> Tensor:
        return brightness(images, conditions)[:, None]

    def score(self, features_ND: Tensor) -> Tensor:
        return ((features_ND - self.mean).abs() + (features_ND - features_ND.mean(dim=0)).abs()).squeeze(1)

    def advance(self, features_ND: Tensor) -> None:
        self.mean = 0.5 * self.mean + 0.5 * features_ND.mean(dim=0)

    def state_dict(self) -> dict[str, Tensor]:
        return {"mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.mean = state.get("mean", torch.zeros(1, dtype=torch.float64)).clone()


# --- data


def real_codes(generator: Generator) -> Codes:
    rng = torch.Generator().manual_seed(5)
    tokens_NL = torch.randint(generator.vocab_size, (20, generator.layout.length), generator=rng)
    return Codes(tokens_NL, torch.randint(4, (20,), generator=rng), "tokenizer")


def real_pairs(generator: Generator) -> PreferencePairs:
    rng = torch.Generator().manual_seed(6)
    chosen, rejected = torch.randint(generator.vocab_size, (2, 20, generator.layout.length), generator=rng)
    unknown = torch.full((20,), torch.nan)
    return PreferencePairs(chosen, rejected, torch.randint(4, (20,), generator=rng), unknown, unknown, "tokenizer")


def make_supplies(
    generator: Generator,
    objective: str,
    settings: Mapping[str, Any],
    *,
    kind: str | None = None,
    world: int = 1,
    label_drop: float = 0.3,
    negative_label: int | None = None,
    reference: Reference | str | None = "frozen",
    penalties: Sequence[Penalty] = (),
    rewards: Sequence[Reward] = BRIGHTNESS,
    rollout: Mapping[str, Any] | None = None,
    actions: Mapping[str, Any] | None = None,
    perceptual: Perceptual | None = None,
    pool: FakePool | None = None,
    credit: TokenCredit | None = None,
) -> Supplies:
    """What `recipes.supplies` makes of a configuration, from tiny data.

    Args:
        kind: of the data; what the objective asks for unless given.
        reference: frozen, cached, a ready one or None.
        rollout, actions: settings of the source, beside groups of 3.
    """
    needs = Needs.of(OBJECTIVES[objective])
    kind = kind or needs.source
    rows = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] * world
    length = rows * settings["max_steps"]
    stream: Stream | PromptStream
    source: Source
    if kind == "rollouts":
        rollouts = RolloutSettings(**{"num_generations": 3, **(rollout or {})})
        stream = PromptStream(
            range(4),
            length=length,
            seed=1,
            num_generations=rollouts.num_generations,
            rows_per_step=rows,
            num_iterations=rollouts.num_iterations,
            processes=world,
            micro_batch=settings["per_device_train_batch_size"],
        )
        source = Rollouts(rollouts, rewards, credit)
    elif kind == "pairs":
        stream, source = PairStream(real_pairs(generator), length=length, seed=1, label_drop=label_drop), Pairs()
    else:
        codes = real_codes(generator)
        stream = TrainingStream(codes, length=length, seed=1, label_drop=label_drop, negative_label=negative_label)
        source = RealData()
        if kind == "fakes":
            source = Fakes(seed=1, batch_size=4, pool=pool)
        elif kind == "betas":
            source = Betas(seed=1)
        elif kind in ("actions", "pixels"):
            chosen = ActionSettings(**{"num_generations": 3, "perceptual_weight": 0.0, **(actions or {})})
            source = (Actions if kind == "actions" else StraightThrough)(chosen, perceptual, seed=1)
    if reference == "frozen":
        reference = FrozenReference(generator)
    elif reference == "cached":
        assert isinstance(stream, Stream)
        reference = CachedReference.compute(generator, stream, needs.of_reference, batch_size=5)
    assert not isinstance(reference, str)
    return Supplies(stream, source, reference, list(penalties))


# --- runs


@lru_cache
def _made(with_tokenizer: bool) -> LlamaGen:
    return tiny_llamagen(with_tokenizer=with_tokenizer)


def make_generator(objective: str) -> LlamaGen:
    """Tiny, with the input that the objective asks for; a tokenizer takes most of the time to copy, so few have one."""
    needs = Needs.of(OBJECTIVES[objective])
    generator = copy.deepcopy(_made(needs.source == "pixels"))
    if "beta_B" in needs.names:
        generator.add_beta_embedding(0.6)
    return generator if needs.source == "pixels" else with_visible_tokens(generator)


def with_visible_tokens(generator: LlamaGen) -> LlamaGen:
    """Its images show each token as one pixel, the brighter the larger: quick to draw, and a reward that can be raised."""
    generator.decode = _show  # type: ignore[method-assign]
    return generator


def _show(tokens_BL: Tensor) -> Tensor:
    return (tokens_BL * 16).to(torch.uint8)[:, None, :, None].expand(-1, -1, -1, 3)


def train(
    folder: Path,
    objective: str = "cca",
    *,
    generator: Generator | None = None,
    supplies: Mapping[str, Any] | None = None,
    resume: bool = False,
    check_first: bool = False,
    alarms: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Generator:
    """A run of a few steps; `supplies` are keywords of `make_supplies`, `changes` those of the trainer's settings."""
    generator = generator or make_generator(objective)
    settings = {**SETTINGS, **changes}
    train_generator(
        generator,
        OBJECTIVES[objective],
        make_supplies(generator, objective, settings, **(supplies or {})),
        settings,
        folder=folder,
        resume=resume,
        description="test",
        check_first=check_first,
        alarms=alarms,
    )
    return generator


def make_trainer(
    folder: Path,
    objective: str,
    *,
    generator: Generator | None = None,
    supplies: Mapping[str, Any] | None = None,
    **changes: Any,
) -> AlignTrainer:
    """A trainer that has not begun, to look at its steps from outside."""
    generator = generator or make_generator(objective)
    settings = {**SETTINGS, **changes}
    made = make_supplies(generator, objective, settings, **(supplies or {}))
    values = {key: value for key, value in settings.items() if key not in OURS}
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, disable_tqdm=True, **values)
    return AlignTrainer(
        generator,
        OBJECTIVES[objective],
        made.stream,
        args,
        reference=made.reference,
        source=made.source,
        penalties=made.penalties,
    )


def step_batches(trainer: AlignTrainer, index: int = 0) -> list[dict[str, Any]]:
    """The micro-batches of one step, completed by the source."""
    loader = iter(trainer.get_train_dataloader())
    number = trainer.args.gradient_accumulation_steps
    batches = [next(loader) for _ in range((index + 1) * number)][index * number :]
    return trainer.prepare(batches, index)


def first_step(trainer: AlignTrainer) -> tuple[float, Tensor]:
    """Loss and gradient [P] of the first step, whose update is not made."""
    trainer.generator.zero_grad()
    loss = torch.zeros(())
    for batch in step_batches(trainer):
        part = trainer.compute_loss(trainer.generator, batch)
        part.backward()
        loss += part.detach()
    return loss.item(), gradient(trainer.generator)


def gradient(generator: Generator) -> Tensor:
    """[P]: of all parameters that train; zeros where there is none."""
    parameters = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def means(averages: Mapping[str, Average]) -> dict[str, float]:
    return {name: (average.total / average.count).item() for name, average in averages.items()}


def weights(generator: Generator) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in generator.state_dict().items()}


def logs(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("seconds")} for line in lines]


def assert_same(a: Generator, b: Generator, **tolerance: float) -> None:
    torch.testing.assert_close(weights(a), weights(b), **(tolerance or {"atol": 0, "rtol": 0}))


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """A training inside dies after this step, as by kill -9: nothing more is saved."""
    original = callbacks.ProgressBar.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.ProgressBar, "on_step_end", killed)
        with pytest.raises(RuntimeError, match="killed"):
            yield
