"""From verdicts on images to GenEval's numbers, with errors that say how far they would move with other prompts.

Shapes: N images, P prompts, T tags, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_TAIL = 0.025  # on either side of a 95 % interval


@dataclass(frozen=True)
class Summary:
    """Numbers in [0, 1] under these names, their standard errors, and the ends of their 95 % intervals.

    <tag>: share of the tag's images that are correct.
    overall: unweighted mean of the tags' shares, GenEval's headline.
    credit: the same of the partial credit.
    correct-images: share of all images that are correct.
    correct-prompts: share of prompts with a correct image.

    A tag with a single prompt tells nothing of others: the errors that depend on it are NaN, and intervals left out.
    """

    values: dict[str, float]
    stderr: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    prompts: int


def summarize_verdicts(
    tag_N: Sequence[str],
    prompt_N: Sequence[str],
    correct_N: Sequence[bool],
    credit_N: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Summary:
    """Sum up N images in any order; equal prompts of a tag are one prompt.

    Errors are from a percentile bootstrap: of each tag, as many of its prompts as it has are drawn with replacement, each
    with all its images. What never varies, such as a tag without a mistake, has the error 0.

    Raises:
        ValueError: no images, or columns of different lengths.
    """
    prompt_of = list(zip(tag_N, prompt_N, strict=True))
    if not prompt_of:
        raise ValueError("there are no verdicts to sum up; judge at least one image")
    prompts = sorted(set(prompt_of))
    number = {prompt: index for index, prompt in enumerate(prompts)}
    index_N = np.array([number[prompt] for prompt in prompt_of])
    images_P = np.bincount(index_N)
    correct_P = np.bincount(index_N, np.asarray(correct_N, np.float64))
    credit_P = np.bincount(index_N, np.asarray(credit_N, np.float64))
    counts_P4 = np.stack([images_P, correct_P, credit_P, correct_P > 0], axis=1)
    tags = sorted({tag for tag, _ in prompts})
    by_tag = [counts_P4[[of_prompt == tag for of_prompt, _ in prompts]] for tag in tags]

    rng = np.random.default_rng(seed)
    totals_T4 = np.stack([counts.sum(axis=0) for counts in by_tag])
    resampled_RT4 = np.stack([_resample(counts, resamples, rng) for counts in by_tag], axis=1)
    values = {name: float(value) for name, value in _numbers(totals_T4, tags, len(prompts)).items()}
    spread = _numbers(resampled_RT4, tags, len(prompts))
    return Summary(
        values=values,
        stderr={name: float(np.std(value_R, ddof=1)) for name, value_R in spread.items()},
        intervals={name: _interval(value_R) for name, value_R in spread.items() if np.isfinite(value_R).all()},
        prompts=len(prompts),
    )


def _resample(counts_P4: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """[R, 4] sums over prompts drawn with replacement."""
    prompts = len(counts_P4)
    if prompts == 1:
        return np.full((resamples, 4), np.nan)
    times_RP = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    return times_RP @ counts_P4


def _numbers(totals_T4: np.ndarray, tags: Sequence[str], prompts: int) -> dict[str, np.ndarray]:
    """The named numbers from sums [..., T, 4] of images, correct images, credit and prompts with a correct image."""
    images_T, correct_T, credit_T, solved_T = np.moveaxis(totals_T4, -1, 0)
    share_T = correct_T / images_T
    return {
        "overall": share_T.mean(axis=-1),
        **{tag: share_T[..., index] for index, tag in enumerate(tags)},
        "credit": (credit_T / images_T).mean(axis=-1),
        "correct-images": correct_T.sum(axis=-1) / images_T.sum(axis=-1),
        "correct-prompts": solved_T.sum(axis=-1) / prompts,
    }


def _interval(value_R: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(value_R, [_TAIL, 1 - _TAIL])
    return float(low), float(high)
