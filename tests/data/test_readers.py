"""Every layout gives the same rows: an image, its label or caption, and what else there is; damage is told, not fatal."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.pictures import GARBAGE, encoded, image_folder, picture, write_lines, write_tar
from PIL import Image

from align.data.readers import Columns, ImageSource, UnreadableRow, open_images


def pixels(source: ImageSource, row: int) -> list[Any]:
    return np.asarray(source.image(row)).tolist()


def as_decoded(data: bytes) -> list[Any]:
    import io

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).tolist()


def why(source: ImageSource, row: int) -> str:
    with pytest.raises(UnreadableRow) as caught:
        source.image(row)
    return str(caught.value)


# --- image folders


def test_a_folder_has_a_class_for_each_sub_folder(tmp_path: Path) -> None:
    source = open_images(str(image_folder(tmp_path / "images", classes=3, each=2)))
    assert (source.kind, len(source), source.classes) == ("folder", 6, ("c0", "c1", "c2"))
    assert (source.has_labels, source.has_captions) == (True, False)
    assert [source.label(row) for row in range(6)] == [0, 0, 1, 1, 2, 2]
    assert source.key(3) == "c1/003.jpg"
    assert pixels(source, 3) == as_decoded(encoded(3))
    assert source.image(0).size == (17, 23)


def test_a_folder_is_read_in_the_order_of_torchvision(tmp_path: Path) -> None:
    names = ["b/10.JPEG", "b/9.jpg", "b/X/1.bmp", "b/x/deep/0.PNG", "b/x2/t.tif", "a/z.webp", "B/k.ppm"]
    for name in [*names, "b/notes.txt", ".hidden/1.jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(0))
    (tmp_path / "loose.jpg").write_bytes(encoded(0))
    source = open_images(str(tmp_path))
    # classes in the order of their code points, then folder by folder: files of the class itself come first
    assert source.classes == ("B", "a", "b")
    assert [source.key(row) for row in range(len(source))] == [
        "B/k.ppm",
        "a/z.webp",
        "b/10.JPEG",
        "b/9.jpg",
        "b/X/1.bmp",
        "b/x/deep/0.PNG",
        "b/x2/t.tif",
    ]


def test_damaged_images_are_told_by_name(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, classes=1, each=4, broken={0: GARBAGE, 1: encoded(1, cut=True), 2: b""})
    source = open_images(str(folder))
    (folder / "c0/003.jpg").unlink()
    assert why(source, 0) == "c0/000.jpg: not an image (15 bytes)"
    assert why(source, 1).startswith("c0/001.jpg: OSError: ")
    assert why(source, 2) == "c0/002.jpg: not an image (0 bytes)"
    assert why(source, 3) == "c0/003.jpg: No such file or directory"


def test_images_of_other_modes_become_rgb(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for mode in ("L", "RGBA", "P", "CMYK", "1", "I;16"):
        suffix = "tif" if mode == "CMYK" else "png"
        Image.new(mode, (5, 4)).save(tmp_path / "c" / f"{mode.replace(';', '')}.{suffix}")
    source = open_images(str(tmp_path))
    assert {source.image(row).mode for row in range(len(source))} == {"RGB"}
    assert len(source) == 6


def test_the_fingerprint_tells_sources_apart(tmp_path: Path) -> None:
    one = open_images(str(image_folder(tmp_path / "one")))
    assert one.fingerprint == open_images(str(image_folder(tmp_path / "same"))).fingerprint
    assert one.fingerprint != open_images(str(image_folder(tmp_path / "more", each=4))).fingerprint


# --- jsonl


def test_lines_name_images_and_captions(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", classes=1)
    far = tmp_path / "elsewhere.jpg"
    far.write_bytes(encoded(9))
    lines = write_lines(
        tmp_path / "train.jsonl",
        [
            {"image_path": "images/c0/000.jpg", "text": "a cat", "seed": 3},
            "\n",
            {"image_path": str(far), "text": ["short", "a longer one"]},
            {"image_path": "images/c0/002.jpg", "text": "ein Hänsel 猫"},
        ],
    )
    source = open_images(str(lines))
    assert (source.kind, len(source), source.has_labels, source.has_captions) == ("jsonl", 3, False, True)
    assert [source.caption(row) for row in range(3)] == ["a cat", "short", "ein Hänsel 猫"]
    assert source.record(0).more == {"seed": 3}
    assert source.key(0) == "images/c0/000.jpg"
    assert pixels(source, 1) == as_decoded(encoded(9))
    second = open_images(
        str(write_lines(lines, [{"image_path": str(far), "text": ["a", "b"]}])), columns=Columns(caption=1)
    )
    assert second.caption(0) == "b"


def test_columns_are_picked_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    lines = write_lines(tmp_path / "x.jsonl", [{"file": "a.jpg", "class": 7, "text": "unused", "label": "dog"}])
    source = open_images(str(lines), columns=Columns(image="file", label="class", text="none"))
    assert source.label(0) == 7
    assert source.record(0).more == {"text": "unused", "label": "dog"}
    assert pixels(source, 0) == as_decoded(encoded(1))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"image_path": "a.jpg", "text"\n', "no JSON"),
        ("[1, 2]\n", "a JSON object was expected, got list"),
        ({"text": "no image"}, "image_path is None; a path was expected. The columns are text"),
        ({"image_path": "a.jpg", "text": 5}, "text is 5; a caption"),
        ({"image_path": "a.jpg", "text": []}, "text has 0 captions, and columns.caption=0"),
        ({"image_path": "a.jpg"}, "it has no caption, and the rows before it have"),
        ({"image_path": "missing.jpg", "text": "x"}, "missing.jpg: No such file"),
    ],
)
def test_a_bad_line_is_one_unreadable_row(tmp_path: Path, line: Any, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    good = {"image_path": "a.jpg", "text": "fine"}
    source = open_images(str(write_lines(tmp_path / "x.jsonl", [good, line, good])))
    assert len(source) == 3
    with pytest.raises(UnreadableRow) as caught:
        source.caption(1), source.image(1)
    assert reason in str(caught.value)
    assert source.caption(2) == "fine"
    assert source.key(1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no images"),
        ([{"image_path": "a.jpg", "caption": "x"}], "neither 'label' nor 'text'; they have caption. Set columns"),
        ([{"path": "a.jpg", "text": "x"}], "none of the first 1 rows can be used; .*The columns are path, text"),
        ([{"image_path": "a.jpg", "label": "cat"}], "label is 'cat'; a class id"),
        ([{"image_path": "a.jpg", "label": True}], "label is True; a class id"),
        ([{"image_path": "a.jpg", "label": -1}], "label is -1; a class id"),
    ],
)
def test_lines_of_other_columns_are_refused_at_once(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_images(str(write_lines(tmp_path / "x.jsonl", rows)))


# --- parquet


def parquet(path: Path, columns: dict[str, list[Any]], **settings: Any) -> Path:
    import pyarrow
    from pyarrow import parquet as writer

    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(pyarrow.table(columns), path, **settings)
    return path


def test_parquet_holds_bytes_or_paths(tmp_path: Path) -> None:
    images = [{"bytes": encoded(row), "path": None} for row in range(4)]
    images[1] = {"bytes": GARBAGE, "path": "a/broken.jpg"}
    images[3] = {"bytes": None, "path": "near.jpg"}
    (tmp_path / "near.jpg").write_bytes(encoded(3))
    columns = {"image": images, "label": [3, 1, 0, 2], "width": [20, 20, 20, 20], "mask": [b"x"] * 4}
    source = open_images(str(parquet(tmp_path / "x.parquet", columns, row_group_size=3)))
    assert (source.kind, len(source)) == ("parquet", 4)
    assert [source.label(row) for row in (3, 2, 1, 0)] == [2, 0, 1, 3]
    assert [pixels(source, row) for row in (3, 0, 2)] == [as_decoded(encoded(row)) for row in (3, 0, 2)]
    assert why(source, 1) == "x.parquet row 1: not an image (15 bytes)"
    assert source.record(3).more == {"width": 20}  # bytes have no place in a line of JSON


def test_parquet_of_several_files_and_splits(tmp_path: Path) -> None:
    for name, rows in {"train-00000-of-00002": [0, 1], "train-00001-of-00002": [2], "test-00000-of-00001": [3]}.items():
        columns = {"img": [encoded(row) for row in rows], "text": [f"number {row}" for row in rows]}
        parquet(tmp_path / "data" / f"{name}.parquet", columns)
    source = open_images(str(tmp_path), split="train", columns=Columns(image="img"))
    assert [source.caption(row) for row in range(len(source))] == ["number 0", "number 1", "number 2"]
    assert source.key(2) == "train-00001-of-00002.parquet row 0"
    assert pixels(source, 2) == as_decoded(encoded(2))
    with pytest.raises(ValueError, match="holds the splits test, train; set split="):
        open_images(str(tmp_path), columns=Columns(image="img"))
    with pytest.raises(ValueError, match="no parquet files of a split 'valid'"):
        open_images(str(tmp_path), split="valid")
    with pytest.raises(ValueError, match="has no column 'image'; it has img, text. Set columns.image"):
        open_images(str(tmp_path), split="test")


def test_class_names_in_parquet_are_those_that_datasets_notes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    data = datasets.Dataset.from_dict({"image": [picture(0), picture(1)], "label": [1, 0]}, features=features)
    data.to_parquet(tmp_path / "x.parquet")
    source = open_images(str(tmp_path))
    assert source.classes == ("cat", "dog")
    assert pixels(source, 1) == np.asarray(picture(1)).tolist()  # PNG: nothing is lost


def test_a_parquet_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", {"image": [encoded(0)], "label": [0]})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="x.parquet is no whole parquet file"):
        open_images(str(path))


# --- tars


def test_tars_hold_samples_of_one_name(tmp_path: Path) -> None:
    first = {
        "set/000.jpg": encoded(0),
        "set/000.json": b'{"text": "zero", "url": "somewhere"}',
        "set/001.json": b'{"text": "one"}',
        "set/001.PNG": encoded(1),
        "set/001.xyz": b"unknown",
        "set/002.jpg": encoded(2, cut=True),
        "set/002.txt": b"two\n",
    }
    write_tar(tmp_path / "shards/00000.tar", first)
    write_tar(tmp_path / "shards/00001.tar", {"a.txt": "drei 猫".encode(), "b.jpg": encoded(4), "b.txt": b"four"})
    source = open_images(str(tmp_path / "shards"))
    assert (source.kind, len(source), source.has_captions) == ("webdataset", 5, True)
    assert [source.caption(row) for row in range(5)] == ["zero", "one", "two", "drei 猫", "four"]
    assert source.record(0).more == {"url": "somewhere"}
    assert [source.key(row) for row in (0, 4)] == ["00000.tar/set/000", "00001.tar/b"]
    assert [pixels(source, row) for row in (4, 0, 1)] == [as_decoded(encoded(row)) for row in (4, 0, 1)]
    assert why(source, 2).startswith("00000.tar/set/002: OSError: ")
    assert why(source, 3) == "00001.tar/a: the sample holds no image"
    assert len(open_images(str(tmp_path / "shards/*1.tar"))) == 2


def test_tars_hold_classes_too(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"0.jpg": encoded(0), "0.cls": b"12", "1.jpg": encoded(1), "1.cls": b"twelve"})
    source = open_images(str(path))
    assert (source.label(0), source.has_labels, source.has_captions) == (12, True, False)
    with pytest.raises(UnreadableRow, match="invalid literal for int"):
        source.label(1)


def test_a_damaged_tar_is_refused_by_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"0.jpg": encoded(0), "0.cls": b"1", "1.jpg": encoded(1), "1.cls": b"1"})
    data = bytearray(path.read_bytes())
    data[512:1024] = b"x" * 512  # within the first image: its header is whole
    path.write_bytes(bytes(data))
    assert len(open_images(str(path))) == 2
    path.write_bytes(b"\x1f\x8b" + bytes(data[2:]))
    with pytest.raises(ValueError, match="x.tar is no whole, uncompressed tar"):
        open_images(str(path))


# --- datasets


def dataset(rows: int = 3) -> Any:
    datasets = pytest.importorskip("datasets")
    features = {
        "picture": datasets.Image(),
        "label": datasets.ClassLabel(names=["a", "b", "c"]),
        "origin": datasets.Value("string"),
    }
    columns = {
        "picture": [{"bytes": GARBAGE if row == 1 else encoded(row), "path": None} for row in range(rows)],
        "label": [row % 3 for row in range(rows)],
        "origin": [f"camera {row}" for row in range(rows)],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_a_saved_dataset_is_read_where_it_lies(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "saved")
    source = open_images(str(tmp_path / "saved"))
    assert (source.kind, len(source), source.classes) == ("datasets", 3, ("a", "b", "c"))
    assert source.record(2).more == {"origin": "camera 2"}
    assert source.label(2) == 2
    assert pixels(source, 2) == as_decoded(encoded(2))
    assert why(source, 1) == "row 1: not an image (15 bytes)"
    again = pickle.loads(pickle.dumps(source))
    assert (pixels(again, 2), again.fingerprint) == (pixels(source, 2), source.fingerprint)
    assert open_images(str(tmp_path / "saved")).fingerprint == source.fingerprint


def test_a_split_of_a_saved_dataset_is_chosen(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": dataset(3), "test": dataset(2)}).save_to_disk(tmp_path / "saved")
    assert len(open_images(str(tmp_path / "saved"), split="test")) == 2
    with pytest.raises(ValueError, match="has the splits train, test; set split= to one of them, got None"):
        open_images(str(tmp_path / "saved"))


def test_what_datasets_cannot_open_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="datasets cannot open"):
        open_images(str(tmp_path / "empty"), kind="datasets", split="train")


# --- all of them


def test_sources_go_to_worker_processes(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "folder")
    lines = write_lines(
        tmp_path / "x.jsonl", [{"image_path": f"folder/c0/00{row}.jpg", "label": 1} for row in range(3)]
    )
    table = parquet(tmp_path / "x.parquet", {"image": [encoded(row) for row in range(3)], "label": [1, 1, 1]})
    tar = write_tar(tmp_path / "x.tar", {name: data for row in range(3) for name, data in
                                         ((f"{row}.jpg", encoded(row)), (f"{row}.cls", b"1"))})  # fmt: skip
    for path in (folder, lines, table, tar):
        source = open_images(str(path))
        source.image(0)  # what is held open or in memory must not travel
        again = pickle.loads(pickle.dumps(source))
        assert pixels(again, 2) == pixels(source, 2)
        assert (again.label(1), again.key(1)) == (source.label(1), source.key(1))


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (lambda path: None, {}, "no images at"),
        (lambda path: path.mkdir(), {}, "has no sub-folders"),
        (lambda path: (path / "c0").mkdir(parents=True), {}, "c0 holds no image"),
        (lambda path: path.write_text("x"), {}, "cannot tell what images .* holds"),
        (lambda path: path.mkdir(), {"kind": "tar"}, "unknown kind of images 'tar'; known: auto, folder, jsonl"),
        (lambda path: path.mkdir(), {"kind": "jsonl"}, "is a folder; name its .jsonl file"),
        (lambda path: path.mkdir(), {"kind": "webdataset"}, "holds no .*tar"),
        (lambda path: path.write_text("x"), {"kind": "folder"}, "is a file; an image folder has one sub-folder"),
        (lambda path: path.mkdir(), {"split": "train"}, "tells parquet files and saved datasets apart"),
    ],
)
def test_paths_that_hold_no_images_are_refused(tmp_path: Path, make: Any, settings: Any, message: str) -> None:
    make(tmp_path / "here")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_images(str(tmp_path / "here"), **settings)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "x.parquet", {"image": [encoded(0)], "label": [0]})
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text(json.dumps({}))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    for place in (path, tmp_path / "saved"):
        with pytest.raises(ValueError, match=r"pip install 'ar-align\[data\]'"):
            open_images(str(place))
