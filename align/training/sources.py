"""Where the part of a batch comes from that no dataset holds: samples of the reference, own rollouts, their rewards.

A source sees all micro-batches of an optimiser step before the first of them is trained on, and returns them with the
fields that the objective asks for. What it returns may depend on positions of the stream, the step and the models,
never on how the step is cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from align.generators.base import Generator
from align.sampling import sample
from align.sampling.micro_batches import MicroBatches
from align.training.fakes import FakePool
from align.training.inputs import Needs, Scoring, conditions, model_inputs
from align.training.reference import Reference
from align.types import Average, Condition, SamplingConfig

_BETA = 6  # separates this random stream from others of the same seed


@dataclass(frozen=True)
class Step:
    """What a source may look at while it prepares an optimiser step."""

    index: int  # of the optimiser step, from 0
    rows: int  # of the whole step, over micro-batches and ranks
    policy: Generator
    reference: Reference | None
    needs: Needs
    accelerator: Accelerator
    log: Callable[[Mapping[str, Average]], None]
    whole: Callable[[Generator], AbstractContextManager[Generator]]  # to sample from, by all ranks together
    # whose peak of memory is logged under this name
    phase: Callable[[str], AbstractContextManager[Any]] = nullcontext

    def reference_generator(self, use: str) -> Generator:
        generator = self.reference.generator if self.reference is not None else None
        if generator is None:
            raise ValueError(f"{use} needs a reference that is a model; set reference.kind=frozen")
        return generator.to(self.policy.device)

    def gather(self, values: Tensor, position_N: Tensor) -> tuple[Tensor, Tensor]:
        """All ranks' values in the order of their positions, and where this rank's own are among them."""
        everywhere = self.accelerator.gather(position_N)
        order = everywhere.argsort()
        return self.accelerator.gather(values)[order], torch.searchsorted(everywhere[order], position_N)

    def share(self, item: Any) -> list[Any]:
        """What each rank has to say, in the order of ranks; the same list on all of them."""
        return list(gather_object([item]))


class Source(Protocol):
    """Completes the micro-batches of one step."""

    # data that the objective may ask for: see inputs.SOURCES
    supplies: str
    scoring: Scoring
    # what `derive` looks at beside the objective's own inputs
    needs: Needs

    def prepare(self, batches: list[dict[str, Any]], step: Step) -> list[dict[str, Any]]: ...

    def derive(self, batch: Mapping[str, Any], known: Mapping[str, Any], policy: Generator) -> dict[str, Any]:
        """Fields that are made of the policy's own output within the update, with gradient."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold so that a resumed run goes on exactly."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class RealData:
    """The dataset holds everything."""

    supplies = "real"
    scoring = Scoring()
    needs = Needs(())

    def prepare(self, batches: list[dict[str, Any]], step: Step) -> list[dict[str, Any]]:
        if "mismatched_gap" in step.needs.names:
            gap = _mismatched_gap(batches, step)
            batches = [{**batch, "mismatched_gap": gap} for batch in batches]
        return batches

    def derive(self, batch: Mapping[str, Any], known: Mapping[str, Any], policy: Generator) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        return None


class Betas(RealData):
    """Each row with a beta of its own, uniform on (0, 1], and 1 where the label is dropped: guidance-free training with a
    sampled temperature."""

    supplies = "betas"

    def __init__(self, *, seed: int) -> None:
        self.seed = seed

    def prepare(self, batches: list[dict[str, Any]], step: Step) -> list[dict[str, Any]]:
        return [{**batch, "beta": self._draw(batch)} for batch in batches]

    def _draw(self, batch: Mapping[str, Any]) -> Tensor:
        drawn = [1 - np.random.default_rng([_BETA, self.seed, int(p)]).random() for p in batch["position"]]
        beta_B = torch.tensor(drawn, dtype=torch.float32, device=batch["dropped"].device)
        return beta_B.masked_fill(batch["dropped"], 1.0)


class Pairs(RealData):
    """A dataset of preference pairs."""

    supplies = "pairs"


class Fakes(RealData):
    """Beside each real image a sample of the reference for the same condition, drawn online or from a stored pool.

    Drawn without guidance and without filters: the log-ratio scores it under the reference's plain distribution, and
    only then is the optimum the data's. Where the label is dropped the sample comes from the unconditional reference.
    """

    supplies = "fakes"

    def __init__(self, *, seed: int, batch_size: int, pool: FakePool | None = None) -> None:
        self.config = SamplingConfig(seed=seed)
        self.micro_batches = MicroBatches(batch_size, what="fakes")
        self.pool = pool

    def prepare(self, batches: list[dict[str, Any]], step: Step) -> list[dict[str, Any]]:
        if self.pool is not None:
            drawn = [self.pool.draw(batch["label"], batch["dropped"], batch["position"]) for batch in batches]
        else:
            index_N = torch.cat([batch["position"] for batch in batches])
            with step.whole(step.reference_generator("drawing fakes")) as generator:
                given = Condition.cat([conditions(generator, batch)[0]["own"] for batch in batches])

                def draw(rows: slice) -> Tensor:
                    return sample(generator, given[rows], self.config, index_B=index_N[rows]).tokens_BL

                parts = [tokens for _, tokens in self.micro_batches(len(index_N), draw)]
            drawn = list(torch.cat(parts).split([len(batch["dropped"]) for batch in batches]))
        return [{**batch, "fake": tokens} for batch, tokens in zip(batches, drawn, strict=True)]


def chunks(total: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, total, size))


def _mismatched_gap(batches: list[dict[str, Any]], step: Step) -> Tensor:
    """KTO's reference point: the mean log-ratio of images paired with another one's condition, over the whole step."""
    names = ("policy_mismatched_B", "reference_mismatched_B")
    wanted = Needs(names)
    total = torch.zeros((), device=step.policy.device)
    for batch in batches:
        given, _ = conditions(step.policy, batch)
        found = score_batch(step, batch, given, wanted)
        total += (found[names[0]] - found[names[1]]).sum()
    return step.accelerator.reduce(total) / step.rows


def score_batch(
    step: Step, batch: Mapping[str, Any], given: Mapping[str, Condition], wanted: Needs
) -> dict[str, Tensor]:
    """Inputs of policy and reference outside of an update, without gradient, in the precision of the update."""
    with torch.no_grad(), step.accelerator.autocast():
        found = model_inputs(step.policy, step.policy, batch, given, wanted.of_model("policy"), Scoring())
        if step.reference is not None and wanted.of_model("reference"):
            found |= step.reference.inputs(batch, given, wanted.of_model("reference"), Scoring())
    return found


def check_supplies(needs: Needs, supplies: str) -> None:
    """Raises ValueError when an objective's data is of another kind than the source's."""
    on_real = needs.source == "real" and supplies in ("real", "fakes", "actions")
    if needs.source != supplies and not on_real:
        raise ValueError(
            f"this objective takes {', '.join(needs.names)}: data of the kind {needs.source!r}, but the run supplies "
            f"{supplies!r}; see the experiments of this objective for a data section that fits"
        )
