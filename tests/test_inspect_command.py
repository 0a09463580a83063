"""`align inspect` prints what a file is and which recipes fit it, and says of what cannot be read why, in one line."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_infinity, tiny_llamagen, tiny_var
from safetensors.torch import save_file
from test_inspection import GRID, HEADS
from test_tensor_files import shard, state

from align.checkpoints import save_tokenizer
from recipes import choices, inspect_checkpoint
from recipes.cli import main
from recipes.inspect_checkpoint import fitting_experiments, recipes


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


class Payload:
    """Would leave a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").touch, ())


def _half_torch(folder: Path) -> Path:
    torch.save({"model": state()}, folder / "x.pt")
    return cut(folder / "x.pt")


def _half_safetensors(folder: Path) -> Path:
    save_file(dict(state()), folder / "x.safetensors")
    return cut(folder / "x.safetensors")


def _missing_shard(folder: Path) -> Path:
    shard(folder / "x", "bin")
    (folder / "x" / "pytorch_model-00002-of-00002.bin").unlink()
    return folder / "x"


def _half_shard(folder: Path) -> Path:
    shard(folder / "x", "safetensors")
    cut(folder / "x" / "model-00001-of-00002.safetensors")
    return folder / "x"


def _with_code(folder: Path) -> Path:
    torch.save({"model": dict(state()), "bomb": Payload()}, folder / "x.pt")
    return folder / "x.pt"


def _folder_without_weights(folder: Path) -> Path:
    (folder / "x").mkdir()
    (folder / "x" / "config.json").write_text("{}")
    return folder / "x"


def _unfinished_run(folder: Path) -> Path:
    (folder / "x").mkdir()
    (folder / "x" / "run.json").write_text("{}")
    return folder / "x"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_half_torch, "is not a checkpoint, or was cut short"),
        (_half_safetensors, "is not a whole safetensors file"),
        (_missing_shard, "is not whole: pytorch_model.bin.index.json names pytorch_model-00002-of-00002.bin; download"),
        (_half_shard, "model-00001-of-00002.safetensors is not a whole safetensors file"),
        (_with_code, "carries Python code or objects, and was not run"),
        (lambda folder: written(folder / "x.pt", pickle.dumps(Payload())), "x.pt"),
        (lambda folder: written(folder / "x.pt", b""), "is not a checkpoint, or was cut short"),
        (lambda folder: written(folder / "x.safetensors", b""), "is not a whole safetensors file"),
        (lambda folder: written(folder / "x.jpg", b"\xff\xd8\xff\xe0 a picture"), "is not a checkpoint"),
        (_folder_without_weights, "is a folder with 0 weight files"),
        (_unfinished_run, "holds no aligned generator"),
        (lambda folder: folder / "nowhere.pt", "no checkpoint at"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_read_is_told_in_one_line(
    make: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path)
    assert main(["inspect", str(path)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert str(path) in output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "exploded").exists()


# --- the command


def test_the_command_prints_all_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.pt"
    torch.save({"model": dict(tiny_llamagen().state_dict()), "steps": 3}, path)
    assert main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == str(path)
    told = [(line[:14].strip(), line[14:]) for line in lines[1:]]
    count = len(tiny_llamagen().state_dict())
    assert [value for name, value in told if name == "odd"] == [GRID, HEADS]
    assert {name: value for name, value in told if name != "odd"} == {
        "file": "0.0 MB, torch file, under 'model'",
        "is": "a generator: llamagen, of no published size",
        "parameters": f"0.0 M in {count} tensors: {count} float32",
        "tokens": "not told by the file, of 16 codes",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "also holds": "steps",
        "recipes": "none of its size; those of its family run with generator.size=null",
    }


@pytest.mark.parametrize("make", [tiny_llamagen, tiny_var, tiny_infinity])
def test_a_tokenizer_has_no_recipes(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tokenizer(make().tokenizer, tmp_path / "t.pt")
    assert main(["inspect", str(tmp_path / "t.pt")]) == 0
    output = capsys.readouterr().out
    assert "tokenizer" in output.splitlines()[2]
    assert "recipes" not in output


def test_a_run_means_its_aligned_generator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_var().save_published(tmp_path / "generator.pt")
    (tmp_path / "run.json").write_text("{}")
    assert main(["inspect", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(str(tmp_path / "generator.pt"))


def test_recipes_fit_by_family_size_and_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def experiment(name: str, family: str, size: str | None = None, grid: list[int] | None = None) -> None:
        path = tmp_path / "experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        section = {"size": size, "config": {"grid": grid}}
        path.write_text(f"defaults:\n  - override /generator: {family}\ngenerator: {section!r}".replace("None", "null"))

    experiment("a/any", "llamagen")
    experiment("a/xl", "llamagen", "XL")
    experiment("a/xl_384", "llamagen", "XL", [24, 24])
    experiment("a/b", "llamagen", "B")
    experiment("v/d16", "var", "d16")
    for module in (choices, inspect_checkpoint):
        monkeypatch.setattr(module, "CONF", tmp_path)
    assert fitting_experiments("llamagen", "XL", 384) == ["a/any", "a/xl", "a/xl_384"]
    assert fitting_experiments("llamagen", "XL", 256) == ["a/any", "a/xl"]
    assert fitting_experiments("llamagen", "XL", None) == ["a/any", "a/xl", "a/xl_384"]
    assert fitting_experiments("llamagen", None, None) == ["a/any"]
    assert fitting_experiments("var", "d16", 256) == ["v/d16"]
    assert fitting_experiments("janus", None, None) == []
    # what nearly fits
    assert recipes("llamagen", "XL", 384) == "a/any, a/xl, a/xl_384"
    (tmp_path / "experiment" / "a" / "any.yaml").unlink()
    experiment("a/b", "llamagen", "B", [24, 24])
    assert recipes("llamagen", "B", 256) == "of another image size a/b; add generator.config.grid=[16,16]"
    assert recipes("llamagen", "3B", 256) == "none of its size; those of its family run with generator.size=null"
    assert recipes("janus", None, None).startswith("none for its family; begin with align train generator=janus")


@pytest.mark.parametrize("arguments", [[], ["a.pt", "b.pt"]])
def test_one_file_at_a_time(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *arguments]) == 1
    assert "align inspect takes one file or folder, and whole=true if wanted" in capsys.readouterr().err
