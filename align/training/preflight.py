"""Checks before the first step: seconds that save hours. Each published post-training code that was read had a bug that
one of these finds: a penalty without gradient, a reference that was the policy, ratios that did not start at 1."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from align.generators.base import evaluating
from align.sampling import sample, score
from align.training.rollouts import Rollouts
from align.training.trainer import AlignTrainer
from align.types import SamplingConfig

# nats per token that two ways to the same number may differ by, with and without reduced precision
EXACT, ROUNDED = 1e-3, 0.1


class PreflightError(ValueError):
    """A run would not do what its configuration says; the message tells why."""


def preflight(trainer: AlignTrainer) -> list[str]:
    """Run the first step without its update, and look at it; what was found, one line each.

    Leaves weights, gradients, random state, metrics and rollouts as they were.

    Raises:
        PreflightError: the first check that fails, with the reason.
    """
    found = [_ranks_agree(trainer), _sampler_agrees(trainer)]
    # on the CPU too: dropout draws there
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        loader = iter(trainer.get_train_dataloader())
        batches = [next(loader) for _ in range(trainer.args.gradient_accumulation_steps)]
        batches = trainer.prepare([trainer._prepare_inputs(batch) for batch in batches], 0)
        trainer.generator.train()
        found += _reward_spreads(trainer, batches[0])
        found += _gaps_start_at_zero(trainer, batches[0])
        found.append(_gradient_flows(trainer, batches))
    trainer.source.load_state_dict({})
    trainer.pending, trainer.step_averages = {}, {}
    return found


def _tolerance(trainer: AlignTrainer) -> float:
    exact = trainer.accelerator.mixed_precision == "no" and not torch.cuda.is_available()
    return EXACT if exact else ROUNDED


def _ranks_agree(trainer: AlignTrainer) -> str:
    digest = hashlib.sha256()
    for parameter in trainer.generator.parameters():
        digest.update(parameter.detach().float().sum().cpu().numpy().tobytes())
    own = torch.tensor([int(digest.hexdigest()[:12], 16)], device=trainer.args.device)
    everyone = trainer.accelerator.gather(own)
    if len(everyone.unique()) > 1:
        raise PreflightError(
            f"the {len(everyone)} processes do not start from the same weights; load the same checkpoint on each"
        )
    return f"{len(everyone)} process(es) start from the same weights"


def _sampler_agrees(trainer: AlignTrainer) -> str:
    """The sampler's own log-probs against teacher forcing: finds off-by-one, stale caches, wrong masks."""
    generator = trainer.generator
    source = trainer.source
    sampling = source.settings.sampling if isinstance(source, Rollouts) else SamplingConfig()
    condition = generator.encode_condition([trainer.raw_condition(0), trainer.raw_condition(trainer.rows_per_step - 1)])
    rollout = sample(generator, condition, sampling)
    with evaluating(generator), trainer.accelerator.autocast():
        scored = score(generator, rollout.tokens_BL, condition, sampling)
    worst = (scored - rollout.logprobs_BL).abs().max().item()
    if not worst <= _tolerance(trainer):
        raise PreflightError(
            f"log-probs by teacher forcing differ from the sampler's by up to {worst:.3g} nats a token; the generator's "
            "adapter scores other tokens than it samples, and nothing trained on it would be right"
        )
    return f"teacher-forced log-probs equal the sampler's (largest difference {worst:.1e} nats)"


def _reward_spreads(trainer: AlignTrainer, batch: dict[str, Any]) -> list[str]:
    spread = trainer.pending.get("group_std")
    if spread is None:
        return []
    mean = (spread.total / spread.count).item()  # NaN: groups of one, which are compared over the batch
    if not (batch["num_kept"] > 0 if "num_kept" in batch else mean > 0):
        raise PreflightError(
            "the reward is the same for every sample of every group: there is nothing to learn from. Look at the reward "
            "on some images, raise the sampling temperature, or num_generations"
        )
    return [f"the reward varies: standard deviation {mean:.3g} within a group" if mean > 0 else "the reward varies"]


def _gaps_start_at_zero(trainer: AlignTrainer, batch: dict[str, Tensor]) -> list[str]:
    """policy == reference, and ratio 1 where old log-probs were computed apart."""
    if any(module.p > 0 for module in trainer.generator.modules() if isinstance(module, nn.Dropout)):
        return ["dropout is on: gaps to the reference start at its noise, not at 0"]
    with torch.no_grad(), trainer.accelerator.autocast():
        known = trainer.inputs(trainer.generator, batch)
    found = []
    length = trainer.generator.layout.length
    for name, value in known.items():
        policy = known.get(name.replace("reference_", "policy_", 1))
        if name.startswith("reference_") and policy is not None:
            gap = (policy - value).abs().max().item() / (length if name.endswith("_B") else 1)
            if not gap <= _tolerance(trainer):
                raise PreflightError(
                    f"policy and reference should be equal at the start, but {name.removeprefix('reference_')} differs by up to {gap:.3g} nats a token"
                )
            found.append(f"policy equals reference on {name.removeprefix('reference_')} (largest gap {gap:.1e})")
    if "old" in batch and "policy_rollout_BL" in known:
        worst = (known["policy_rollout_BL"] - batch["old"]).abs().max().item()
        if not worst <= _tolerance(trainer):
            raise PreflightError(
                f"the ratio should be 1 before the first update, but log-probs moved by {worst:.3g} nats"
            )
        found.append(f"the ratio is 1 before the first update (log-probs within {worst:.1e})")
    return found


def _gradient_flows(trainer: AlignTrainer, batches: list[dict[str, Any]]) -> str:
    """Over the whole step: a micro-batch by itself may hold nothing to learn from. No gradient outlives its layer: what is
    sharded later is still whole here, and its gradients may not fit beside it."""
    parameters = [parameter for parameter in trainer.generator.parameters() if parameter.requires_grad]
    if not parameters:
        raise PreflightError("no parameter gets a gradient; everything is frozen")
    norms: list[Tensor] = []

    def measure(parameter: Tensor) -> None:
        assert parameter.grad is not None
        norms.append(parameter.grad.float().norm())
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(measure) for parameter in parameters]
    for batch in batches:
        with trainer.accelerator.autocast():
            loss = trainer.compute_loss(trainer.generator, batch)
        if not loss.requires_grad:
            raise PreflightError("the loss does not depend on the policy: it has no gradient at all")
        loss.backward()
    for hook in hooks:
        hook.remove()
    own = torch.stack(norms).norm()
    norm = trainer.accelerator.gather(own.reshape(1)).norm().item()
    if not 0 < norm < float("inf"):
        raise PreflightError(
            f"the gradient's norm is {norm} on the first step; "
            + (
                "the loss does not depend on the policy"
                if norm == 0
                else "lower the precision's risk: trainer.precision=fp32"
            )
        )
    return f"the gradient is finite and not zero (norm {norm:.3g})"
