"""Choices among candidates, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from align.sampling.selection import best, most_diverse, pooled_pixels, potential, resample

NAN = math.nan
# two selections behind, one now; three candidates of one image, of which the last cannot be scored now
SCORES = torch.tensor([[[1.0, 5.0, 2.0]], [[4.0, -1.0, 2.0]], [[3.0, 2.0, NAN]]])


@pytest.mark.parametrize(
    ("name", "selections", "expected"),
    [
        ("value", 3, [3.0, 2.0, NAN]),
        ("diff", 3, [-1.0, 3.0, NAN]),
        ("max", 3, [4.0, 5.0, NAN]),
        ("sum", 3, [8.0, 6.0, NAN]),
        ("value", 1, [1.0, 5.0, 2.0]),
        ("diff", 1, [1.0, 5.0, 2.0]),
        ("max", 1, [1.0, 5.0, 2.0]),
        ("sum", 1, [1.0, 5.0, 2.0]),
        ("diff", 2, [3.0, -6.0, 0.0]),
    ],
)
def test_potentials_by_hand(name: str, selections: int, expected: list[float]) -> None:
    found = potential(name, SCORES[:selections])
    torch.testing.assert_close(found, torch.tensor([expected]), equal_nan=True)


@pytest.mark.parametrize(("name", "expected"), [("value", -2.0), ("diff", -2.0), ("max", -2.0), ("sum", -2.0)])
def test_a_past_that_could_not_be_scored_counts_as_nothing(name: str, expected: float) -> None:
    assert potential(name, torch.tensor([[[NAN]], [[-2.0]]])).tolist() == [[expected]]


def test_an_unknown_potential_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown potential 'mean'; known: value, diff, max, sum"):
        potential("mean", SCORES)


def test_resampling_follows_the_softmax() -> None:
    """exp(2 * 0.5 log 3) = 3 times as often."""
    uniforms = torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = resample(torch.tensor([[0.0, NAN, 0.5 * math.log(3)]]), uniforms, lambda_=2.0)
    counts = torch.bincount(chosen[0], minlength=3) / 20_000
    torch.testing.assert_close(counts, torch.tensor([0.25, 0.0, 0.75]), atol=0.01, rtol=0)


def test_resampling_takes_any_number() -> None:
    """exp(10 * 1e30) overflows; a softmax does not. Of a row that cannot be scored all are equal."""
    uniforms = torch.tensor([[0.0, 0.4, 0.99]], dtype=torch.float64).expand(4, -1)
    potential_Bn = torch.tensor([[9e29, 1e30, 8e29], [-2e30, -1e30, -3e30], [NAN, NAN, NAN], [NAN, -3.0, NAN]])
    chosen = resample(potential_Bn, uniforms, lambda_=10.0)
    assert chosen.tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 2], [1, 1, 1]]


def test_each_cluster_sends_the_nearest_to_its_centre() -> None:
    """Along a line: clusters 0, 1, 2 | 10, 11, 15 | 40, with their centres at 1, 12 and 40."""
    line = torch.tensor([10.0, 0.0, 40.0, 1.0, 11.0, 2.0, 15.0])
    for order in (torch.arange(7), torch.tensor([6, 5, 4, 3, 2, 1, 0])):
        chosen = most_diverse(line[order][None, :, None], 3)
        assert sorted(line[order][chosen[0]].tolist()) == [1.0, 11.0, 40.0]


def test_images_are_clustered_by_themselves() -> None:
    far = torch.tensor([[0.0, 0.1, 9.0, 9.1], [5.0, 5.1, 5.2, -7.0]]).unsqueeze(2)
    together = most_diverse(far, 2)
    assert torch.equal(together, torch.cat([most_diverse(one[None], 2) for one in far]))
    assert {index // 2 for index in together[0].tolist()} == {0, 1}
    assert sorted(together[1].tolist()) == [1, 3]


def test_equal_candidates_stand_for_one_cluster_each() -> None:
    """More clusters than distinct candidates: still as many different ones as asked for, each distinct one among them."""
    chosen = most_diverse(torch.tensor([[3.0, 3.0, 3.0, 8.0, 3.0]]).unsqueeze(2), 4)[0].tolist()
    assert len(set(chosen)) == 4 and 3 in chosen


def test_the_best_by_hand() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0], [NAN, -5.0, NAN], [NAN, NAN, NAN], [-1.0, -2.0, NAN]])
    assert best(scores).tolist() == [1, 1, 0, 0]


def test_pooled_pixels_are_means_of_squares() -> None:
    images = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    images[1, 2:4, 14:16, 2] = torch.tensor([[255, 255], [0, 0]], dtype=torch.uint8)
    found = pooled_pixels(images).view(2, 3, 8, 8)
    assert found[0].abs().max() == 0
    assert found[1, 2, 1, 7] == 0.5
    assert found[1].sum() == 0.5
