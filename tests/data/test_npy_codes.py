"""LlamaGen's folders of .npy files, as its extraction writes them and its loader reads them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.data import npy_codes, open_codes
from align.data.npy_codes import NpyCodes


def npy_folder(
    path: Path, *, rows: int = 6, views: int = 10, length: int = 4, first: int = 0, labels: bool = True
) -> Path:
    """Tokens of (row, view) are all row * 100 + view + first."""
    for name in ("imagenet256_codes", "imagenet256_labels"):
        (path / name).mkdir(parents=True, exist_ok=True)
    for row in range(rows):
        tokens = np.tile(np.arange(views)[:, None] + row * 100 + first, (1, length))[None].astype(np.int64)
        np.save(path / "imagenet256_codes" / f"{row}.npy", tokens)
        if labels:
            np.save(path / "imagenet256_labels" / f"{row}.npy", np.array([row % 3], dtype=np.int64))
    return path


@pytest.mark.parametrize("part", ["", "imagenet256_codes", "imagenet256_labels"])
def test_any_of_the_folders_may_be_named(tmp_path: Path, part: str) -> None:
    npy_folder(tmp_path / "code_c2i")
    codes = open_codes(tmp_path / "code_c2i" / part)
    assert isinstance(codes, NpyCodes)
    assert codes.shape == (6, 10, 4)
    assert codes.tokenizer is None
    assert codes[5, 7].tolist() == [507] * 4
    assert [int(label) for label in codes.labels_N] == [0, 1, 2, 0, 1, 2]


def test_of_ten_crops_the_sibling_counts_half(tmp_path: Path) -> None:
    npy_folder(tmp_path / "code_c2i_flip_ten_crop", first=0)
    npy_folder(tmp_path / "code_c2i_flip_ten_crop_105", first=50)
    codes = open_codes(tmp_path / "code_c2i_flip_ten_crop")
    assert isinstance(codes, NpyCodes)
    assert codes.shape == (6, 20, 4)
    assert [codes[2, view][0].item() for view in (0, 9, 10, 19)] == [200, 209, 250, 259]
    alone = open_codes(tmp_path / "code_c2i_flip_ten_crop_105")
    assert isinstance(alone, NpyCodes)
    assert alone.shape == (6, 10, 4)
    assert alone.identity != codes.identity


def test_two_views_are_an_image_and_its_mirror_image(tmp_path: Path) -> None:
    codes = open_codes(npy_folder(tmp_path / "flip", views=2))
    assert isinstance(codes, NpyCodes)
    assert codes.shape == (6, 2, 4)


def test_the_identity_changes_with_the_codes_and_not_with_the_place(tmp_path: Path) -> None:
    one = open_codes(npy_folder(tmp_path / "one"))
    moved = open_codes(npy_folder(tmp_path / "two"))
    other = open_codes(npy_folder(tmp_path / "three", first=1))
    assert one.identity == moved.identity != other.identity  # type: ignore[union-attr]
    assert pickle.loads(pickle.dumps(one)).identity == one.identity  # type: ignore[union-attr]


def test_rows_are_checked_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = npy_folder(tmp_path / "codes")
    with pytest.raises(ValueError, match="2.npy holds the class 2; the generator knows 0 to 1"):
        open_codes(folder, num_classes=2)  # rows that the identity looks at
    monkeypatch.setattr(npy_codes, "_SAMPLED", 1)
    codes = open_codes(folder, codebook_size=300, num_classes=2)
    assert isinstance(codes, NpyCodes)
    assert codes[1, 0].tolist() == [100] * 4
    with pytest.raises(ValueError, match="3.npy holds tokens from 300 to 300; the generator knows 0 to 299"):
        _ = codes[3, 0]
    with pytest.raises(ValueError, match="2.npy holds the class 2; the generator knows 0 to 1"):
        _ = codes.labels_N[2]
    np.save(folder / "imagenet256_codes" / "1.npy", np.zeros((1, 10, 5), dtype=np.int64))
    with pytest.raises(ValueError, match=r"1.npy holds \(1, 10, 5\); \(1, 10, 4\) was expected"):
        _ = codes[1, 0]
    (folder / "imagenet256_codes" / "2.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match="2.npy is no whole .npy file"):
        _ = codes[2, 0]


def _without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("imagenet256_codes/2.npy"), "holds 5 .npy files that are not numbered 0 to 4"),
        (_without("imagenet256_codes/5.npy"), "imagenet256_codes holds 5 rows, .*imagenet256_labels holds 6 rows"),
        (lambda folder: np.save(folder / "imagenet256_codes/x.npy", 1), "that are not numbered"),
        (lambda folder: np.save(folder / "imagenet256_codes/0.npy", np.zeros(4)), r"0.npy holds float64 \(4,\)"),
        (
            lambda folder: np.save(folder / "imagenet256_labels/0.npy", np.zeros((1, 2), dtype=int)),
            r"LlamaGen's layout has integers of shape \(1,\)",
        ),
    ],
)
def test_folders_of_another_layout_are_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    folder = npy_folder(tmp_path / "codes")
    spoil(folder)
    with pytest.raises(ValueError, match=message):
        open_codes(folder)


def test_siblings_must_match(tmp_path: Path) -> None:
    npy_folder(tmp_path / "a_ten_crop")
    npy_folder(tmp_path / "a_ten_crop_105", views=2)
    with pytest.raises(ValueError, match=r"holds codes of shape \(1, 2, 4\), and .* of \(1, 10, 4\); both count half"):
        open_codes(tmp_path / "a_ten_crop")
    npy_folder(tmp_path / "b_ten_crop")
    npy_folder(tmp_path / "b_ten_crop_105", rows=5)
    with pytest.raises(ValueError, match="the folders do not match"):
        open_codes(tmp_path / "b_ten_crop")
