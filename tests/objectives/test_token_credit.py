"""Token credit: which tokens get it, by hand; always of mean 1 and without a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from align.objectives import (
    block_area_weights,
    critical_token_weights,
    guidance_contrastive_weights,
    prefix_weights,
    raster_grid,
)

SCALES = (1, 4, 9)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_guidance_contrast_by_hand() -> None:
    """Log-ratios 0, 3, -3, 1: k3 = 0, e^-3 + 2, e^3 - 4, e^-1; ranks 1, 3, 4, 2 of 4, squared, over their mean."""
    cond = torch.tensor([[-1.0, -1.0, -4.0, -1.0]], requires_grad=True)
    null = torch.tensor([[-1.0, -4.0, -1.0, -2.0]])
    weights = guidance_contrastive_weights(cond, null, power=2.0)
    torch.testing.assert_close(weights, torch.tensor([[1.0, 9.0, 16.0, 4.0]]) / 7.5)
    assert not weights.requires_grad


def test_at_the_published_power_two_fifths_of_the_tokens_carry_four_fifths_of_the_mass() -> None:
    """In the limit of many tokens; at LlamaGen's 576 the upper 230 carry a per cent less, at most."""
    cond, null = -random(2, 20_000).abs(), -random(2, 20_000).abs().flip(1)
    weights = guidance_contrastive_weights(cond, null)
    mass = weights.sort(dim=1, descending=True).values[:, :8000].sum(dim=1) / 20_000
    torch.testing.assert_close(mass, torch.full((2,), 0.8), atol=1e-3, rtol=0)
    torch.testing.assert_close(weights.mean(dim=1), torch.ones(2))


def test_equal_contrasts_share_their_rank() -> None:
    """A condition that changes nothing credits all tokens alike, not the later ones more."""
    logprobs = random(1, 6)
    torch.testing.assert_close(guidance_contrastive_weights(logprobs, logprobs), torch.ones(1, 6))
    # ranks 1.5, 1.5 and 3 of 3
    some = guidance_contrastive_weights(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -1.0]]), power=1.0)
    torch.testing.assert_close(some, torch.tensor([[0.75, 0.75, 1.5]]))


def test_the_power_sharpens() -> None:
    cond, null = random(1, 8), random(2, 8)[1:]
    assert guidance_contrastive_weights(cond, null, power=4.0).max() > guidance_contrastive_weights(cond, null).max()


def critical(entropy_BHW: Tensor, embeddings: Tensor | None = None, **settings) -> Tensor:
    rows, height, width = entropy_BHW.shape
    embeddings = torch.ones(rows, height * width, 2) if embeddings is None else embeddings
    settings = {"grid": (height, width), "num_generations": 2, "share": 0.1, **settings}
    return critical_token_weights(entropy_BHW.flatten(1), embeddings, **settings)


def test_critical_tokens_are_the_first_the_steepest_and_the_least_alike() -> None:
    """A 5x6 map, sets of 3 tokens, each set found here by plain loops.

    The two images' embeddings are unit vectors at an angle that grows with the token, but for token 1, which differs
    most and is chosen already.
    """
    entropy = random(2, 5, 6).abs()
    angle = torch.arange(30.0) / 30
    angle[1] = 3.0
    embeddings = torch.stack([torch.stack([turn.cos(), turn.sin()], dim=-1) for turn in (0 * angle, angle)])
    weights = critical(entropy, embeddings)
    torch.testing.assert_close(weights.amax(dim=1), torch.full((2,), 30 / 9))

    for image in range(2):
        smoothed = torch.zeros(5, 6)
        for row in range(5):
            for column in range(6):
                before = [(row, column - 1), (row - 1, column - 1), (row - 1, column), (row - 1, column + 1)]
                around = [entropy[image, r, c] for r, c in [(row, column), *before] if r >= 0 and 0 <= c < 6]
                smoothed[row, column] = sum(around) / len(around)
        down, right = torch.gradient(smoothed)
        slope = torch.hypot(down, right).flatten().tolist()
        expected = {0, 1, 2}
        expected |= set(sorted(range(3, 27), key=slope.__getitem__)[-3:])
        expected |= set([token for token in range(29, -1, -1) if token not in expected][:3])
        assert set(torch.nonzero(weights[image]).flatten().tolist()) == expected


