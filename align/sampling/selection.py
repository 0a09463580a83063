"""Which candidates of an image a search goes on with: pure functions, one row for each image.

Shapes: B images, n candidates of each, k candidates kept, D features, S selections so far. Scores are NaN where they do
not apply. Such a candidate is never chosen, unless all of its image's are such: then these are equal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from align.sampling.logits import draw

POTENTIALS = ("value", "diff", "max", "sum")
CLUSTERING_STEPS = 100  # more than a dozen of candidates ever need
POOLED_SIDE = 8


def potential(name: str, scores_SBn: Tensor) -> Tensor:
    """float [B, n]: how promising candidates are, by the scores of their own past (Singhal et al. 2025, arXiv 2501.06848).

    value: the newest score. diff: its gain over the score before; the first one is its value. max, sum: over all so far.
    NaN where the newest score is. A past NaN counts as nothing; it was every candidate's then, or it would have ended.

    Args:
        scores_SBn: float, S at least 1, oldest first; each candidate's line of ancestors, not what stood in its place.
    """
    newest_Bn, past_SBn = scores_SBn[-1], scores_SBn[:-1]
    if name == "value":
        return newest_Bn
    if name == "diff":
        # what is taken off where there is no past is the same for all, and no choice depends on it
        return newest_Bn - past_SBn[-1].nan_to_num(0.0) if len(past_SBn) else newest_Bn
    if name == "max":
        return newest_Bn.maximum(past_SBn.nan_to_num(-torch.inf).amax(dim=0)) if len(past_SBn) else newest_Bn
    if name == "sum":
        return newest_Bn + past_SBn.nan_to_num(0.0).sum(dim=0)
    raise ValueError(f"unknown potential {name!r}; known: {', '.join(POTENTIALS)}")


def resample(potential_Bn: Tensor, uniforms_Bk: Tensor, *, lambda_: float) -> Tensor:
    """int64 [B, k]: candidates drawn with replacement with probabilities softmax(lambda_ * potential).

    Args:
        uniforms_Bk: in [0, 1), a number for each draw.
    """
    weights_Bn = (lambda_ * potential_Bn.double()).nan_to_num(-torch.inf)
    weights_Bn = torch.where(weights_Bn.isinf().all(dim=1, keepdim=True), 0.0, weights_Bn)
    logprobs_Bkn = weights_Bn.log_softmax(dim=1).unsqueeze(1).expand(-1, uniforms_Bk.shape[1], -1)
    return draw(logprobs_Bkn, uniforms_Bk)


def most_diverse(features_BnD: Tensor, keep: int) -> Tensor:
    """int64 [B, keep], distinct: candidates are clustered by k-means, and of each cluster the nearest to its centre stays.

    Deterministic: clusters start at the candidate nearest to the mean, and at those farthest from all starts before.
    """
    x_BnD = features_BnD.double()
    rows_B = torch.arange(len(x_BnD), device=x_BnD.device)
    start_B = _distances(x_BnD, x_BnD.mean(dim=1, keepdim=True)).squeeze(2).argmin(dim=1)
    centres_BkD = x_BnD[rows_B, start_B].unsqueeze(1)
    while centres_BkD.shape[1] < keep:
        farthest_B = _distances(x_BnD, centres_BkD).amin(dim=2).argmax(dim=1)
        centres_BkD = torch.cat([centres_BkD, x_BnD[rows_B, farthest_B].unsqueeze(1)], dim=1)
    for _ in range(CLUSTERING_STEPS):
        member_Bnk = F.one_hot(_distances(x_BnD, centres_BkD).argmin(dim=2), keep).double()
        size_Bk1 = member_Bnk.sum(dim=1).unsqueeze(2)
        # equal candidates may leave a cluster empty; its centre stays where it is
        moved_BkD = torch.where(size_Bk1 > 0, member_Bnk.mT @ x_BnD / size_Bk1.clamp_min(1), centres_BkD)
        if torch.equal(moved_BkD, centres_BkD):
            break
        centres_BkD = moved_BkD
    distances_Bnk = _distances(x_BnD, centres_BkD)
    kept = []
    for cluster in range(keep):
        kept.append(distances_Bnk[:, :, cluster].argmin(dim=1))
        distances_Bnk[rows_B, kept[-1]] = torch.inf  # nobody stands for two clusters
    return torch.stack(kept, dim=1)


def _distances(x_BnD: Tensor, centres_BkD: Tensor) -> Tensor:
    # not by matrix products, whose rounding would tell equal points apart
    return torch.cdist(x_BnD, centres_BkD, compute_mode="donot_use_mm_for_euclid_dist")


def best(scores_Bn: Tensor) -> Tensor:
    """int64 [B]: the candidate of the highest score, the first of equal ones; the first of all where none applies."""
    known_Bn = scores_Bn.nan_to_num(-torch.inf)
    return (known_Bn == known_Bn.amax(dim=1, keepdim=True)).long().argmax(dim=1)


def pooled_pixels(images_NHWC: Tensor) -> Tensor:
    """float [N, 192]: uint8 images averaged down to 8x8, in [0, 1]: where what stands, and in which colours.

    Means of one image's own pixels point the same way in every image. A projection on each image's own principal
    direction, as the authors of TTS-VAR take of a network's features, has a sign that is arbitrary image by image.
    """
    return F.adaptive_avg_pool2d(images_NHWC.permute(0, 3, 1, 2).float() / 255, POOLED_SIDE).flatten(1)
