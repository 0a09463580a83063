"""How much nearer an image brings the distribution of what is sampled to that of real images.

Each image is judged by the Fréchet distance with and without it: one that shows what the samples lack is worth more than
one of a kind that they have too much of, however good. So the distance itself is optimised, without guidance and
without loss of diversity. Source: "leave-one-out FID", arXiv 2603.23086.

Shapes: N images of a step, D feature dim, S statistics of an image: 1, its features, their squares or products.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.features.make import make_extractor
from evaluation.reference import Reference

ROWS = 64  # images whose statistics are held at once: there may be D * D of each


class LeaveOneOutFrechet:
    """How much farther from real images the sampled ones would be, as a distribution, without each.

    A `rewards.base.DistributionReward`. The distance is that of moments which move: all images so far count, those of
    earlier steps by `decay` to the power of their age. They begin with the first step's, which are the base model's own.
    The larger the batch and the decay, the less of the reward is noise; the larger the decay, the later it sees that
    the generator has moved.

    Compare rewards within the group of a prompt, as the paper does and every estimator but reinforce_pp: between
    prompts they tell which prompts there are too many of. Beside other rewards use
    rollout.advantages.multi_objective_aggregation=normalize_then_sum (the paper: this one 2, the other 1).

    Args:
        weights: the extractor, as `evaluation.make_extractor` reads it: a file written by `evaluation.save_classifier`, a
            `path/to/file.py:function`, or settings such as {name: inception, path: FILE}. Choose another than the
            evaluator's: what is optimised must not judge itself (a report says so where it does).
        reference: statistics of real images under that extractor, as `align data stats` writes them. Make it of images
            that the evaluation does not use.
        covariance: `diagonal` compares mean and standard deviation of each feature, as the paper does. `full` is the
            Fréchet distance, which sees correlations too; it takes an eigenvalue problem of D x D for each image.
        decay: at least 0 and below 1 (the paper: 0.5); 0 forgets earlier steps.
        device: where a classifier runs, as in `evaluation.devices.pick_device`; in float32, as the reference was made.

    Raises:
        FileNotFoundError, ValueError: no such files, a reference made by another extractor, or settings as above.
    """

    sums_S: Tensor  # over all images so far, in the weights that are left of them

    def __init__(
        self,
        *,
        weights: str | Path | Mapping[str, Any],
        reference: str | Path,
        covariance: str = "diagonal",
        decay: float = 0.5,
        device: str = "auto",
    ) -> None:
        if covariance not in DISTANCES:
            raise ValueError(f"unknown covariance {covariance!r}; known: {', '.join(DISTANCES)}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; it must be at least 0 and below 1")
        chosen = weights if isinstance(weights, Mapping) else str(weights)
        self.extractor = make_extractor(chosen, device=device)
        real = Reference.load(reference)
        if real.extractor_fingerprint != self.extractor.fingerprint:
            raise ValueError(
                f"{reference} was made by extractor {real.extractor_fingerprint}, but {weights} is {self.extractor.fingerprint}; "
                "their features do not compare. Make the reference again with `align data stats`"
            )
        self.distance = DISTANCES[covariance](torch.from_numpy(real.mu), torch.from_numpy(real.sigma))
        self.decay = decay
        self.load_state_dict({})

    @property
    def fingerprint(self) -> str:
        """The extractor's: metrics of the same one see what was optimised."""
        return self.extractor.fingerprint

    def describe(self, images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        """float32 [B, D], on the CPU: the extractor's features. Reads no row of `conditions`."""
        with torch.no_grad():
            return self.extractor(images).features_BD.cpu()

    def score(self, features_ND: Tensor) -> Tensor:
        """float64 [N], in units of the distance: above 0 where it would grow without the image."""
        return leave_one_out_frechet(features_ND, self.decay * self.sums_S, self.distance)

    def advance(self, features_ND: Tensor) -> None:
        self.sums_S = self.decay * self.sums_S + self.distance.sums(features_ND)

    def state_dict(self) -> dict[str, Tensor]:
        return {"sums_S": self.sums_S}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        empty_S = self.distance.sums(self.distance.mean_D.new_empty(0, len(self.distance.mean_D)))
        sums_S = state.get("sums_S", empty_S)
        if sums_S.shape != empty_S.shape:
            raise ValueError(
                f"the stored state of loo-fid has shape {list(sums_S.shape)}, and this extractor and covariance need "
                f"{list(empty_S.shape)}; start the run anew, without resume"
            )
        self.sums_S = sums_S.to(empty_S)


class DiagonalFrechet:
    """|mean - reference mean|^2 + |std - reference std|^2 over the features, from sums over weighted images.

    Args:
        mean_D, cov_DD: float64 moments of the real images.
    """

    def __init__(self, mean_D: Tensor, cov_DD: Tensor) -> None:
        self.mean_D = mean_D
        self.std_D = cov_DD.diagonal().sqrt()

    def statistics(self, features_ND: Tensor) -> Tensor:
        """[N, S], to be summed: 1, and features and squares about the reference's mean, so that no digits are lost."""
        x_ND = features_ND.double() - self.mean_D
        return torch.cat([torch.ones_like(x_ND[:, :1]), x_ND, x_ND.square()], dim=1)

    def sums(self, features_ND: Tensor) -> Tensor:
        """[S]"""
        return torch.stack([self.statistics(part).sum(dim=0) for part in features_ND.split(ROWS)]).sum(dim=0)

    def __call__(self, sums_NS: Tensor) -> Tensor:
        """[N] distances of N sums."""
        mean_ND, second_ND = (sums_NS[:, 1:] / sums_NS[:, :1]).chunk(2, dim=1)
        std_ND = (second_ND - mean_ND.square()).clamp(min=0).sqrt()
        return mean_ND.square().sum(dim=1) + (std_ND - self.std_D).square().sum(dim=1)


class FullFrechet(DiagonalFrechet):
    """The squared Fréchet distance of Gaussians, `evaluation.metrics.frechet_distance`, of N sums at once."""

    def __init__(self, mean_D: Tensor, cov_DD: Tensor) -> None:
        super().__init__(mean_D, cov_DD)
        values_D, vectors_DD = torch.linalg.eigh(cov_DD)
        self.factor_DD = vectors_DD * values_D.clamp(min=0).sqrt()  # F F^T = cov, also of a singular one

    def statistics(self, features_ND: Tensor) -> Tensor:
        """[N, S] as above, with all products of two features for the squares."""
        x_ND = features_ND.double() - self.mean_D
        products_NDD = x_ND[:, :, None] * x_ND[:, None, :]
        return torch.cat([torch.ones_like(x_ND[:, :1]), x_ND, products_NDD.flatten(1)], dim=1)

    def __call__(self, sums_NS: Tensor) -> Tensor:
        dim = len(self.mean_D)
        moments_NS = sums_NS[:, 1:] / sums_NS[:, :1]
        mean_ND, second_NDD = moments_NS[:, :dim], moments_NS[:, dim:].unflatten(1, (dim, dim))
        cov_NDD = second_NDD - mean_ND[:, :, None] * mean_ND[:, None, :]
        # tr (cov_r^1/2 cov cov_r^1/2)^1/2: with cov_r = F F^T the same as tr (F^T cov F)^1/2
        cross_ND = torch.linalg.eigvalsh(self.factor_DD.T @ cov_NDD @ self.factor_DD).clamp(min=0).sqrt()
        traces_N = cov_NDD.diagonal(dim1=1, dim2=2).sum(dim=1) + self.factor_DD.square().sum()
        return mean_ND.square().sum(dim=1) + traces_N - 2 * cross_ND.sum(dim=1)


DISTANCES = {"diagonal": DiagonalFrechet, "full": FullFrechet}


def leave_one_out_frechet(features_ND: Tensor, before_S: Tensor, distance: DiagonalFrechet) -> Tensor:
    """[N]: W_i * (distance without image i - distance with all images), W_i the weight of all images but i.

    The factor, which the paper has not, makes a reward the rate at which the distance falls as such images are mixed in:
    it does not shrink with the batch. In the paper what is left of the step takes over the weight of the image left out,
    here all images do; the two differ by terms of second order, and a constant of the step.

    Args:
        features_ND: at least two images.
        before_S: sums over earlier images in the weights that are left of them; zeros for none.

    Raises:
        ValueError: fewer than two images.
    """
    if len(features_ND) < 2:
        raise ValueError(f"to leave one out takes at least 2 images a step, got {len(features_ND)}; draw more rollouts")
    all_S = before_S + distance.sums(features_ND)
    without_N = torch.cat([distance(all_S - distance.statistics(part)) for part in features_ND.split(ROWS)])
    return (all_S[0] - 1) * (without_N - distance(all_S[None]))
