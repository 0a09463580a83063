"""Speculative Jacobi decoding: the law is the model's own, and wrong rules are told from it."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from align import SamplingConfig, sample, score
from align.generators import LlamaGen, LlamaGenConfig
from align.generators.base import evaluating
from align.sampling import jacobi
from align.sampling.jacobi import Jacobi, couple
from align.sampling.logits import draw_weighted

ROWS = 20_000
CONFIGS = {
    "plain": SamplingConfig(seed=5),
    "guided-at-first": SamplingConfig(guidance_scale=2.0, guided_blocks=2, temperature=1.5, seed=5),
    "filtered": SamplingConfig(top_k=2, top_p=0.95, seed=5),
}


@pytest.fixture(scope="module")
def four_tokens_of_three() -> LlamaGen:
    """2 x 2 tokens of 3 codes: 81 images. What a token is depends much on those before it."""
    generator = LlamaGen(
        LlamaGenConfig(dim=16, num_layers=2, num_heads=2, hidden_dim=32, vocab_size=3, num_classes=2, grid=(2, 2))
    )
    numbers = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.4, generator=numbers)
    return generator.eval()


def chance(generator: LlamaGen, config: SamplingConfig, window: int) -> float:
    """Pearson's: how likely counts are to be as far as these from what the model expects of its 81 images, or farther.

    With 20,000 images a law is told from the model's own nearly for sure where its chi-square distance,
    the sum of (difference of probabilities)^2 / probability, is 0.005: a noncentrality of 100 over 80 degrees of freedom.
    """
    images = torch.tensor(list(itertools.product(range(3), repeat=4)))
    with torch.no_grad():
        law = score(generator, images, generator.encode_condition([1] * len(images)), config).double().sum(dim=1).exp()
    assert law.sum().item() == pytest.approx(1, abs=1e-5)
    condition = generator.encode_condition([1] * ROWS)
    with evaluating(generator):
        draw = Jacobi(generator, condition, config, None, window=window)
        tokens_BL = draw(condition, config, torch.arange(ROWS)).tokens_BL
    counts = torch.bincount((tokens_BL * torch.tensor([27, 9, 3, 1])).sum(dim=1), minlength=81)
    possible = law > 0
    if counts[~possible].any():
        return 0.0
    distance = ((counts - ROWS * law).square() / (ROWS * law))[possible].sum()
    return torch.special.gammaincc((possible.sum() - 1) / 2, distance / 2).item()


@pytest.mark.parametrize(
    ("name", "window"), [("plain", 1), ("plain", 2), ("plain", 3), ("guided-at-first", 3), ("filtered", 2)]
)
def test_images_have_the_models_law(four_tokens_of_three: LlamaGen, name: str, window: int) -> None:
    assert chance(four_tokens_of_three, CONFIGS[name], window) > 1e-3


def always(drafts_Bn: Tensor, q_BnV: Tensor, p_BnV: Tensor, uniforms_Bn: Tensor) -> tuple[Tensor, Tensor]:
    """All drafts stay where p leaves them possible."""
    return couple(drafts_Bn, q_BnV * 1e-9, p_BnV, uniforms_Bn)


def from_p(drafts_Bn: Tensor, q_BnV: Tensor, p_BnV: Tensor, uniforms_Bn: Tensor) -> tuple[Tensor, Tensor]:
    """What does not stay is drawn from p, by a number of its own."""
    kept_Bn, new_Bn = couple(drafts_Bn, q_BnV, p_BnV, uniforms_Bn)
    fresh_Bn = draw_weighted(p_BnV, (uniforms_Bn * 1e6) % 1)
    return kept_Bn, torch.where(kept_Bn, new_Bn, fresh_Bn)


@pytest.mark.parametrize("wrong", [always, from_p])
def test_wrong_rules_are_told_from_it(
    four_tokens_of_three: LlamaGen, wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jacobi, "couple", wrong)
    assert chance(four_tokens_of_three, CONFIGS["plain"], 3) < 1e-12


def test_coupled_tokens_have_law_p_and_stay_as_often_as_can_be() -> None:
    """Over all drafts and an even grid of the random number."""
    q, p = torch.rand(2, 8, 5, generator=torch.Generator().manual_seed(0)).pow(3)
    p[:, 0] = 0
    q[::2, 1] = 0
    q, p = q / q.sum(-1, keepdim=True), p / p.sum(-1, keepdim=True)
    grid = (torch.arange(4000).double() + 0.5) / 4000
    found, stayed = torch.zeros(8, 5), torch.zeros(8)
    for law, draft in itertools.product(range(8), range(5)):
        if q[law, draft] > 0:
            repeat = partial(torch.Tensor.expand, size=(1, len(grid), 5))
            kept, new = couple(torch.full((1, len(grid)), draft), repeat(q[law]), repeat(p[law]), grid[None])
            found[law] += q[law, draft] * torch.bincount(new[0], minlength=5) / len(grid)
            stayed[law] += q[law, draft] * kept.float().mean()
            assert ((new == draft) == kept).all()
    torch.testing.assert_close(found, p, atol=1e-3, rtol=0)
    torch.testing.assert_close(stayed, torch.minimum(p, q).sum(-1), atol=1e-3, rtol=0)


def test_where_drafts_are_right_forwards_are_few(four_tokens_of_three: LlamaGen) -> None:
    """With no token depending on another a draft is wrong once; a window of 1 has no drafts to be right about."""
    condition = four_tokens_of_three.encode_condition([0, 1])
    config = SamplingConfig(temperature=0)
    expected = sample(four_tokens_of_three, condition, config)
    with evaluating(four_tokens_of_three):
        one = Jacobi(four_tokens_of_three, condition, config, None, window=1)(condition, config, torch.arange(2))
    assert torch.equal(one.tokens_BL, expected.tokens_BL)
    assert one.forwards_per_image == expected.forwards_per_image == 4
    with torch.no_grad():
        output = four_tokens_of_three.output.weight.clone()
        four_tokens_of_three.output.weight.zero_()
    try:
        four_tokens_of_three.engine = "jacobi"
        alike = sample(four_tokens_of_three, condition, SamplingConfig(seed=1))
    finally:
        four_tokens_of_three.engine = "auto"
        with torch.no_grad():
            four_tokens_of_three.output.weight.copy_(output)
    # the start, a round on guesses, and a round that finds all as it was
    assert alike.forwards_per_image <= 3
