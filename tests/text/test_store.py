"""Features on disk: found again bit for bit, made once, of one encoder, readable while others write."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from text.tiny import save_tiny_t5

from align.text import CachedTextEncoder, FeatureStore, T5TextEncoder, load_text_encoder, store

CAPTIONS = ["red cat", "a very blue dog", "photo", "", "red cat"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> T5TextEncoder:
    return T5TextEncoder(save_tiny_t5(tmp_path_factory.mktemp("t5")), max_length=12)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("features-*"))


def make_store(folder: Path, encoder: T5TextEncoder, captions: list[str]) -> None:
    cached = CachedTextEncoder(encoder, FeatureStore(folder, encoder.facts))
    cached.add(captions)
    cached.flush()


def assert_same(found: object, expected: object) -> None:
    assert torch.equal(found.features_BTD, expected.features_BTD)  # type: ignore[attr-defined]
    assert torch.equal(found.mask_BT, expected.mask_BT)  # type: ignore[attr-defined]


def test_what_is_found_is_what_was_made(tmp_path: Path, encoder: T5TextEncoder) -> None:
    make_store(tmp_path, encoder, CAPTIONS)
    reader = load_text_encoder(tmp_path)
    assert isinstance(reader, CachedTextEncoder)
    assert reader.encoder is None
    assert len(reader.store) == 4
    found = reader.encode(CAPTIONS)
    assert_same(found, encoder.encode(CAPTIONS))
    assert found.features_BTD.dtype == torch.bfloat16
    # captions that are cleaned to the same text are the same
    assert_same(reader.encode(["RED <i>cat</i>"]), encoder.encode(["red cat"]))
    # valid positions only
    with safe_open(shards(tmp_path)[0], "pt") as file:
        assert file.get_slice("features").get_shape() == [3 + 10 + 2 + 1, 16]


def test_only_what_is_missing_is_encoded(
    tmp_path: Path, encoder: T5TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path, encoder, ["red cat", "photo"])
    asked: list[str] = []
    original = encoder.encode_rows
    monkeypatch.setattr(encoder, "encode_rows", lambda texts: asked.extend(texts) or original(texts))
    cached = CachedTextEncoder(encoder, FeatureStore(tmp_path, encoder.facts))
    assert cached.add(["photo", "Blue Dog", "dog", "blue dog"]) == 2
    assert asked == ["blue dog", "dog"]
    cached.encode(CAPTIONS)
    assert asked == ["blue dog", "dog", "a very blue dog", ""]
    cached.encode(CAPTIONS)
    assert len(asked) == 4
    assert len(shards(tmp_path)) == 1  # few: nothing is written yet
    cached.flush()
    cached.flush()
    assert len(shards(tmp_path)) == 2
    assert len(FeatureStore(tmp_path)) == 6
    assert_same(cached.encode(CAPTIONS), encoder.encode(CAPTIONS))


def test_files_hold_so_many_captions_and_the_rest_is_written_at_the_end(
    tmp_path: Path, encoder: T5TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SHARD_CAPTIONS", 3)
    cached = CachedTextEncoder(encoder, FeatureStore(tmp_path, encoder.facts))
    for caption in ("a", "b", "c", "d"):
        cached.add([caption])
    assert len(FeatureStore(tmp_path)) == 3
    del cached
    gc.collect()
    assert len(FeatureStore(tmp_path)) == 4


def test_a_missing_caption_says_which_and_how_to_make_it(tmp_path: Path, encoder: T5TextEncoder) -> None:
    make_store(tmp_path, encoder, ["red cat"])
    message = (
        "has no features of 2 of 3 captions, the first of them is 'A blue dog'; make them: align data captions source="
    )
    with pytest.raises(ValueError, match=f"{message}.*output_dir={tmp_path}"):
        load_text_encoder(tmp_path).encode(["red cat", "A blue dog", "photo", "a blue dog"])


def test_a_reader_finds_what_was_added_since(tmp_path: Path, encoder: T5TextEncoder) -> None:
    make_store(tmp_path, encoder, ["red cat"])
    reader = load_text_encoder(tmp_path)
    make_store(tmp_path, encoder, ["photo"])
    assert_same(reader.encode(["photo"]), encoder.encode(["photo"]))


def _read_many(folder: str, queue: multiprocessing.Queue[int]) -> None:
    reader = load_text_encoder(folder)
    total = sum(int(reader.encode([caption]).mask_BT.sum()) for caption in CAPTIONS * 20)
    queue.put(total)
    queue.close()
    queue.join_thread()
    os._exit(0)


def test_several_processes_read_while_one_writes(tmp_path: Path, encoder: T5TextEncoder) -> None:
    make_store(tmp_path, encoder, CAPTIONS)
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[int] = context.Queue()
    readers = [context.Process(target=_read_many, args=(str(tmp_path), queue)) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(10):
        make_store(tmp_path, encoder, ["cat" * number])
    assert [queue.get(timeout=60) for _ in readers] == [20 * (3 + 10 + 2 + 1 + 3)] * 2
    for reader in readers:
        reader.join()
    assert len(FeatureStore(tmp_path)) == 4 + 9  # the empty caption was there


def test_writers_of_the_same_captions_do_not_collide(tmp_path: Path, encoder: T5TextEncoder) -> None:
    first, second = (CachedTextEncoder(encoder, FeatureStore(tmp_path, encoder.facts)) for _ in range(2))
    first.add(["cat", "dog"])
    second.add(["cat", "dog"])
    third = CachedTextEncoder(encoder, FeatureStore(tmp_path, encoder.facts))
    third.add(["dog", "red"])
    for writer in (first, second, third):
        writer.flush()
    assert len(shards(tmp_path)) == 2
    assert_same(load_text_encoder(tmp_path).encode(["cat", "dog", "red"]), encoder.encode(["cat", "dog", "red"]))


def test_a_store_is_of_one_encoder(tmp_path: Path, encoder: T5TextEncoder) -> None:
    make_store(tmp_path, encoder, ["cat"])
    other = replace(encoder.facts, max_length=77, clean=False)
    with pytest.raises(ValueError, match="holds features of another text encoder: other max_length, clean; choose"):
        FeatureStore(tmp_path, other)
    make_store(tmp_path / "other", T5TextEncoder(encoder.path, max_length=13), ["cat"])
    with pytest.raises(ValueError, match="holds features of another text encoder; open it with this one's facts"):
        CachedTextEncoder(encoder, FeatureStore(tmp_path / "other"))
    # a file that strayed in
    (tmp_path / "other" / shards(tmp_path / "other")[0].name).rename(tmp_path / "features-x.safetensors")
    with pytest.raises(ValueError, match="features-x.safetensors holds features of another text encoder than store"):
        FeatureStore(tmp_path)


def _cut_short(folder: Path) -> None:
    path = shards(folder)[0]
    path.write_bytes(path.read_bytes()[:-10])


def _without_keys(folder: Path) -> None:
    path = shards(folder)[0]
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items() if name != "keys"}
    save_file(tensors, path, {"encoder": json.loads((folder / "store.json").read_text())["encoder"]})


def _other_description(folder: Path) -> None:
    (folder / "store.json").write_text('{"encoder": "x"}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut_short, r"features-.*safetensors is damaged \(.*\); delete it, and make the features of its captions"),
        (_without_keys, r"features-.*safetensors is damaged"),
        (_other_description, "store.json is not the description of caption features"),
    ],
)
def test_damaged_files_are_refused(
    tmp_path: Path, encoder: T5TextEncoder, damage: Callable[[Path], None], message: str
) -> None:
    make_store(tmp_path, encoder, ["cat"])
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        FeatureStore(tmp_path)


def test_no_store_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no caption features in .*; `align data captions` makes them"):
        FeatureStore(tmp_path / "none")


def test_one_door_opens_both(tmp_path: Path, encoder: T5TextEncoder) -> None:
    plain = load_text_encoder(encoder.path, max_length=12)
    assert isinstance(plain, T5TextEncoder)
    cached = load_text_encoder(encoder.path, max_length=12, features=tmp_path / "kept")
    assert isinstance(cached, CachedTextEncoder)
    assert cached.encoder is not None
    assert_same(cached.encode(CAPTIONS), plain.encode(CAPTIONS))
    cached.flush()
    assert_same(load_text_encoder(tmp_path / "kept").encode(CAPTIONS), plain.encode(CAPTIONS))