def test_the_steepest_entropy_is_chosen() -> None:
    """One step from 0 to 1 between the rows 4 and 5 of 10x10: smoothing spreads it over the rows 4 to 6."""
    entropy = torch.zeros(2, 10, 10)
    entropy[:, 5:] = 1.0
    chosen = critical(entropy)[0].view(10, 10) > 0
    assert chosen[0].all()  # the first tenth
    assert chosen[5].all()  # central differences see the whole step here
    assert chosen.sum() == 30


def test_critical_tokens_move_with_their_inputs() -> None:
    entropy, embeddings = random(2, 36).abs().view(2, 6, 6), random(2 * 36, 3).view(2, 36, 3)
    weights = critical(entropy, embeddings)
    torch.testing.assert_close(weights.mean(dim=1), torch.ones(2))
    assert not torch.equal(critical(entropy.flip(2), embeddings), weights)
    assert not torch.equal(critical(entropy, embeddings.flip(1)), weights)
    assert not torch.equal(critical(entropy, embeddings, share=0.2), weights)
    entropy.requires_grad_()
    assert not critical(entropy, embeddings).requires_grad


def test_groups_are_compared_within_themselves() -> None:
    """Two groups of two that agree within and not across: as if each were alone."""
    entropy, own = random(4, 36).abs().view(4, 6, 6), random(2 * 36, 3).view(2, 36, 3)
    embeddings = torch.cat([own[:1], own[1:], -own[:1], own[1:]])
    pairs = [critical(entropy[r], embeddings[r]) for r in (slice(0, 2), slice(2, 4))]
    assert torch.equal(critical(entropy, embeddings), torch.cat(pairs))
    assert not torch.equal(critical(entropy, embeddings, num_generations=4), torch.cat(pairs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid": (4, 4)}, "a grid of 4x4 does not hold 36 tokens"),
        ({"num_generations": 1}, "num_generations is 1; it must be at least 2"),
        ({"num_generations": 3}, "divide the 2 rows"),
        ({"share": 0.01}, "share=0.01 of 36 tokens is 0"),
        ({"share": 0.4}, "needs 1 to 12"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        critical(torch.rand(2, 6, 6), **settings)


def test_only_a_square_raster_has_a_grid() -> None:
    assert raster_grid((1,) * 49) == (7, 7)
    for sizes in (SCALES, (1,) * 50):
        with pytest.raises(ValueError, match="use block_area or prefix weights"):
            raster_grid(sizes)


def test_block_area_by_hand() -> None:
    """1, 4 and 9 tokens of 1, 1/2 and 1/3 at alpha = 1/2: a sum of 6 over 14 tokens."""
    expected = torch.tensor([1.0] + [1 / 2] * 4 + [1 / 3] * 9) * 14 / 6
    torch.testing.assert_close(block_area_weights(SCALES, alpha=0.5), expected)
    # at alpha = 1 each scale has the same total
    totals = [part.sum().item() for part in block_area_weights(SCALES, alpha=1.0).split(SCALES)]
    assert totals == pytest.approx([14 / 3] * 3)


def test_prefix_by_hand() -> None:
    torch.testing.assert_close(prefix_weights(SCALES, blocks=2), torch.tensor([14 / 5] * 5 + [0.0] * 9))
    torch.testing.assert_close(prefix_weights(SCALES, blocks=3), torch.ones(14))
    for blocks in (0, 4):
        with pytest.raises(ValueError, match="it must be 1 to 3"):
            prefix_weights(SCALES, blocks=blocks)


def test_a_power_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="power is 0.0; it must be positive"):
        guidance_contrastive_weights(torch.zeros(1, 2), torch.zeros(1, 2), power=0.0)
