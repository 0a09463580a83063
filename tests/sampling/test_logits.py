"""Filters and draws: the original authors' masks, and hand-made cases."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import golden
import pytest
import torch

from align.sampling import block_scales, draw, guide, sampling_logprobs, top_k_filter, top_p_filter
from align.types import SamplingConfig


def test_filters_equal_the_originals() -> None:
    numbers = golden.load("llamagen_filters")
    for case in numbers["cases"]:
        filtered = top_p_filter(top_k_filter(numbers["logits"], case["top_k"]), case["top_p"])
        assert torch.equal(filtered.isinf(), case["filtered"].isinf()), case["top_k"]
        torch.testing.assert_close(filtered.softmax(-1), case["probs"])


def test_filters_equal_vars() -> None:
    """VAR writes top-p off as 0, and removes from the other end; the tokens kept are the same."""
    numbers = golden.load("var_filters")
    for case in numbers["cases"]:
        config = SamplingConfig(top_k=case["top_k"], top_p=case["top_p"] or 1.0)
        logprobs = sampling_logprobs(numbers["logits"], config)
        assert torch.equal(logprobs.isinf(), case["filtered"].isinf()), case["top_k"]
        torch.testing.assert_close(logprobs.exp(), case["probs"])


def test_guidance_scales_of_every_block() -> None:
    constant = SamplingConfig(guidance_scale=1.1)
    assert block_scales(constant, 3) == [1.1, 1.1, 1.1]
    # VAR's cfg=1.5: t = 0, .5, 1, 1.5 over four scales, and ours is 1 + t
    linear = SamplingConfig(guidance_scale=2.5, guidance_schedule="linear")
    assert block_scales(linear, 4) == [1.0, 1.5, 2.0, 2.5]
    assert block_scales(replace(linear, guided_blocks=2), 4) == [1.0, 1.5, 1.0, 1.0]
    assert block_scales(replace(constant, guided_blocks=9), 2) == [1.1, 1.1]
    assert block_scales(linear, 1) == [2.5]
    assert block_scales(SamplingConfig(guidance_schedule="linear"), 3) == [1.0, 1.0, 1.0]


def test_guide_by_hand() -> None:
    cond, null = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])
    assert guide(cond, null, 1.0).tolist() == [1.0, 3.0]
    assert guide(cond, null, 0.0).tolist() == [2.0, 1.0]
    assert guide(cond, null, 3.0).tolist() == [-1.0, 7.0]


def test_top_k_keeps_ties_and_top_p_keeps_the_crossing_token() -> None:
    assert top_k_filter(torch.tensor([1.0, 2.0, 2.0, 0.0]), 1).isinf().tolist() == [True, False, False, True]
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert top_p_filter(logits, 0.6).isinf().tolist() == [False, False, True]
    assert top_p_filter(logits, 0.01).isinf().tolist() == [False, True, True]


@pytest.mark.parametrize("top_k", [0, 3, 6, 20])
@pytest.mark.parametrize("top_p", [0.01, 0.31, 0.57, 0.87, 0.99])
def test_of_tied_tokens_the_first_are_in_the_nucleus(top_k: int, top_p: float) -> None:
    """Beside one filter after the other with a sort that keeps the order of equals."""
    logits = torch.randint(4, (50, 3, 12), generator=torch.Generator().manual_seed(0)).double()
    ordered, order = top_k_filter(logits, top_k).sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    outside = (probabilities.cumsum(dim=-1) - probabilities > top_p) | ordered.isinf()
    expected = torch.zeros_like(outside).scatter(-1, order, outside)
    assert torch.equal(top_p_filter(logits, top_p, top_k).isinf(), expected)


def test_filters_leave_a_broken_row_to_others() -> None:
    """NaN is reported by what checks the model's numbers, and spoils no other row."""
    logits = torch.tensor([[math.nan, 0.0, 1.0], [0.0, 5.0, 0.0]])
    assert top_p_filter(logits, 0.5).isinf().tolist() == [[False] * 3, [True, False, True]]


def test_temperature_divides_and_zero_is_a_point_mass() -> None:
    logits = torch.tensor([0.0, math.log(3)])
    halved = sampling_logprobs(logits, SamplingConfig(temperature=0.5)).exp()
    torch.testing.assert_close(halved, torch.tensor([0.1, 0.9]))
    assert sampling_logprobs(logits, SamplingConfig(temperature=0)).tolist() == [-math.inf, 0.0]


def test_draw_inverts_the_cumulative_distribution() -> None:
    logprobs = torch.tensor([0.25, 0.0, 0.5, 0.25, 0.0]).log().expand(6, -1)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    assert draw(logprobs, uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_draw_follows_the_probabilities() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.7])
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(draw(probabilities.log().expand(20_000, -1), uniforms), minlength=3) / 20_000
    # three standard errors of the rarest share
    torch.testing.assert_close(counts, probabilities, atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"guidance_scale": -1},
        {"guidance_schedule": "cosine"},
        {"temperature": -0.1},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingConfig(**wrong)
