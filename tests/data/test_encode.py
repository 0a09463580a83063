"""Shards of token codes: what is in them, who writes them, and that nothing which stops the work changes a byte."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.pictures import GARBAGE, encode_one, encoded, image_folder, tiny_tokenizer, write_lines
from safetensors.numpy import load_file

from align.checkpoints import Tokenizer
from align.data import open_codes
from align.data.crops import Crop
from align.data.encode import describe_encoding, encode_shards
from align.data.readers import ImageSource, open_images
from align.data.shard_codes import ShardCodes
from align.data.shards import MANIFEST, SETTINGS, Encoding, ShardWriter
from align.files import sha256_of_tensors
from align.fingerprints import sha256_of_file

TEN = Crop("ten_crop", 12, (1.1, 1.05))
CENTER = Crop("center", 12)


def encode(
    folder: Path,
    source: ImageSource,
    *,
    crop: Crop = CENTER,
    tokenizer: Tokenizer | None = None,
    shard_rows: int = 4,
    part: tuple[int, int] = (0, 1),
    shards: Sequence[int] | None = None,
    batch_size: int = 3,
    workers: int = 0,
) -> dict[str, Any] | None:
    """What `align data encode` does: the missing shards of a part, then the manifest if nothing is missing."""
    tokenizer = tokenizer or tiny_tokenizer()
    encoding = describe_encoding(tokenizer, source, crop, family="llamagen", shard_rows=shard_rows)
    writer = ShardWriter(folder, encoding)
    own = range(part[0], encoding.shards, part[1]) if shards is None else shards
    todo = [shard for shard in own if not writer.is_finished(shard)]
    encode_shards(
        writer, source, crop, tokenizer, shards=todo, batch_size=batch_size, workers=workers, on_rows=lambda *_: None
    )
    return writer.finish()


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_codes_are_those_of_every_view(tmp_path: Path) -> None:
    source = open_images(str(image_folder(tmp_path / "images", classes=3, each=3)))
    manifest = encode(tmp_path / "codes", source, crop=TEN)
    assert manifest is not None
    codes = open_codes(tmp_path / "codes")
    assert isinstance(codes, ShardCodes)
    assert codes.shape == (9, 20, 9)
    tokenizer = tiny_tokenizer()
    for row, view in ((0, 0), (3, 7), (4, 19), (8, 10)):  # on both sides of the shards' edges
        views = TEN.views(source.image(row))
        assert codes[row, view].tolist() == encode_one(tokenizer, views[view])
        assert codes[row, view].dtype == torch.int64
    assert isinstance(codes.labels_N, torch.Tensor)
    assert codes.labels_N.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(IndexError):
        _ = codes[9, 0]


def test_a_var_tokenizer_encodes_all_scales(tmp_path: Path) -> None:
    source = open_images(str(image_folder(tmp_path / "images", classes=1)))
    tokenizer = tiny_tokenizer(var=True)
    manifest = encode(tmp_path / "codes", source, crop=Crop("flip", 12), tokenizer=tokenizer)
    assert manifest is not None
    assert (manifest["tokens_per_image"], manifest["patch_nums"], manifest["views"]) == (14, [1, 2, 3], 2)
    mirrored = Crop("flip", 12).views(source.image(2))[1]
    assert open_codes(tmp_path / "codes")[2, 1].tolist() == encode_one(tokenizer, mirrored)  # type: ignore[index]


def test_the_manifest_tells_how_codes_were_made(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", classes=3, each=3, broken={1: GARBAGE, 8: encoded(8, cut=True)})
    source = open_images(str(folder))
    encode(tmp_path / "codes", source, crop=TEN)
    manifest = json.loads((tmp_path / "codes" / MANIFEST).read_text())
    assert manifest["format"] == "ar-align token codes, version 1"
    assert manifest["tokenizer"] == sha256_of_tensors(tiny_tokenizer().state_dict())
    assert manifest["family"] == "llamagen"
    assert (manifest["image_size"], manifest["tokens_per_image"], manifest["codebook_size"]) == (12, 9, 16)
    assert manifest["crop"] == {"kind": "ten_crop", "enlarged": [1.1, 1.05]}
    assert manifest["source"] == {
        "path": str(folder),
        "kind": "folder",
        "rows": 9,
        "fingerprint": source.fingerprint,
    }
    assert manifest["classes"] == ["c0", "c1", "c2"]
    assert (manifest["rows"], manifest["images"], manifest["skipped"]) == (7, 140, 2)
    assert manifest["label_range"] == [0, 2]
    assert [(shard["first"], shard["rows"]) for shard in manifest["shards"]] == [(0, 3), (4, 4), (8, 0)]
    for shard in manifest["shards"]:
        (file,) = shard["files"]
        assert file["sha256"] == sha256_of_file(tmp_path / "codes" / file["file"])


def test_images_that_cannot_be_read_are_skipped_and_listed(tmp_path: Path) -> None:
    broken = {1: GARBAGE, 2: encoded(2, cut=True), 8: b""}
    source = open_images(str(image_folder(tmp_path / "images", classes=3, each=3, broken=broken)))
    manifest = encode(tmp_path / "codes", source)
    assert manifest is not None
    assert [(row["key"], row["reason"][:12]) for row in manifest["skipped_rows"]] == [
        ("c0/001.jpg", "not an image"),
        ("c0/002.jpg", "OSError: Tru"),
        ("c2/008.jpg", "not an image"),
    ]
    codes = open_codes(tmp_path / "codes")
    assert isinstance(codes, ShardCodes)
    # the others are as they would be without; each says which row of the source it was
    assert [codes.source_row(row) for row in range(6)] == [0, 3, 4, 5, 6, 7]
    whole = open_images(str(image_folder(tmp_path / "whole", classes=3, each=3)))
    encode(tmp_path / "all", whole)
    reference = open_codes(tmp_path / "all")
    assert [codes[row, 0].tolist() for row in range(6)] == [
        reference[row, 0].tolist()  # type: ignore[index]
        for row in (0, 3, 4, 5, 6, 7)
    ]


def test_worker_processes_and_the_batch_change_nothing(tmp_path: Path) -> None:
    source = open_images(str(image_folder(tmp_path / "images", classes=2, each=5, broken={4: GARBAGE})))
    encode(tmp_path / "one", source)
    encode(tmp_path / "other", source, workers=2, batch_size=100)
    assert everything(tmp_path / "one") == everything(tmp_path / "other")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_parts_make_what_one_makes(tmp_path: Path, order: tuple[int, int]) -> None:
    source = open_images(str(image_folder(tmp_path / "images", classes=2, each=7, broken={5: GARBAGE})))
    encode(tmp_path / "one", source)
    assert encode(tmp_path / "two", source, part=(order[0], 2)) is None
    assert not (tmp_path / "two" / MANIFEST).exists()
    with pytest.raises(
        ValueError, match="two is not whole: 2 of 4 shards are missing. Run its `align data encode` again"
    ):
        open_codes(tmp_path / "two")
    assert encode(tmp_path / "two", source, part=(order[1], 2)) is not None
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


@pytest.mark.parametrize(
    "lost",
    [
        [MANIFEST],
        [MANIFEST, "records/shard-00002.json"],  # killed after the shard, before its record
        [MANIFEST, "shard-00001.safetensors"],
        [MANIFEST, "records/shard-00001.json", "shard-00001.safetensors", "shard-00003.safetensors"],
    ],
)
def test_what_is_missing_is_made_again_and_nothing_else(tmp_path: Path, lost: list[str]) -> None:
    source = open_images(str(image_folder(tmp_path / "images", classes=2, each=7)))
    folder = tmp_path / "codes"
    encode(folder, source)
    before = everything(folder)
    for name in lost:
        (folder / name).unlink()
    (folder / ".shard-00001.safetensors.123.tmp").write_bytes(b"left by a killed process")
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*") if path.name not in lost}
    encode(folder, source)
    assert everything(folder) == before
    again = {f"shard-{name[-10:-5]}.safetensors" for name in lost if name.startswith("records")}
    assert {path.name for path, stamp in kept.items() if path.stat().st_mtime_ns != stamp} == again - set(lost)


def test_a_shard_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    source = open_images(str(image_folder(tmp_path / "images")))
    encode(tmp_path / "codes", source)
    before = everything(tmp_path / "codes")
    shard = tmp_path / "codes" / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"shard-00001.safetensors has \d+ bytes, and the manifest says \d+"):
        open_codes(tmp_path / "codes")
    encode(tmp_path / "codes", source)
    assert everything(tmp_path / "codes") == before


def test_verifying_finds_a_changed_bit(tmp_path: Path) -> None:
    encode(tmp_path / "codes", open_images(str(image_folder(tmp_path / "images"))))
    shard = tmp_path / "codes" / "shard-00001.safetensors"
    ShardCodes(tmp_path / "codes").verify()
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="shard-00001.safetensors is not what the manifest says"):
        ShardCodes(tmp_path / "codes").verify()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": Crop("flip", 12)}, 'crop was {"kind": "center", "enlarged": null}, now {"kind": "flip"'),
        ({"tokenizer": tiny_tokenizer(seed=1)}, "tokenizer was"),
        ({"shard_rows": 5}, "shard_rows was 4, now 5. Set it back to go on, use another output_dir="),
    ],
)
def test_other_settings_are_refused_in_the_same_folder(tmp_path: Path, changes: Any, message: str) -> None:
    source = open_images(str(image_folder(tmp_path / "images")))
    encode(tmp_path / "codes", source)
    before = everything(tmp_path / "codes")
    with pytest.raises(ValueError, match=message.replace("{", r"\{")):
        encode(tmp_path / "codes", source, **changes)
    assert everything(tmp_path / "codes") == before


def test_other_images_are_refused_and_moved_ones_are_not(tmp_path: Path) -> None:
    encode(tmp_path / "codes", open_images(str(image_folder(tmp_path / "images"))), shards=[0])
    with pytest.raises(ValueError, match="source was"):
        encode(tmp_path / "codes", open_images(str(image_folder(tmp_path / "other", each=4))))
    shutil.move(tmp_path / "images", tmp_path / "moved")
    assert encode(tmp_path / "codes", open_images(str(tmp_path / "moved"))) is not None


def test_shards_of_two_encodings_never_mix(tmp_path: Path) -> None:
    """As when two processes begin at once and one overwrites what the other has set."""
    source = open_images(str(image_folder(tmp_path / "images")))
    encode(tmp_path / "codes", source, part=(0, 2))
    (tmp_path / "codes" / SETTINGS).unlink()
    with pytest.raises(ValueError, match="is of codes that were made with other settings; remove it"):
        encode(tmp_path / "codes", source, part=(1, 2), crop=Crop("flip", 12))


def test_nothing_readable_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_images(str(image_folder(tmp_path / "images", broken=dict.fromkeys(range(12), GARBAGE))))
    with pytest.raises(ValueError, match="none of the images could be read; the first is c0/000.jpg: not an image"):
        encode(tmp_path / "codes", source)
    assert not (tmp_path / "codes" / MANIFEST).exists()
    monkeypatch.setattr("align.data.encode._HOPELESS", 5)  # long before the end
    with pytest.raises(ValueError, match="none of the first 6 images can be read; the last is c1/005.jpg"):
        encode(tmp_path / "again", source, shard_rows=2)


def test_captions_and_other_columns_are_kept_by_row(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", classes=1, each=6, broken={2: GARBAGE})
    rows = [
        {"image_path": f"images/c0/00{row}.jpg", "text": f"Bild {row} 猫", "seed": row, "tags": ["a", row]}
        for row in range(6)
    ]
    source = open_images(str(write_lines(tmp_path / "x.jsonl", rows)))
    encode(tmp_path / "codes", source)
    codes = open_codes(tmp_path / "codes")
    assert isinstance(codes, ShardCodes)
    assert not isinstance(codes.labels_N, torch.Tensor)
    assert list(codes.labels_N) == [f"Bild {row} 猫" for row in (0, 1, 3, 4, 5)]
    assert codes.labels_N[1:3] == ["Bild 1 猫", "Bild 3 猫"]
    assert codes.text(3) == {"caption": "Bild 4 猫", "more": {"seed": 4, "tags": ["a", 4]}}
    assert codes.manifest["label_range"] is None
    with pytest.raises(ValueError, match="holds images with a caption; a label was asked for"):
        open_codes(tmp_path / "codes", conditions="label")


def test_labels_and_captions_may_come_together(tmp_path: Path) -> None:
    image_folder(tmp_path / "images", classes=1, each=2)
    rows = [{"image_path": f"images/c0/00{row}.jpg", "text": f"number {row}", "label": row} for row in range(2)]
    encode(tmp_path / "codes", open_images(str(write_lines(tmp_path / "x.jsonl", rows))))
    assert list(open_codes(tmp_path / "codes").labels_N) == ["number 0", "number 1"]
    labels_N = open_codes(tmp_path / "codes", conditions="label").labels_N
    assert isinstance(labels_N, torch.Tensor)
    assert labels_N.tolist() == [0, 1]


@pytest.mark.parametrize(("codes", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.int32)])
def test_tokens_are_as_narrow_as_the_codebook_allows(tmp_path: Path, codes: int, dtype: type) -> None:
    facts = {"path": "x", "kind": "folder", "rows": 1, "fingerprint": "f"}
    encoding = Encoding("t", "f", 12, 2, codes, None, {}, 1, facts, True, False, None, 4)
    writer = ShardWriter(tmp_path, encoding)
    from align.data.readers import Record

    writer.write(0, np.array([[[0, codes - 1]]]), [0], [Record("k", 3, None)], [])
    tensors = load_file(tmp_path / "shard-00000.safetensors")
    assert tensors["tokens"].dtype == dtype
    writer_manifest = writer.folder / "records"
    assert writer_manifest.is_dir()
    shown = ShardCodes(tmp_path, partial=True) if (tmp_path / SETTINGS).exists() else None
    assert shown is not None
    # assembled without a manifest: the crop of this one has no settings, but its tokens are whole
    assert shown[0, 0].tolist() == [0, codes - 1]


def test_reading_is_lazy_and_goes_to_worker_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_images(str(image_folder(tmp_path / "images")))
    encode(tmp_path / "codes", source)
    codes = open_codes(tmp_path / "codes")
    again = pickle.loads(pickle.dumps(codes))
    assert torch.equal(again[7, 0], codes[7, 0])  # type: ignore[index]
    assert again.identity == open_codes(tmp_path / "codes").identity  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("size", "var", "message"),
    [
        (14, False, "image_size is 14; this tokenizer takes a multiple of 4"),
        (16, True, "image_size is 16; this tokenizer takes 12 for its last scale of 3"),
    ],
)
def test_images_of_a_size_that_the_tokenizer_cannot_take_are_refused(
    tmp_path: Path, size: int, var: bool, message: str
) -> None:
    source = open_images(str(image_folder(tmp_path / "images", classes=1)))
    with pytest.raises(ValueError, match=message):
        describe_encoding(tiny_tokenizer(var=var), source, Crop("center", size), family="var", shard_rows=4)


def test_folders_that_hold_no_codes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no token codes at"):
        open_codes(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"holds no token codes: neither manifest.json .* nor \*_codes"):
        open_codes(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"format": "something else"}))
    with pytest.raises(ValueError, match="has the format 'something else'"):
        open_codes(tmp_path)
