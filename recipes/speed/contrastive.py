"""A CCA step: ours, with a cached and with a frozen reference, and the plain one of two models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from align.data import Codes, TrainingStream
from align.generators import Generator
from align.generators.published import PublishedGenerator
from align.objectives import cca
from align.training.inputs import Needs
from align.training.reference import CachedReference, FrozenReference, Reference
from align.training.trainer import AlignTrainer
from recipes.parts import use_bf16
from recipes.speed.turns import EndStep, Watched
from recipes.train import training_arguments

Model = PublishedGenerator[Any]
BETA, LAMBDA, LABEL_DROP = 0.02, 300.0, 0.1  # the paper's for LlamaGen, and our recipes'
NUDGE = 1e-3  # how far the policy is moved from its reference, lest all gaps are 0 where losses are compared
IMAGES = 64
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4  # relative


@dataclass(frozen=True)
class Task:
    """What all variants do: train the model that `make` makes, anew at each call, towards random codes.

    trainer: the `trainer` section of a configuration; its per_device_train_batch_size is a step's.
    micro_batch: rows that ours takes at a time, to the same gradient; the plain step takes all at once.
    """

    make: Callable[[], Model]
    trainer: Mapping[str, Any]
    micro_batch: int

    def __post_init__(self) -> None:
        if self.micro_batch < 1 or self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch={self.micro_batch} must divide a step's {self.batch_size} rows")

    @property
    def batch_size(self) -> int:
        return int(self.trainer["per_device_train_batch_size"])

    def stream(self, model: Generator) -> TrainingStream:
        numbers = torch.Generator().manual_seed(0)
        tokens = torch.randint(model.vocab_size, (IMAGES, model.layout.length), generator=numbers)
        codes = Codes(tokens, torch.randint(model.num_classes or 0, (IMAGES,), generator=numbers), "random")
        length = self.batch_size * self.trainer["max_steps"]
        return TrainingStream(codes, length=length, seed=0, label_drop=LABEL_DROP)


def make_ours(task: Task, folder: Path, *, cached: bool) -> AlignTrainer:
    """The product's trainer, of a policy that has left its reference."""
    policy, objective = task.make(), partial(cca, beta=BETA, lambda_=LAMBDA)
    parts = {
        "per_device_train_batch_size": task.micro_batch,
        "gradient_accumulation_steps": task.batch_size // task.micro_batch,
    }
    stream, section = task.stream(policy), {**task.trainer, **parts}
    reference: Reference
    if cached:
        reference = CachedReference.compute(
            policy,
            stream,
            Needs.of(objective).of_reference,
            batch_size=task.micro_batch,
            bf16=use_bf16(section["precision"]),
        )
    else:
        reference = FrozenReference(policy)
    _nudge(policy)
    policy.gradient_checkpointing = section["gradient_checkpointing"]
    return AlignTrainer(policy, objective, stream, training_arguments(section, folder), reference=reference)


def train_ours(task: Task, folder: Path, end_step: EndStep, *, cached: bool) -> None:
    trainer = make_ours(task, folder, cached=cached)
    trainer.add_callback(Watched(end_step))
    trainer.train()


