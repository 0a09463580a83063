"""Run a distribution reward through its contract: descriptions are an image's own, scores leave the state, state moves whole.

Shapes: N images, D numbers of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rewards.base import DistributionReward, Reward, RewardError
from rewards.findings import Finding, error, ok, warning
from rewards.scoring import score_rewards

TOLERANCE = 1e-4


def check_distribution(
    reward: Reward, images: Tensor, row: Mapping[str, Any], *, timeout: float | None
) -> Iterator[Finding]:
    """Findings, as they are made; the reward's state is empty afterwards.

    Args:
        images: uint8 [N, H, W, 3], of a kind that gives different scores.
        row: the dataset row that each image is given.
        timeout: seconds that a call may take.
    """
    function = reward.function
    assert isinstance(function, DistributionReward)
    rows = [dict(row)] * len(images)
    try:
        scored = score_rewards([reward], images, rows, timeout=timeout).checked()
        alone = [score_rewards([reward], image[None], rows[:1], timeout=timeout).checked() for image in images[:2]]
    except RewardError as problem:
        yield error("describe", str(problem), "return a finite float tensor [B, D] for any cut of a batch")
        return
    features_ND = scored.features[reward.name]
    yield ok(
        "describe",
        f"{features_ND.shape[1]} numbers for each of {len(images)} images, {1000 * scored.seconds[0] / len(images):.3g} ms an image",
    )
    yield _equal(
        "alone",
        features_ND[:2],
        torch.cat([each.features[reward.name] for each in alone]),
        "an image's description by itself",
        "describe one image without looking at the others",
    )
    try:
        with torch.no_grad():
            yield from _scores(function, features_ND)
    except Exception as problem:
        yield error(
            "score",
            f"raised {type(problem).__name__}: {problem}",
            "give it [N, D] float64 as describe returned it, and an empty state",
        )


def _scores(function: DistributionReward, features_ND: Tensor) -> Iterator[Finding]:
    function.load_state_dict({})
    scores_N = torch.as_tensor(function.score(features_ND))
    number = len(features_ND)
    if scores_N.shape != (number,) or not scores_N.isfinite().all():
        yield error(
            "score",
            f"shape {list(scores_N.shape)}, {int((~scores_N.isfinite()).sum())} of them not finite",
            f"return a finite tensor [{number}]",
        )
        return
    if scores_N.std(correction=0) == 0:
        yield error(
            "range",
            f"{scores_N[0]:.4g} for every image",
            "say what each image does to the whole: leave it out, and take the difference",
        )
    else:
        yield ok("range", f"{scores_N.min():.4g} to {scores_N.max():.4g}, std {scores_N.std(correction=0):.3g}")
    yield _equal(
        "determinism",
        scores_N,
        function.score(features_ND),
        "scoring twice",
        "let score leave the state; advance moves it",
    )
    order = torch.arange(number).flip(0)
    yield _equal(
        "order",
        scores_N,
        function.score(features_ND[order])[order],
        "the batch in another order",
        "let a score depend on the images, not on their places",
    )
    function.advance(features_ND)
    state = {name: value.clone() for name, value in function.state_dict().items()}
    later_N = function.score(features_ND)
    if not state:
        yield warning(
            "state",
            "state_dict is empty after a step",
            "if it keeps anything between steps, a run that is resumed starts without it",
        )
    function.load_state_dict({})
    yield _equal(
        "reset",
        scores_N,
        function.score(features_ND),
        "after load_state_dict({})",
        "let an empty state mean the beginning",
    )
    function.load_state_dict(state)
    yield _equal(
        "resume",
        later_N,
        function.score(features_ND),
        "after loading the state of a step",
        "keep in state_dict everything that score reads",
    )
    function.load_state_dict({})


def _equal(what: str, first: Tensor, again: Tensor, how: str, advice: str) -> Finding:
    scale = first.abs().max().item()
    if again.shape == first.shape and torch.allclose(
        first.double(), again.double(), rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True
    ):
        return ok(what, f"{how} gives the same")
    difference = (
        f"shape {list(again.shape)}"
        if again.shape != first.shape
        else f"{(first - again).abs().max().item():.3g} from it"
    )
    return error(what, f"{how} gives something else ({difference})", advice)
