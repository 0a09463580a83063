"""`align inspect` says what any file is, by names, shapes and some values, and what is wrong with it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_infinity, tiny_janus, tiny_llamagen, tiny_llamagen_t2i, tiny_var
from published_files import meta_file
from safetensors.torch import save_file
from test_tensor_files import WRAPPINGS, shard, state
from torch import Tensor, nn

from align import fingerprints, inspection
from align.checkpoints import save_tokenizer
from align.fingerprints import digest_of
from align.inspection import identify, inspect
from align.shapes import shapes_only
from recipes.cli import main

GRID = "the token grid is not told: pass grid=(16, 16) for 256 px, (24, 24) for 384 px, (32, 32) for 512 px"
HEADS = "the number of heads is not told: pass num_heads="
PIXELS = "the image size is not told: pass image_size=1024, or 256, 512, or (height, width)"
# family: generator, codes, tokens, remarks
FAMILIES: dict[str, tuple[Callable[..., Any], int, str, list[str]]] = {
    "llamagen": (tiny_llamagen, 16, "not told by the file", [GRID, HEADS]),
    "llamagen-t2i": (tiny_llamagen_t2i, 16, "not told by the file", [GRID, HEADS]),
    "var": (tiny_var, 16, "14 in 3 scales, up to 3x3", []),
    "infinity": (tiny_infinity, 2, "4 bits a position; how many positions is not told by the file", [PIXELS]),
    "janus": (tiny_janus, 16, "9 (3x3)", []),
}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """LlamaGen's weights with a rotary table, which tells a grid of 2x2."""
    torch.save({**state(), "freqs_cis": torch.randn(5, 2, 2)}, tmp_path / "bare.pt")
    return tmp_path / "bare.pt"


