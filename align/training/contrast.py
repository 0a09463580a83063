"""The batches of real images: each with its own condition, and with one of another image as the negative.

What an objective asks for is told by its parameter names; this module supplies exactly those. A new objective over
real data is one function of names from `INPUTS`, and needs nothing here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from align.generators.base import Generator
from align.objectives.logprobs import token_entropy, token_logprobs
from align.types import Condition, LossOutput

Objective = Callable[..., LossOutput]

INPUTS = {
    "policy_positive_B": "log p of the image given its own condition, under the policy",
    "policy_negative_B": "the same given another image's condition",
    "reference_positive_B": "log p given its own condition, under the reference",
    "reference_negative_B": "the same given another image's condition",
    "dropped_B": "rows whose conditions were replaced by the null condition",
    "collision_B": "rows whose negative condition equals their own",
    "num_tokens": "tokens in an image",
}


@dataclass(frozen=True)
class Needs:
    """What an objective takes, read off its signature."""

    inputs: tuple[str, ...]

    @property
    def negative(self) -> bool:
        return any("negative" in name for name in self.inputs)

    @property
    def reference(self) -> bool:
        return any(name.startswith("reference") for name in self.inputs)

    @staticmethod
    def of(objective: Objective) -> Needs:
        """Raises ValueError when a parameter without a value is not one of `INPUTS`."""
        signature = inspect.signature(objective)
        if "normalizer" not in signature.parameters:
            raise ValueError(f"objective {objective} must take normalizer=, the rows of the whole optimiser step")
        open_names = [
            name
            for name, p in signature.parameters.items()
            if p.default is inspect.Parameter.empty and name != "normalizer"
        ]
        if unknown := [name for name in open_names if name not in INPUTS]:
            raise ValueError(
                f"objective {objective} takes {', '.join(unknown)}, which nothing supplies; "
                f"set them in its configuration, or use the names: {', '.join(INPUTS)}"
            )
        return Needs(tuple(open_names))


def conditions(generator: Generator, batch: Mapping[str, Tensor]) -> tuple[Condition, Condition, Tensor]:
    """Own and negative condition of each row, with one label-drop mask for both, and the collision mask."""
    own = generator.encode_condition(batch["label"])
    negative = generator.encode_condition(batch["negative_label"])
    null = generator.null_condition(own)
    return own.where(batch["dropped"], null), negative.where(batch["dropped"], null), own.equals(negative)


@dataclass(frozen=True)
class Scores:
    """logprobs_KB: log p of each row's image given each of K conditions (own, then negative), nats per image.
    entropy_B: mean token entropy given the own condition, nats."""

    logprobs_KB: Tensor
    entropy_B: Tensor


def score_images(forward: Callable[[Tensor, Condition], Tensor], tokens_BL: Tensor, given: list[Condition]) -> Scores:
    """Score each image under K conditions in one forward of K*B rows."""
    logits = forward(tokens_BL.repeat(len(given), 1), Condition.cat(given))
    logprobs_KB = token_logprobs(logits, tokens_BL.repeat(len(given), 1)).sum(dim=-1).view(len(given), -1)
    with torch.no_grad():
        entropy_B = token_entropy(logits[: len(tokens_BL)]).mean(dim=-1)
    return Scores(logprobs_KB, entropy_B)


def gather_inputs(needs: Needs, policy: Scores, reference_KB: Tensor | None, **known: Any) -> dict[str, Any]:
    """The objective's arguments by name."""
    known["policy_positive_B"] = policy.logprobs_KB[0]
    if needs.negative:
        known["policy_negative_B"] = policy.logprobs_KB[1]
    if reference_KB is not None:
        known["reference_positive_B"], known["reference_negative_B"] = reference_KB[0], reference_KB[-1]
    return {name: known[name] for name in needs.inputs}
