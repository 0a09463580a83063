"""Compute at test time: several candidates for each image, of which a score keeps the best.

Best of n draws them independently. Guided search (Sequential Monte Carlo, as TTS-VAR: Chen et al. 2025, arXiv 2507.18537)
looks at them half-way too: it keeps what differs most, or draws anew, with replacement, those that promise most.

What is looked at half-way: of next-scale generators the sum of the scales so far, decoded, which costs no forward. Of
raster ones, whose unfinished images have holes, each candidate finished by its most likely tokens; these forwards are
counted, so that selections pay late if at all: after t of T tokens a look costs T - t.

The cost of a search is in `forwards_per_image`: of all candidates and looks ahead, for each image that is kept. What
decoding and scoring cost is not in it. Token log-probs are those that each token was drawn with; what a search picks is
not distributed by their product, and no policy gradient can be made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.generators.base import Generator, TokenLayout, evaluating
from align.sampling.loop import Drawing, random_stream
from align.sampling.selection import POTENTIALS, best, most_diverse, pooled_pixels, potential, resample
from align.types import Rollout, SamplingConfig

# uint8 images [N, H, W, 3] and the raw condition of each, to N numbers, larger is better, NaN where it does not apply
Score = Callable[[Tensor, list[Any]], Any]
# uint8 images [N, H, W, 3] to float [N, D]; what is near in them looks alike
Features = Callable[[Tensor], Tensor]
METHODS = ("diversity", "potential")


@dataclass(frozen=True)
class Selection:
    """Once `after` blocks are drawn (a VAR's scales, a LlamaGen's tokens), go on with `keep` candidates of each image.

    by: `diversity`: those nearest to the centres of as many clusters; `potential`: drawn with replacement.
    """

    after: int
    keep: int
    by: str

    def __post_init__(self) -> None:
        if self.by not in METHODS:
            raise ValueError(f"a selection is by {self.by!r}; known: {', '.join(METHODS)}")
        for name, number in (("after", self.after), ("keep", self.keep)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"a selection has {name}={number!r}; it must be a whole number, at least 1")


@dataclass(frozen=True)
class SearchPlan:
    """How many candidates each image begins with, and what becomes of them on the way; the best of the last ones is kept.

    potential: what draws by potential go by, see `align.sampling.selection.potential`; scores of other selections by
        potential are the past.
    lambda_: how sharply: probabilities are softmax(lambda_ * potential). TTS-VAR's is 10, for rewards of a few units.

    Raises:
        ValueError: numbers below 1, an unknown name, or selections that are not one after another, or for diversity keep
            more than there are.
    """

    candidates: int
    selections: tuple[Selection, ...] = ()
    potential: str = "value"
    lambda_: float = 10.0

    def __post_init__(self) -> None:
        if isinstance(self.candidates, bool) or not isinstance(self.candidates, int) or self.candidates < 1:
            raise ValueError(
                f"a search has {self.candidates!r} candidates an image; it needs a whole number, at least 1"
            )
        if self.potential not in POTENTIALS:
            raise ValueError(f"unknown potential {self.potential!r}; known: {', '.join(POTENTIALS)}")
        if not (math.isfinite(self.lambda_) and self.lambda_ >= 0):
            raise ValueError(f"lambda_ is {self.lambda_}; it must be a finite number, at least 0 (0 draws evenly)")
        for earlier, later in pairwise(self.selections):
            if earlier.after >= later.after:
                raise ValueError(
                    f"a selection after {later.after} blocks follows one after {earlier.after}; order them"
                )
        counts = [self.candidates, *(selection.keep for selection in self.selections)]
        for count, selection in zip(counts, self.selections, strict=False):
            if selection.by == "diversity" and selection.keep > count:
                raise ValueError(
                    f"a selection by diversity keeps {selection.keep} of {count} candidates; only one by potential can repeat some"
                )

    def check(self, layout: TokenLayout) -> None:
        """Raises ValueError unless every selection comes before an image's last block."""
        blocks = len(layout.block_sizes)
        for selection in self.selections:
            if selection.after >= blocks:
                raise ValueError(
                    f"a selection is after {selection.after} blocks, and this generator draws {blocks}; selections come after 1 to {blocks - 1}"
                )


def best_of_n(
    generator: Generator,
    raw_conditions: Sequence[Any],
    config: SamplingConfig,
    *,
    n: int,
    score: Score,
    batch_size: int,
) -> Iterator[Rollout]:
    """Draw n candidates for each condition and keep the one of the highest score; as `guided_search` without selections.

    n = 1 gives what `generate` gives, to the bit, and scores nothing.
    """
    return guided_search(generator, raw_conditions, config, plan=SearchPlan(n), score=score, batch_size=batch_size)