def changed(tmp_path: Path, change: Callable[[dict[str, Tensor]], object], wrapper: str = "model") -> Path:
    """A file of LlamaGen's tiny weights after a change."""
    tensors = dict(tiny_llamagen().state_dict())
    change(tensors)
    torch.save({wrapper: tensors}, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


# --- what it is


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_known(family: str, tmp_path: Path) -> None:
    make, codes, tokens, odd = FAMILIES[family]
    generator = make()
    path = tmp_path / f"saved{generator.suffix}"
    generator.save_published(path)
    found = inspect(path)
    assert (found.kind, found.size_name, found.codes, found.tokens, found.image_size) == (
        *(family, None, codes, tokens, None),
    )
    assert (found.problems, found.odd) == ([], odd)
    assert found.parameters >= sum(parameter.numel() for parameter in generator.parameters())
    assert set(found.dtypes) <= {"float32", "int64"}


@pytest.mark.parametrize(
    ("kind", "make", "tokens", "codes"),
    [
        ("vq", tiny_llamagen, "one for 4x4 pixels", 16),
        ("multiscale-vq", tiny_var, "one for 4x4 pixels", 16),
        ("bsq", tiny_infinity, "4 bits for 4x4 pixels", 2),
    ],
)
def test_every_tokenizer_is_known(kind: str, make: Callable[..., Any], tokens: str, codes: int, tmp_path: Path) -> None:
    save_tokenizer(make().tokenizer, tmp_path / "t.pt", torch.float16)
    found = inspect(tmp_path / "t.pt")
    assert (found.kind, found.size_name, found.tokens) == (kind, None, tokens)
    assert (found.problems, found.odd) == ([], [])
    assert found.dtypes["float16"] == sum(found.dtypes.values())
    assert found.codes == codes


@pytest.mark.parametrize(
    ("name", "kind", "size", "tokens", "pixels"),
    [
        ("c2i_XL_384", "llamagen", "XL", "576 (24x24)", 384),
        ("t2i_XL_stage2_512", "llamagen-t2i", "XL", "1024 (32x32)", 512),
        ("var_d36", "var", "d36", "2240 in 10 scales, up to 32x32", 512),
        ("vq_ds8_c2i", "vq", None, "one for 8x8 pixels", None),
        ("vae_ch160v4096z32", "multiscale-vq", None, "one for 16x16 pixels", None),
    ],
)
def test_published_files_are_known_with_their_size(
    name: str, kind: str, size: str | None, tokens: str, pixels: int | None
) -> None:
    found = inspection._describe(meta_file(name))
    assert [found[key] for key in ("kind", "size_name", "tokens", "image_size")] == [kind, size, tokens, pixels]
    assert found["problems"] == []


# --- how it lies


@pytest.mark.parametrize(
    ("wrapping", "form", "beside"),
    [
        ("bare", "bare", []),
        ("model", "under 'model'", []),
        ("deepspeed", "under 'module'", ["global_steps"]),
        ("state_dict", "under 'state_dict'", []),
        ("training", "under 'model'", ["optimizer", "steps", "args"]),
        ("var trainer", "under 'trainer/var_wo_ddp'", ["epoch", "args", "trainer/config"]),
        ("cca trainer", "under 'trainer'", ["epoch"]),
    ],
)
def test_every_wrapping_is_told_with_what_is_beside(
    wrapping: str, form: str, beside: list[str], tmp_path: Path
) -> None:
    torch.save(WRAPPINGS[wrapping](dict(tiny_llamagen().state_dict())), tmp_path / "x.pt")
    found = inspect(tmp_path / "x.pt")
    assert (found.form, found.beside) == (f"torch file, {form}", beside)
    assert (found.kind, found.problems) == ("llamagen", [])
    assert found.bytes == (tmp_path / "x.pt").stat().st_size


def test_safetensors_and_folders_are_told(tmp_path: Path) -> None:
    tensors = dict(tiny_llamagen().state_dict())
    save_file(tensors, tmp_path / "x.safetensors")
    assert inspect(tmp_path / "x.safetensors").form == "safetensors"
    (tmp_path / "one").mkdir()
    save_file(tensors, tmp_path / "one" / "model.safetensors")
    assert inspect(tmp_path / "one").form == "a folder with one weight file"
    shard(tmp_path / "sharded", "safetensors")
    found = inspect(tmp_path / "sharded")
    assert (found.form, found.kind) == ("a folder of 2 weight files", "llamagen")
    assert found.bytes == sum(path.stat().st_size for path in (tmp_path / "sharded").iterdir())


def test_the_grid_that_a_training_file_or_its_rotary_table_tells(bare: Path, tmp_path: Path) -> None:
    found = inspect(bare)
    assert found.tokens == "4 (2x2)"
    assert found.odd == [HEADS, "freqs_cis: a rotary table, which is computed anew and written back"]
    told = {"model": dict(tiny_llamagen().state_dict()), "args": {"image_size": 48, "downsample_size": 8}}
    torch.save(told, tmp_path / "t.pt")
    assert (inspect(tmp_path / "t.pt").tokens, inspect(tmp_path / "t.pt").odd) == ("36 (6x6)", [HEADS])


def test_digests(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ("sha256", hashlib.sha256(bare.read_bytes()).hexdigest())
    assert inspect(bare).digest == whole
    assert identify(bare) == {"name": "bare.pt", "bytes": bare.stat().st_size, "sha256": whole[1]}
    monkeypatch.setattr(fingerprints, "HASHED_WHOLE", 1000)
    kind, fingerprint = inspect(bare).digest
    assert (kind, len(fingerprint)) == ("fingerprint", 64)
    assert digest_of(bare, whole=True) == whole
    assert identify(bare)["fingerprint"] == fingerprint
    # another name leaves it, another last bit of one number does not
    bare.rename(tmp_path / "moved.pt")
    assert inspect(tmp_path / "moved.pt").digest == (kind, fingerprint)
    tensors = torch.load(tmp_path / "moved.pt", weights_only=True)
    tensors["output.weight"].view(torch.int32)[3, 5] ^= 1
    torch.save(tensors, tmp_path / "other.pt")
    assert inspect(tmp_path / "other.pt").digest != (kind, fingerprint)
    for suffix, number in (("first", 1.0), ("second", 2.0)):
        save_file({**tensors, "norm.weight": torch.full((16,), number)}, tmp_path / f"{suffix}.safetensors")
    assert inspect(tmp_path / "first.safetensors").digest != inspect(tmp_path / "second.safetensors").digest


# --- what is odd, and what is wrong


def test_mixed_dtypes_are_counted(tmp_path: Path) -> None:
    found = inspect(changed(tmp_path, lambda t: t.update({"norm.weight": t["norm.weight"].half()})))
    assert dict(found.dtypes) == {"float32": len(tiny_llamagen().state_dict()) - 1, "float16": 1}
    assert found.problems == []


def test_numbers_that_no_trained_weights_have(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["output.weight"][-1, -1] = torch.nan
        tensors["norm.weight"][0] = torch.inf
        tensors["tok_embeddings.weight"].zero_()

    remarks = inspect(changed(tmp_path, spoil)).odd[2:]
    assert remarks == [
        "not finite: 2 tensors, norm.weight, output.weight",
        "all zero where looked at: 1 tensors, tok_embeddings.weight",
    ]


def test_large_tensors_are_looked_at_from_end_to_end() -> None:
    for place, length in ((0, 1), (511, 1), (40_000, 20_000), (99_999, 1)):
        tensor = torch.ones(100, 1000)
        tensor.view(-1)[place : place + length] = torch.nan
        assert inspection._odd_values({"x": tensor}) == ["not finite: 1 tensors, x"]


def test_masks_may_be_infinite() -> None:
    assert inspection._odd_values({"attn_bias_for_masking": torch.tensor([[0.0, -torch.inf]])}) == []
    assert inspection._odd_values({"attn_bias_for_masking": torch.tensor([[0.0, torch.nan]])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.weight"), "1 missing: norm.weight"),
        (lambda t: t.update({"layers.0.extra": torch.ones(1)}), "1 unexpected: layers.0.extra"),
        (
            lambda t: t.update({"layers.1.attention.wo.weight": torch.ones(3, 3)}),
            "1 mis-shaped: layers.1.attention.wo.weight is [3, 3], should be [16, 16]",
        ),
        (lambda t: t.pop("tok_embeddings.weight"), "it has no tensor 'tok_embeddings.weight'"),
    ],
)
def test_what_does_not_fit_is_a_problem(
    change: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed(tmp_path, change)
    found = inspect(path)
    assert found.kind == "llamagen"
    assert message in found.problems[0]
    assert main(["inspect", str(path)]) == 1
    output = capsys.readouterr()
    assert f"error: {path} cannot be loaded: " in output.err
    assert message in output.err
    assert "a generator: llamagen" in output.out  # what could be told is told all the same


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.ones(2), "bias": torch.ones(2)}, "no family that is known has such tensors: bias, weight"),
        ({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, "these are LoRA adapters, not a generator"),
    ],
)
def test_what_is_neither_generator_nor_tokenizer(tensors: Any, message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    found = inspect(tmp_path / "x.safetensors")
    assert found.kind is None
    assert message in found.problems[0]


# --- speed


def test_modules_without_numbers_have_their_names_and_shapes() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2), nn.LayerNorm(2), nn.Conv2d(2, 2, 3))

    with shapes_only():
        found = build().state_dict()
    expected = build().state_dict()
    assert {name: (t.shape, t.dtype) for name, t in found.items()} == {
        name: (t.shape, t.dtype) for name, t in expected.items()
    }
    assert all(tensor.is_meta for tensor in found.values())
    assert torch.ones(2).device.type == "cpu"


@pytest.mark.slow
def test_inspection_imports_nothing_slow(tmp_path: Path) -> None:
    """Each of these costs a second or more, of the three that there are."""
    torch.save({"model": dict(tiny_llamagen().state_dict())}, tmp_path / "t.pt")
    slow = ("transformers", "accelerate", "datasets", "sympy")
    check = (
        "import sys; from recipes.cli import main; assert main(['inspect', sys.argv[1]]) == 0; "
        f"sys.exit(', '.join(name for name in {slow} if name in sys.modules) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", check, tmp_path / "t.pt"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