def train_plain(task: Task, folder: Path, end_step: EndStep) -> None:
    """The loop that one writes first."""
    policy, section = task.make().train(), task.trainer
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    _nudge(policy)
    matrices = [parameter for parameter in policy.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in policy.parameters() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": section["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=section["learning_rate"],
        betas=(section["adam_beta1"], section["adam_beta2"]),
    )
    for batch in DataLoader(task.stream(policy), batch_size=task.batch_size):
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=use_bf16(section["precision"])):
            loss = plain_loss(policy, reference, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), section["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        end_step()


def plain_loss(policy: Generator, reference: Generator, batch: Mapping[str, Tensor]) -> Tensor:
    """CCA with label drop (arXiv 2410.09347): each model reads both conditions' rows in one forward, and makes all
    logits and all log-probabilities of them."""
    batch = {name: tensor.to(policy.device) for name, tensor in batch.items()}
    tokens, dropped = torch.cat([batch["tokens"]] * 2), batch["dropped"]
    condition = policy.encode_condition(torch.cat([batch["label"], batch["negative_label"]]))
    condition = condition.where(dropped.repeat(2), policy.null_condition(condition))

    def logprobs(model: Generator) -> tuple[Tensor, Tensor]:
        found = model(tokens, condition).float().log_softmax(dim=-1)
        return found.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).sum(dim=-1).chunk(2)

    positive, negative = logprobs(policy)
    with torch.no_grad():
        positive0, negative0 = logprobs(reference)
    same = dropped | (batch["label"] == batch["negative_label"])
    sign, weight = torch.where(same, 1.0, -1.0), torch.where(same, 1.0, LAMBDA)
    terms = F.logsigmoid(BETA * (positive - positive0)) + weight * F.logsigmoid(sign * BETA * (negative - negative0))
    return -terms.mean() / max(LAMBDA, 1.0)


def check(task: Task, folder: Path) -> dict[str, dict[str, float]]:
    """Relative differences of loss and gradient, of ours from the plain one's, at the first batch and in float32.

    Raises:
        ValueError: above what is allowed.
    """
    # in bfloat16, where it may be timed, two ways to the same number differ by its rounding
    task, found = replace(task, trainer={**task.trainer, "precision": "fp32"}), {}
    for name, cached in (("ours, cached reference", True), ("ours, frozen reference", False)):
        trainer = make_ours(task, folder, cached=cached)
        policy = trainer.generator.train()
        batches, loss = iter(trainer.get_train_dataloader()), torch.zeros(())
        for part in trainer.prepare([next(batches) for _ in range(trainer.args.gradient_accumulation_steps)], 0):
            share = trainer.compute_loss(policy, part)
            share.backward()
            loss += share.detach().cpu()
        ours = [parameter.grad for parameter in policy.parameters()]
        policy.zero_grad()
        batch = next(iter(DataLoader(task.stream(policy), batch_size=task.batch_size)))
        expected = plain_loss(policy, task.make().requires_grad_(False), batch)
        expected.backward()
        theirs = [parameter.grad for parameter in policy.parameters()]
        found[name] = {
            "loss": abs(loss.item() - expected.item()) / abs(expected.item()),
            "gradient": gradient_difference(ours, theirs),
        }
        refuse_difference(name, found[name])
    return found


def gradient_difference(ours: list[Tensor | None], theirs: list[Tensor | None]) -> float:
    """Norm of the difference over the norm, of all parameters together."""
    pairs = [
        (a if a is not None else torch.zeros_like(b), b) for a, b in zip(ours, theirs, strict=True) if b is not None
    ]
    difference = sum((a - b).double().square().sum().item() for a, b in pairs)
    return float((difference / sum(b.double().square().sum().item() for _, b in pairs)) ** 0.5)


def refuse_difference(name: str, found: Mapping[str, float]) -> None:
    if not (found["loss"] <= LOSS_TOLERANCE and found["gradient"] <= GRADIENT_TOLERANCE):
        raise ValueError(
            f"{name} does not compute what it is compared with: of the loss {found['loss']:.1e} differs ({LOSS_TOLERANCE:g} "
            f"allowed), of the gradient {found['gradient']:.1e} ({GRADIENT_TOLERANCE:g}). No ratio is given"
        )


@torch.no_grad()
def _nudge(model: Model) -> None:
    numbers = torch.Generator(model.device).manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(torch.empty_like(parameter).normal_(generator=numbers), alpha=NUDGE)


VARIANTS: dict[str, Callable[[Task, Path, EndStep], None]] = {
    "ours, cached reference": partial(train_ours, cached=True),
    "ours, frozen reference": partial(train_ours, cached=False),
    "plain": train_plain,
}