def guided_search(
    generator: Generator,
    raw_conditions: Sequence[Any],
    config: SamplingConfig,
    *,
    plan: SearchPlan,
    score: Score,
    features: Features = pooled_pixels,
    batch_size: int,
    first: int = 0,
) -> Iterator[Rollout]:
    """Rollouts of one image for each condition, the best candidate by the plan.

    Sample i has index `first` + i whatever the batch size. Candidate c of it draws from its own stream, a function of (seed, i, c)
    alone; that of candidate 0 is plain sampling's. After a selection the c-th of those kept goes on with candidate c's
    stream, so that two copies of one candidate never draw the same numbers. Where scores tie, or none applies, the first
    candidate is kept.

    Args:
        score: sees the candidates of an image one after another; called with half-way images too if the plan says so.
        features: of half-way images, for selections by diversity.
        batch_size: rows that run at once: as many images as their candidates fit in, at least one.

    Raises:
        ValueError: at once for a plan that does not fit the generator; while drawing for scores that are infinite or not
            one for each image, and for a generator that cannot decode.
    """
    plan.check(generator.layout)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    images = max(1, batch_size // plan.candidates)
    return (
        _search(generator, raw_conditions[start : start + images], first + start, config, plan, score, features)
        for start in range(0, len(raw_conditions), images)
    )


def _search(
    generator: Generator,
    raw_conditions: Sequence[Any],
    first: int,
    config: SamplingConfig,
    plan: SearchPlan,
    score: Score,
    features: Features,
) -> Rollout:
    images, count = len(raw_conditions), plan.candidates
    index_B = torch.arange(first, first + images)
    every_row = torch.arange(images).repeat_interleave(count)
    past: list[Tensor] = []

    def scored(pixels: Tensor) -> Tensor:
        rows = [raw for raw in raw_conditions for _ in range(count)]
        values_N = torch.as_tensor(score(pixels, rows)).cpu().double()
        if values_N.shape != (len(rows),) or values_N.isinf().any():
            raise ValueError(
                f"a score gave {'infinite numbers' if values_N.isinf().any() else f'shape {list(values_N.shape)}'} for {len(rows)} "
                "images; it gives a finite number for each, or NaN where it does not apply"
            )
        return values_N.view(images, count)

    with evaluating(generator):
        condition = generator.encode_condition(raw_conditions)[every_row.to(generator.device)]
        candidate_B = torch.arange(count).repeat(images)
        drawing = Drawing(generator, condition, config, index_B=index_B[every_row], candidate_B=candidate_B)
        for number, selection in enumerate(plan.selections, start=1):
            while drawing.blocks < selection.after:
                drawing.draw_block()
            pixels = _half_way(drawing)
            if selection.by == "diversity":
                kept_Bk = most_diverse(_described(features, pixels).view(images, count, -1), selection.keep)
            else:
                past.append(scored(pixels))
                streams = [random_stream(config.seed, index, selection=number) for index in index_B.tolist()]
                uniforms_Bk = torch.from_numpy(np.stack([stream.random(selection.keep) for stream in streams]))
                kept_Bk = resample(potential(plan.potential, torch.stack(past)), uniforms_Bk, lambda_=plan.lambda_)
            past = [scores_Bn.gather(1, kept_Bk) for scores_Bn in past]
            _keep(drawing, kept_Bk, count)
            count = selection.keep
        while not drawing.done:
            drawing.draw_block()
        if count > 1:
            _keep(drawing, best(scored(generator.decode(drawing.tokens_Bl))).unsqueeze(1), count)
    return drawing.rollout(drawing.rows_run / images)


def _half_way(drawing: Drawing) -> Tensor:
    shown = drawing.generator.decode_first_blocks(drawing.tokens_Bl)
    return drawing.generator.decode(drawing.look_ahead()) if shown is None else shown


def _described(features: Features, pixels: Tensor) -> Tensor:
    found = features(pixels).detach().cpu()
    if found.dim() != 2 or len(found) != len(pixels) or not found.isfinite().all():
        raise ValueError(
            f"features of {len(pixels)} images are {list(found.shape)}; a finite [{len(pixels)}, D] is needed"
        )
    return found


def _keep(drawing: Drawing, kept_Bk: Tensor, count: int) -> None:
    """Of every image's `count` candidates, which lie one after another, go on with these."""
    images, keep = kept_Bk.shape
    rows_B = (kept_Bk + torch.arange(images).unsqueeze(1) * count).flatten()
    drawing.select(rows_B, torch.arange(keep).repeat(images))
