"""`align train` on files that are not what they were taken for: one line that says what is wrong and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_var

from align.checkpoints import save_tokenizer
from align.data import Codes
from align.files import sha256_of_tensors
from align.tokenizers import VQTokenizer
from recipes.cli import main

OWN = ["generator.config.grid=[3,2]", "generator.config.num_heads=2"]


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").touch, ())


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VQTokenizer:
    """good.pt and vq.pt belong together; every other file has one thing wrong with it."""
    monkeypatch.chdir(tmp_path)
    generator = tiny_llamagen()
    assert generator.tokenizer is not None
    state = generator.state_dict()
    generator.save_published("good.pt")
    save_tokenizer(generator.tokenizer, Path("vq.pt"))
    tiny_var().save_published("var.pt")
    half = Path("good.pt").read_bytes()
    Path("half.pt").write_bytes(half[: len(half) // 2])
    torch.save({"model": state, "note": Payload()}, "code.pt")
    short = {name: tensor for name, tensor in state.items() if "layers.1" not in name}
    short["layers.1.attention.wqkv.weight"] = torch.ones(3, 16)
    torch.save({"model": short}, "short.pt")
    book = generator.tokenizer.state_dict() | {"quantize.embedding.weight": torch.randn(32, 4)}
    torch.save({"model": book}, "book.pt")
    torch.save({"model": generator.tokenizer.state_dict() | {"decoder.conv_out.bias": torch.ones(4)}}, "shape.pt")
    return generator.tokenizer


def error_of(capsys: pytest.CaptureFixture[str], checkpoint: str, *more: str, tokenizer: str = "vq.pt") -> str:
    files = ["generator=llamagen", f"generator.checkpoint={checkpoint}", f"generator.tokenizer_checkpoint={tokenizer}"]
    assert main(["train", "objective=sft", "evaluation=none", "output_dir=run", *files, *OWN, *more]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert not Path("exploded").exists()
    return message


@pytest.mark.parametrize(
    ("checkpoint", "tokenizer", "message"),
    [
        ("vq.pt", "vq.pt", "vq.pt: this is not a LlamaGen generator; it looks like an image tokenizer: pass it as tokenizer_checkpoint"),
        ("var.pt", "vq.pt", "var.pt: this is not a LlamaGen generator; it looks like a VAR generator: load it as var"),
        ("good.pt", "good.pt", "good.pt is no tokenizer but a llamagen generator: pass it as checkpoint"),
        ("good.pt", "book.pt", "good.pt speaks 16 tokens and its tokenizer has 32 codes; they were not trained together, pass the one"),
        ("good.pt", "shape.pt", "shape.pt does not fit a VQTokenizer: 1 mis-shaped: decoder.conv_out.bias is [4], should be [3]"),
        ("half.pt", "vq.pt", "half.pt is not a checkpoint, or was cut short"),
        ("good.pt", "half.pt", "half.pt is not a checkpoint, or was cut short"),
        ("code.pt", "vq.pt", "code.pt carries Python code or objects, and was not run"),
        ("short.pt", "vq.pt", "short.pt does not fit a LlamaGen: 6 missing: layers.1.attention.wo.weight, "),
        ("short.pt", "vq.pt", "1 mis-shaped: layers.1.attention.wqkv.weight is [3, 16], should be [48, 16]"),
        ("nowhere.pt", "vq.pt", "no checkpoint at nowhere.pt"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(checkpoint: str, tokenizer: str, message: str, capsys: Any) -> None:
    assert message in error_of(capsys, checkpoint, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("tokens", "tokenizer", "message"),
    [
        (torch.zeros(4, 4), None, "images of 4 (2x2) tokens; this generator takes 6: were they encoded at another image_size"),
        (torch.full((4, 6), 16), None, "tokens up to 16; the generator knows 0 to 15"),
        (torch.zeros(4, 6), "f" * 64, "was made by another tokenizer (ffffffffffff"),
    ],
)  # fmt: skip
def test_codes_that_do_not_fit(
    tokens: Any, tokenizer: str | None, message: str, files: VQTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = tokenizer or sha256_of_tensors(files.state_dict())
    Codes(tokens.long(), torch.arange(4), digest).save(Path("codes.safetensors"))
    error = error_of(capsys, "good.pt", "data=codes", "data.codes=codes.safetensors")
    assert "codes.safetensors" in error
    assert message in error
