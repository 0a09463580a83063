"""SFT and the log-probabilities under it, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from align.objectives import sft, token_entropy, token_logprobs


def test_loss_and_metrics_by_hand() -> None:
    """Two images of 2 tokens with log p = -4 and -6, the second one's label dropped."""
    output = sft(torch.tensor([-4.0, -6.0]), torch.tensor([False, True]), 2)
    assert output.loss.item() == pytest.approx((2 + 3) / 2)
    assert output.metrics["nll_per_token"].total.item() == 2
    assert output.metrics["nll_null_per_token"].total.item() == 3


def test_token_logprobs_and_entropy_by_hand() -> None:
    logits = torch.tensor([[[0.0, math.log(3)], [5.0, 5.0]]])
    torch.testing.assert_close(
        token_logprobs(logits, torch.tensor([[1, 0]])), torch.tensor([[math.log(0.75), math.log(0.5)]])
    )
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(token_entropy(logits), torch.tensor([[expected, math.log(2)]]))


def test_logprobs_are_float32_whatever_the_logits() -> None:
    assert (
        token_logprobs(torch.zeros(1, 1, 4, dtype=torch.bfloat16), torch.zeros(1, 1, dtype=torch.long)).dtype
        == torch.float32
    )
