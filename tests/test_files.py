"""Bad files are refused in words, and nothing half-written ever replaces something whole."""

from __future__ import annotations

import argparse
import errno
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen

from align import load_generator
from align.checkpoints import load_tokenizer, save_tokenizer
from align.files import alone_in, remove_torsos, write_atomically, write_text
from align.generators import LlamaGen
from align.tensor_files import read_tensors, save_tensors


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny_llamagen().save_published(tmp_path / "generator.pt")
    return tmp_path / "generator.pt"


def load(path: Path, **changes: Any) -> LlamaGen:
    settings: dict[str, Any] = {"grid": (3, 2), "num_heads": 2, **changes}
    generator = load_generator("llamagen", path, **settings)
    assert isinstance(generator, LlamaGen)
    return generator


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").touch, ())


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"weight": torch.ones(1)}, "bomb": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match="carries Python code or objects, and was not run"):
        load(tmp_path / "bomb.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="raw.pt"):
        load(tmp_path / "raw.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_refused(checkpoint: Path, share: float, suffix: str) -> None:
    whole = checkpoint.with_suffix(suffix)
    save_tensors(whole, tiny_llamagen().state_dict(), "model" if suffix == ".pt" else None)
    data = whole.read_bytes()
    whole.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match="cut short|not a whole safetensors file"):
        load(whole)


def test_a_training_file_with_a_namespace_is_read(tmp_path: Path) -> None:
    torch.save(
        {"model": tiny_llamagen().state_dict(), "args": argparse.Namespace(gpt_model="GPT-B"), "steps": 3},
        tmp_path / "t.pt",
    )
    assert load(tmp_path / "t.pt").sizes.num_layers == 2


def test_a_wrong_family_is_named(tmp_path: Path, checkpoint: Path) -> None:
    tokenizer = tiny_llamagen().tokenizer
    assert tokenizer is not None
    save_tokenizer(tokenizer, tmp_path / "vq.pt")
    with pytest.raises(ValueError, match="looks like an image tokenizer: pass it as tokenizer_checkpoint"):
        load(tmp_path / "vq.pt")
    with pytest.raises(
        ValueError, match="generator.pt is no tokenizer but a llamagen generator: pass it as checkpoint"
    ):
        load_tokenizer(checkpoint)
    torch.save({"weight": torch.ones(1)}, tmp_path / "neither.pt")
    with pytest.raises(
        ValueError, match=r"not a LlamaGen VQ tokenizer: it has no tensor .*; its first tensors are \['weight'\]"
    ):
        load_tokenizer(tmp_path / "neither.pt")
    torch.save({"pos_1LC": torch.ones(1), "class_emb.weight": torch.ones(2, 2)}, tmp_path / "var.pt")
    with pytest.raises(ValueError, match="looks like a VAR generator"):
        load(tmp_path / "var.pt")


def test_missing_unexpected_and_mis_shaped_keys_are_listed(tmp_path: Path) -> None:
    state = tiny_llamagen().state_dict()
    del state["norm.weight"]
    state["extra"] = torch.ones(1)
    state["layers.1.attention.wo.weight"] = torch.ones(3, 3)
    save_tensors(tmp_path / "odd.pt", state, "model")
    with pytest.raises(
        ValueError,
        match=r"1 missing: norm.weight; 1 unexpected: extra; 1 mis-shaped: layers.1.attention.wo.weight is \[3, 3\], should be \[16, 16\]",
    ):
        load(tmp_path / "odd.pt")


def test_what_shapes_cannot_tell_is_asked_for(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="pass grid="):
        load(checkpoint, grid=None)
    with pytest.raises(ValueError, match="pass num_heads="):
        load(checkpoint, num_heads=None)
    with pytest.raises(ValueError, match="num_heads=3 does not divide dim=16"):
        load(checkpoint, num_heads=3)
    with pytest.raises(ValueError, match="takes grid=, num_heads= and dropout=; got"):
        load(checkpoint, depth=3)


def test_a_tokenizer_of_another_codebook_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    state = tiny_llamagen().tokenizer.state_dict()
    state["quantize.embedding.weight"] = torch.randn(32, 4)
    save_tensors(tmp_path / "vq.pt", state, "model")
    with pytest.raises(ValueError, match="speaks 16 tokens and its tokenizer has 32 codes"):
        load_generator("llamagen", checkpoint, tmp_path / "vq.pt", grid=(3, 2), num_heads=2)


def test_unknown_names_and_paths_say_what_is_known() -> None:
    with pytest.raises(
        ValueError,
        match=r"unknown generator 'mnist-lamagen'; known zoo entries: mnist-llamagen, mnist-var, shapes-t2i; families: llamagen, llamagen-t2i, var",
    ):
        load_generator("mnist-lamagen")
    with pytest.raises(ValueError, match="pass checkpoint="):
        load_generator("llamagen")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at nowhere\.pt"):
        load_generator("llamagen", "nowhere.pt", grid=(3, 2))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "precious")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="the disk is full; the file that was there is untouched"):
        write_atomically(path, fail)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_while_saving_weights(checkpoint: Path) -> None:
    """The kernel itself refuses the bytes, in the middle of the file, for both formats."""
    script = f"""
import resource, signal
from pathlib import Path
from align.tensor_files import save_tensors, read_tensors
tensors = read_tensors(Path({str(checkpoint)!r})).tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
for name in ("generator.pt", "generator.safetensors"):
    try:
        save_tensors(Path({str(checkpoint.parent)!r}) / name, tensors, "model")
    except OSError as error:
        print(error)
"""
    before = checkpoint.read_bytes()
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.count("could not write") == 2, result.stdout + result.stderr
    assert "untouched" in result.stdout
    assert checkpoint.read_bytes() == before
    assert read_tensors(checkpoint).wrapper == "model"
    assert [path.name for path in checkpoint.parent.iterdir()] == ["generator.pt"]


def test_new_files_can_be_read_by_others(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o044 == 0o044


def test_what_kills_left_half_written_is_taken_away(tmp_path: Path) -> None:
    write_text(tmp_path / "samples/run.json", "{}")
    for name in (".run.json.17.tmp", "samples/.step-000020.png.17.tmp"):
        (tmp_path / name).touch()
    remove_torsos(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")] == ["samples/run.json"]


def test_a_folder_is_for_one_at_a_time_and_free_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(KeyError), alone_in(tmp_path):
        with pytest.raises(ValueError, match=f"another process is training in {tmp_path}; wait"), alone_in(tmp_path):
            pass
        with alone_in(tmp_path.parent):
            pass
        raise KeyError
    with alone_in(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_trained_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    entered = False
    with (
        pytest.warns(UserWarning, match="cannot be locked .*not supported.*: nothing keeps a second training out"),
        alone_in(tmp_path),
    ):
        entered = True
    assert entered
