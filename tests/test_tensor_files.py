"""Whatever form a checkpoint lies in, it is read, and written back as it was."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen
from safetensors.torch import load_file, save_file
from torch import Tensor

from align import load_generator
from align.generators import LlamaGen
from align.tensor_files import read_tensors


def load(path: Path, **settings: Any) -> LlamaGen:
    generator = load_generator("llamagen", path, grid=(3, 2), num_heads=2, **settings)
    assert isinstance(generator, LlamaGen)
    return generator


def state(dtype: torch.dtype = torch.float32) -> OrderedDict[str, Tensor]:
    """In an order of its own, and with the table that some files carry."""
    tensors = tiny_llamagen().state_dict()
    shuffled = OrderedDict((name, tensors[name].to(dtype)) for name in reversed(tensors))
    shuffled["freqs_cis"] = torch.randn(7, 2, 2)
    return shuffled


def bits(tensors: dict[str, Tensor]) -> list[tuple[str, torch.dtype, bytes]]:
    return [(name, t.dtype, t.contiguous().view(-1).view(torch.uint8).numpy().tobytes()) for name, t in tensors.items()]


WRAPPINGS: dict[str, Any] = {
    "bare": lambda tensors: tensors,
    "model": lambda tensors: {"model": tensors},
    "deepspeed": lambda tensors: {"module": tensors, "global_steps": 3},
    "state_dict": lambda tensors: {"state_dict": tensors},
    "training": lambda tensors: {
        "model": tensors,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "steps": 300,
        "args": argparse.Namespace(gpt_model="GPT-B", cloud_save_path="x"),
    },
    "var trainer": lambda tensors: {"epoch": 1, "trainer": {"var_wo_ddp": tensors, "config": {"depth": 2}}, "args": {}},
    "cca trainer": lambda tensors: {"epoch": 1, "trainer": tensors},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_load_and_save_is_the_same_file(wrapping: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = state(dtype)
    tensors._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]  # as torch's state_dict carries it
    torch.save(WRAPPINGS[wrapping](tensors), tmp_path / "in.pt")
    load(tmp_path / "in.pt").save_published(tmp_path / "out.pt")
    file, again = read_tensors(tmp_path / "in.pt"), read_tensors(tmp_path / "out.pt")
    assert (tmp_path / "in.pt").read_bytes() == (tmp_path / "out.pt").read_bytes()
    assert bits(again.tensors) == bits(file.tensors) == bits(tensors)
    assert again.wrapper == file.wrapper
    # and all else that the file held, with its types
    with torch.serialization.safe_globals([argparse.Namespace]):
        before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("in.pt", "out.pt"))
    assert repr(before) == repr(after)
    found: Any = after
    for key in (file.wrapper or "").split("/") if file.wrapper else []:
        found = found[key]
    assert type(found) is OrderedDict
    assert found._metadata == tensors._metadata


def test_an_archive_called_as_by_a_handle_comes_back_so(tmp_path: Path) -> None:
    with (tmp_path / "in.pt").open("wb") as file:
        torch.save(state(), file)
    load(tmp_path / "in.pt").save_published(tmp_path / "out.pt")
    assert (tmp_path / "in.pt").read_bytes() == (tmp_path / "out.pt").read_bytes()


def test_safetensors_come_back_byte_for_byte(tmp_path: Path) -> None:
    save_file(dict(state(torch.bfloat16)), tmp_path / "in.safetensors", {"format": "pt"})
    load(tmp_path / "in.safetensors").save_published(tmp_path / "out.safetensors")
    assert (tmp_path / "in.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()


def test_safetensors_are_what_their_own_package_reads(tmp_path: Path) -> None:
    """Of every dtype, empty ones and scalars, those that are not mapped (float8), and behind a header of odd length."""
    stream = torch.Generator().manual_seed(0)
    numbers = torch.randn(3, 5, generator=stream) * 50
    dtypes = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "float8_e4m3fn")
    tensors = {name: numbers.to(getattr(torch, name)) for name in dtypes}
    tensors |= {"bool": numbers > 0, "empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    save_file(tensors, tmp_path / "in.safetensors")
    whole = (tmp_path / "in.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    odd = (length + 1).to_bytes(8, "little") + whole[8 : 8 + length] + b" " + whole[8 + length :]
    (tmp_path / "odd.safetensors").write_bytes(odd)
    for name in ("in", "odd"):
        found = read_tensors(tmp_path / f"{name}.safetensors").tensors
        expected = load_file(tmp_path / f"{name}.safetensors")
        assert {key: value.dtype for key, value in found.items()} == {
            key: value.dtype for key, value in expected.items()
        }
        for key, value in expected.items():
            assert found[key].shape == value.shape
            assert (
                torch.equal(found[key].contiguous().view(torch.uint8), value.contiguous().view(torch.uint8))
                if value.dim()
                else found[key] == value
            )


def shard(folder: Path, suffix: str) -> None:
    """A folder in the manner of Hugging Face: two weight files, an index, settings."""
    folder.mkdir()
    tensors = dict(state())
    names = list(tensors)
    prefix = "model" if suffix == "safetensors" else "pytorch_model"
    files = {f"{prefix}-0000{i + 1}-of-00002.{suffix}": names[i::2] for i in range(2)}
    for file, keys in files.items():
        part = {name: tensors[name] for name in keys}
        save_file(part, folder / file, {"format": "pt"}) if suffix == "safetensors" else torch.save(part, folder / file)
    weight_map = {name: file for file, keys in files.items() for name in keys}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / f"{prefix}{'.safetensors' if suffix == 'safetensors' else '.bin'}.index.json").write_text(
        json.dumps(index, indent=2) + "\n"
    )
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_folders_come_back_file_by_file(suffix: str, tmp_path: Path) -> None:
    shard(tmp_path / "in", suffix)
    generator = load(tmp_path / "in")
    assert generator.suffix == ""
    generator.save_published(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "in").iterdir())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    for name in names:
        assert (tmp_path / "in" / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    # a file's name gives one file
    generator.save_published(tmp_path / "one.pt")
    assert dict(bits_by_name(tmp_path / "one.pt")) == dict(bits_by_name(tmp_path / "in"))


def bits_by_name(path: Path) -> list[tuple[str, bytes]]:
    return [(name, data) for name, _, data in bits(read_tensors(path).tensors)]


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    shard(tmp_path / "in", "safetensors")
    second = tmp_path / "in" / "model-00002-of-00002.safetensors"
    second.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match="is not whole: model.safetensors.index.json names model-00002-of-00002"):
        load(tmp_path / "in")
    save_file({"unrelated": torch.ones(1)}, second)
    with pytest.raises(ValueError, match="is not whole: .* tensors of its index are in no file, "):
        load(tmp_path / "in")
    (tmp_path / "in" / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match="is not an index of weight files"):
        load(tmp_path / "in")
    (tmp_path / "in" / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"is a folder with 2 weight files .* and no index .*; name the file"):
        load(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is a folder with 0 weight files"):
        load(tmp_path / "empty")


def test_the_dtype_is_the_files_or_the_one_asked_for(tmp_path: Path) -> None:
    torch.save(dict(state(torch.bfloat16)), tmp_path / "half.pt")  # its extra table is float32, and does not count
    torch.save({**state(torch.bfloat16), "norm.weight": torch.ones(16)}, tmp_path / "mixed.pt")
    assert {p.dtype for p in load(tmp_path / "half.pt").parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load(tmp_path / "mixed.pt").parameters()} == {torch.float32}
    wide = load(tmp_path / "half.pt", dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    with torch.no_grad():  # and a narrow one still gives float32 log-probs
        logits = load(tmp_path / "half.pt")(torch.zeros(1, 6, dtype=torch.long), wide.encode_condition([1]))
    assert logits.dtype == torch.float32
    wide.save_published(tmp_path / "out.pt")
    assert bits(read_tensors(tmp_path / "out.pt").tensors) == bits(read_tensors(tmp_path / "half.pt").tensors)


def test_loading_copies_nothing_and_writes_nothing_to_the_file(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "in.pt")
    save_file(dict(state()), tmp_path / "in.safetensors")
    for path in (tmp_path / "in.pt", tmp_path / "in.safetensors"):
        before = path.read_bytes()
        generator = load(path)
        assert generator.file is not None
        for name, parameter in generator.named_parameters():
            assert parameter.data_ptr() == generator.file.tensors[name].data_ptr(), name
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.zero_()
        assert path.read_bytes() == before


def test_a_file_may_be_written_over_the_one_it_came_from(tmp_path: Path) -> None:
    torch.save({"model": state()}, tmp_path / "g.pt")
    generator = load(tmp_path / "g.pt")
    with torch.no_grad():
        generator.output.weight.fill_(2.0)
    generator.save_published(tmp_path / "g.pt")
    assert (load(tmp_path / "g.pt").output.weight == 2.0).all()
    before = dict(state())
    changed = [
        n
        for n, t in read_tensors(tmp_path / "g.pt").tensors.items()
        if n != "freqs_cis" and not torch.equal(t, before[n])
    ]
    assert changed == ["output.weight"]
