"""Guidance-free training against hand-derived values, and its optimum: guidance of scale 1/beta."""

from __future__ import annotations

import math

import pytest
import torch
from objectives.toy import means, minimise
from torch import Tensor

from align.objectives import gft, gft_sampled, sft, token_logprobs
from align.sampling.logits import guide

NO = torch.tensor([False])


def test_loss_by_hand() -> None:
    """Two tokens of two. Mixtures at beta = 0.5: (0, log 9)/2 + 0 = (0, log 3), and (0, log 9)/2 + (log 9, 0)/2 = equal.
    The real tokens have 3/4 and 1/2 of them."""
    conditional = torch.tensor([[[0.0, math.log(9)], [0.0, math.log(9)]]])
    null = torch.tensor([[[0.0, 0.0], [math.log(9), 0.0]]])
    output = gft(conditional, null, torch.tensor([[1, 0]]), NO, beta=0.5)
    assert output.loss.item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 2)) / 2)
    assert means(output) == pytest.approx(
        {
            "nll_mixture": -(math.log(3 / 4) + math.log(1 / 2)) / 2,
            "nll_conditional": -(math.log(9 / 10) + math.log(1 / 10)) / 2,
            "nll_null": -(math.log(1 / 2) + math.log(9 / 10)) / 2,
        }
    )


def random_rows(rows: int, dropped: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    conditional, null = torch.randn(2, rows, 3, 4, generator=rng, dtype=torch.float64)
    return conditional, null, torch.randint(4, (rows, 3), generator=rng), torch.tensor(dropped)


def test_dropped_rows_are_plain_likelihood() -> None:
    """Whatever beta is: a dropped row's own logits are the null model's, and it trains with full weight."""
    conditional, null, tokens, dropped = random_rows(2, [True, True])
    conditional.requires_grad_()
    loss = gft(conditional, null, tokens, dropped, beta=0.3).loss
    plain = -token_logprobs(conditional, tokens).mean()
    assert loss.item() == pytest.approx(plain.item())
    gradients = [torch.autograd.grad(value, conditional)[0] for value in (loss, plain)]
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=0)


def test_no_gradient_flows_through_the_null_logits() -> None:
    conditional, null, tokens, dropped = random_rows(2, [False, True])
    conditional.requires_grad_()
    null.requires_grad_()
    gft(conditional, null, tokens, dropped, beta=0.3).loss.backward()
    assert null.grad is None
    assert conditional.grad is not None


def test_beta_one_is_supervised_fine_tuning() -> None:
    conditional, null, tokens, dropped = random_rows(3, [False, True, False])
    loss = gft(conditional, null, tokens, dropped, beta=1.0).loss
    logprobs = token_logprobs(conditional, tokens).sum(dim=1)
    assert loss.item() == pytest.approx(sft(logprobs, dropped, 3).loss.item())


def test_a_beta_for_each_row() -> None:
    conditional, null, tokens, dropped = random_rows(2, [False, False])
    both = gft_sampled(conditional, null, tokens, torch.tensor([0.2, 0.9]), dropped).loss
    alone = [
        gft(conditional[i : i + 1], null[i : i + 1], tokens[i : i + 1], NO, beta=beta).loss
        for i, beta in enumerate([0.2, 0.9])
    ]
    torch.testing.assert_close(both, sum(alone) / 2, atol=1e-7, rtol=0)


@pytest.mark.parametrize("beta", [0.0, -0.5, 1.5])
def test_a_beta_out_of_range_is_refused_with_the_way_from_a_guidance_scale(beta: float) -> None:
    logits = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match=rf"beta is {beta}; it must be in \(0, 1\]; .* scale s, set it to 1/s"):
        gft(logits, logits, torch.zeros(1, 2, dtype=torch.long), NO, beta=beta)


@pytest.mark.parametrize("scale", [1.0, 1.5, 4.0])
def test_the_optimum_is_the_guided_sampler(scale: float) -> None:
    """Three conditions over four tokens, p(x|c) in tenths, rows in those very proportions; beta = 1/scale.

    The dropped rows make the null model p(x); the conditional model then ends at what sampling guided by `scale` draws
    from: softmax(log p(x) + scale (log p(x|c) - log p(x))).
    """
    p_xc = torch.tensor([[4, 3, 2, 1], [1, 1, 1, 7], [2, 6, 1, 1]]) / 10  # [c, x]
    rows = [(c, x) for c in range(3) for x in range(4) for _ in range(int(10 * p_xc[c, x].round(decimals=1)))]
    c, x = torch.tensor(rows).T
    tokens = x[:, None]
    null = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    conditional = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)

    def loss(own_NV: Tensor, dropped: bool) -> Tensor:
        mask = torch.full((len(rows),), dropped)
        return gft(own_NV[:, None], null.expand(len(rows), 1, 4), tokens, mask, beta=1 / scale).loss

    minimise([null], lambda: loss(null.expand(len(rows), 4), dropped=True))
    minimise([conditional], lambda: loss(conditional[c], dropped=False))

    p_x = p_xc.double().mean(dim=0)
    torch.testing.assert_close(null.detach().softmax(dim=0), p_x, atol=1e-6, rtol=0)
    guided = guide(p_xc.double().log(), p_x.log().expand(3, 4), scale).softmax(dim=1)
    torch.testing.assert_close(conditional.detach().softmax(dim=1), guided, atol=1e-5, rtol=0)
