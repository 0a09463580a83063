"""The order of training is a function of (seed, position), and codes are refused when they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align.data import Codes, TrainingStream


def codes(number: int = 30) -> Codes:
    tokens = torch.arange(number).unsqueeze(1).repeat(1, 2)
    return Codes(tokens, torch.arange(number) % 5, "tokenizer")


def test_every_epoch_shows_every_image_once_in_a_new_order() -> None:
    stream = TrainingStream(codes(), length=90, seed=1, label_drop=0.0)
    epochs = [[stream[j]["tokens"][0].item() for j in range(30 * e, 30 * (e + 1))] for e in range(3)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_position_is_the_same_whenever_it_is_asked_for() -> None:
    one, two = (TrainingStream(codes(), length=60, seed=3, label_drop=0.5) for _ in range(2))
    forwards = [one[j] for j in range(60)]
    backwards = [two[j] for j in reversed(range(60))][::-1]
    assert all(torch.equal(a[name], b[name]) for a, b in zip(forwards, backwards, strict=True) for name in a)


def test_negatives_follow_the_labels_and_drops_their_rate() -> None:
    stream = TrainingStream(codes(), length=3000, seed=0, label_drop=0.1)
    items = [stream[j] for j in range(3000)]
    negatives = torch.bincount(torch.stack([item["negative_label"] for item in items]), minlength=5) / 3000
    # five standard errors of a share of one fifth
    torch.testing.assert_close(negatives, torch.full((5,), 0.2), atol=0.037, rtol=0)
    dropped = torch.stack([item["dropped"] for item in items]).float().mean()
    assert abs(dropped - 0.1) < 0.028


@pytest.mark.parametrize("other", [{"seed": 1}, {"label_drop": 0.2}, {"length": 61}])
def test_the_fingerprint_tells_streams_apart(other: dict[str, float]) -> None:
    settings = {"length": 60, "seed": 0, "label_drop": 0.1}
    fingerprint = TrainingStream(codes(), **settings).fingerprint
    assert fingerprint == TrainingStream(codes(), **settings).fingerprint
    assert fingerprint != TrainingStream(codes(), **{**settings, **other}).fingerprint


def test_codes_round_trip(tmp_path: Path) -> None:
    codes().save(tmp_path / "codes.safetensors")
    again = Codes.load(tmp_path / "codes.safetensors")
    assert torch.equal(again.tokens_NL, codes().tokens_NL)
    assert torch.equal(again.labels_N, codes().labels_N)
    assert again.tokenizer == "tokenizer"


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the dataset is empty"):
        codes(0)


def test_a_file_that_holds_no_codes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "not.safetensors").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="not a file of token codes"):
        Codes.load(tmp_path / "not.safetensors")
    with pytest.raises(FileNotFoundError, match="no token codes at"):
        Codes.load(tmp_path / "missing.safetensors")


def test_a_label_drop_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="probability"):
        TrainingStream(codes(), length=1, seed=0, label_drop=1.5)
