"""The published folder layout, read and written; what it must not hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.geneval.folder import read_folder, read_image, read_rows, write_folder, write_prompt
from evaluation.geneval.grammar import position, single_object

ROWS = [single_object("cat"), position("cat", "left of", "dog")]


def images(*values: int) -> np.ndarray:
    """uint8 [n, 2, 3, 3], each of one value."""
    return np.stack([np.full((2, 3, 3), value, np.uint8) for value in values])


def written(folder: Path) -> Path:
    write_folder(folder, ROWS, [images(1, 2), images(3, 4)])
    return folder


def test_the_layout_is_the_published_one(tmp_path: Path) -> None:
    written(tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == [
        *("00000/metadata.jsonl", "00000/samples/0000.png", "00000/samples/0001.png"),
        *("00001/metadata.jsonl", "00001/samples/0000.png", "00001/samples/0001.png"),
    ]
    text = (tmp_path / "00001/metadata.jsonl").read_text()
    assert text == json.dumps(ROWS[1]) + "\n"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = list(read_folder(written(tmp_path), images_per_prompt=2))
    assert [(item.number, item.image[0, 0, 0]) for item in found] == [(0, 1), (0, 2), (1, 3), (1, 4)]
    assert [item.row for item in found] == [ROWS[0], ROWS[0], ROWS[1], ROWS[1]] and read_rows(tmp_path) == ROWS
    assert (found[3].image.shape, found[3].image.dtype) == ((2, 3, 3), np.uint8)
    assert found[3].path == tmp_path / "00001/samples/0001.png"


def test_a_prompt_may_be_written_bit_by_bit(tmp_path: Path) -> None:
    write_prompt(tmp_path, 0, ROWS[0], torch.full((1, 2, 3, 3), 5, dtype=torch.uint8))
    write_prompt(tmp_path, 0, ROWS[0], images(6), first=1)
    assert [item.image[0, 0, 0] for item in read_folder(tmp_path)] == [5, 6]
    with pytest.raises(ValueError, match=r"0001.png is there already; choose another folder, or another `first`"):
        write_prompt(tmp_path, 0, ROWS[0], images(7), first=1)
    with pytest.raises(
        ValueError, match="metadata.jsonl has another row than prompt 0, 'a photo of a cat left of a dog'"
    ):
        write_prompt(tmp_path, 0, ROWS[1], images(7), first=2)
    with pytest.raises(ValueError, match=r"the images are float64 \[1, 2, 3, 3\]; uint8 \[n, H, W, 3\]"):
        write_prompt(tmp_path, 0, ROWS[0], np.zeros((1, 2, 3, 3)), first=2)


def test_old_images_are_not_scored_along_with_new_ones(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    written(tmp_path)
    with pytest.raises(ValueError, match="holds prompts already, which would be scored along"):
        written(tmp_path)


def test_numbers_count_and_other_files_do_not(tmp_path: Path) -> None:
    written(tmp_path)
    samples = tmp_path / "00000/samples"
    for name in ("grid.png", "0002.jpg", "0003.png.old", "x4.png"):
        (samples / name).write_bytes(b"no image")
    (samples / "5.png").mkdir()
    (samples / "10.png").write_bytes((tmp_path / "00001/samples/0000.png").read_bytes())
    (samples / "9.png").write_bytes((tmp_path / "00001/samples/0001.png").read_bytes())
    (tmp_path / "all").mkdir()
    (tmp_path / "7").write_text("a file")
    values = [item.image[0, 0, 0] for item in read_folder(tmp_path) if item.number == 0]
    assert values == [1, 2, 4, 3]  # 9 comes before 10
    assert len(list(read_folder(tmp_path, images_per_prompt=1))) == 2


def test_images_become_upright_rgb(tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    picture = Image.fromarray(np.array([[[10, 20, 30, 0], [40, 50, 60, 255]]], np.uint8))  # 1 x 2, partly transparent
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    picture.save(path, exif=exif)
    assert read_image(path).tolist() == [[[10, 20, 30]], [[40, 50, 60]]]
    Image.fromarray(np.array([[7, 8]], np.uint8)).save(path)
    assert read_image(path).tolist() == [[[7, 7, 7], [8, 8, 8]]]


def spoil(relative: str, content: bytes | None) -> Callable[[Path], None]:
    """Write this into the file, or remove it."""

    def change(folder: Path) -> None:
        path = folder / relative
        path.unlink() if content is None else path.write_bytes(content)

    return change


def sixteen_bits(folder: Path) -> None:
    Image.fromarray(np.full((2, 2), 60_000, np.uint16)).save(folder / "00001/samples/0001.png")


def cut_short(folder: Path) -> None:
    path = folder / "00001/samples/0001.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("00001/metadata.jsonl", None), "00001/metadata.jsonl cannot be read .*; each prompt needs one"),
        (spoil("00001/metadata.jsonl", b"\xff\xfe"), "00001/metadata.jsonl cannot be read"),
        (spoil("00001/metadata.jsonl", b"{}\n{}\n"), "00001/metadata.jsonl has 2 lines; one is needed"),
        (spoil("00001/metadata.jsonl", b"\n"), "00001/metadata.jsonl has 0 lines"),
        (spoil("00001/metadata.jsonl", b"{'tag'}"), "00001/metadata.jsonl is no JSON"),
        (spoil("00001/metadata.jsonl", b"[1]"), r"00001/metadata.jsonl holds \[1\]; a row is such as"),
        (spoil("00001/samples/0001.png", None), "00001/samples has 1 images; 2 are needed"),
        (spoil("00001/samples/0001.png", b""), "00001/samples/0001.png cannot be read as an image"),
        (spoil("00001/samples/0001.png", b"GIF89a"), "00001/samples/0001.png cannot be read as an image"),
        (sixteen_bits, "00001/samples/0001.png cannot be read as an image: its mode I;16 is none of"),
        (cut_short, "00001/samples/0001.png cannot be read as an image: .*truncated"),
        (lambda folder: (folder / "1").mkdir(), "have the same number"),
    ],
)
def test_what_is_damaged_is_refused_by_its_path(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    change(written(tmp_path))
    with pytest.raises(ValueError, match=message):
        list(read_folder(tmp_path, images_per_prompt=2))


def test_the_layout_is_checked_before_any_image_is_read(tmp_path: Path) -> None:
    spoil("00001/samples/0001.png", None)(written(tmp_path))
    with pytest.raises(ValueError, match="has 1 images"):
        read_folder(tmp_path, images_per_prompt=2)
    with pytest.raises(ValueError, match="images_per_prompt is 0; at least 1"):
        read_folder(tmp_path, images_per_prompt=0)


def test_a_folder_without_prompts_or_with_a_gap_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="holds no prompts; they are folders such as 00000"):
            read_folder(folder)
    write_prompt(tmp_path, 0, ROWS[0], images(1))
    write_prompt(tmp_path, 2, ROWS[1], images(1))
    with pytest.raises(ValueError, match="has no prompt 00001, but one of number 2"):
        read_rows(tmp_path)
    (tmp_path / "00002/samples/0000.png").unlink()
    with pytest.raises(ValueError, match="has 0 images; at least 1 are needed"):
        read_folder(tmp_path)
