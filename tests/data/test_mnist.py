"""The digits: one split for good, and deformations that keep a digit what it is."""

from __future__ import annotations

import hashlib

import pytest
import torch

from align.data.mnist import deformed, load_mnist


def test_the_split_is_balanced_disjoint_and_never_moves() -> None:
    train, held_out = load_mnist("train"), load_mnist("held_out")
    assert torch.bincount(train.labels_N).tolist() == [400] * 10
    assert torch.bincount(held_out.labels_N).tolist() == [100] * 10
    assert train.images_NHWC.shape == (4000, 28, 28, 3)
    images = [{image.numpy().tobytes() for image in part.images_NHWC} for part in (train, held_out)]
    assert len(images[0] | images[1]) == 5000  # all different, so none is in both
    # the shipped generator never saw these; another split would make its evaluation worthless
    digest = hashlib.sha256(held_out.images_NHWC.numpy().tobytes()).hexdigest()
    assert digest.startswith("b69fb5de71537338")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'train' and 'held_out'"):
        load_mnist("test")


def test_deformed_digits_stay_close_and_depend_on_the_seed() -> None:
    images = load_mnist("held_out").images_NHWC[::50]
    moved = deformed(images, seed=0)
    assert moved.dtype == torch.uint8
    assert moved.shape == images.shape
    assert torch.equal(moved, deformed(images, seed=0))
    assert not torch.equal(moved, deformed(images, seed=1))
    # the ink is where it was, give or take a pixel's width
    overlap = torch.nn.functional.cosine_similarity(moved.flatten(1).float(), images.flatten(1).float())
    assert overlap.min() > 0.7
    assert (overlap < 0.999).all()
