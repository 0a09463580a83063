"""What training leaves in a file: tensors that were trained have changed, and every other bit is as it was."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_llamagen_t2i, tiny_var
from torch import Tensor
from training.harness import train

from align import load_generator
from align.generators import PublishedGenerator
from align.tensor_files import read_tensors
from align.training.adapters import PEFT_PREFIX, add_adapters, merge_adapters, save_adapters

FAMILIES: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    "llamagen": ("llamagen", tiny_llamagen, {"grid": (3, 2), "num_heads": 2}),
    "var": ("var", tiny_var, {}),
    "var-shared": ("var", lambda: tiny_var(shared_adaln=True), {}),
}


def loaded(name: str, folder: Path) -> Any:
    """A generator from a training file, whose weights are stored in two dtypes beside what else such files hold."""
    family, make, untold = FAMILIES[name]
    generator = make()
    tensors = {key: tensor.clone() for key, tensor in generator.state_dict().items()}
    narrow = next(key for key, tensor in tensors.items() if tensor.dim() == 2 and "weight" in key)
    tensors[narrow] = tensors[narrow].to(torch.bfloat16)
    if family == "llamagen":
        tensors["freqs_cis"] = torch.randn(7, 2, 2)
    content = {"model": tensors, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1), "steps": 7}
    with (folder / "in.pt").open("wb") as file:  # by handle, as ours are written: the bytes do not depend on the name
        torch.save(content, file)
    found = load_generator(family, folder / "in.pt", **untold)
    assert isinstance(found, PublishedGenerator)
    if family == "var":
        found.attach(generator.tokenizer)
    return found


def changed(folder: Path) -> set[str]:
    """Names of the tensors whose bits differ; all else of the two files must be equal."""
    before, after = read_tensors(folder / "in.pt"), read_tensors(folder / "out.pt")
    assert list(before.tensors) == list(after.tensors)
    assert [t.dtype for t in before.tensors.values()] == [t.dtype for t in after.tensors.values()]
    assert before.wrapper == after.wrapper == "model"
    rest = [{key: value for key, value in file.content.items() if key != "model"} for file in (before, after)]
    assert rest[0] == rest[1]
    return {name for name in before.tensors if not same(before.tensors[name], after.tensors[name])}


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_training_nothing_differs(family: str, tmp_path: Path) -> None:
    loaded(family, tmp_path).save_published(tmp_path / "out.pt")
    assert (tmp_path / "in.pt").read_bytes() == (tmp_path / "out.pt").read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_only_trained_tensors_differ(family: str, tmp_path: Path) -> None:
    """A run with two parts frozen: neither they nor buffers, tables and the file's other contents change."""
    generator = loaded(family, tmp_path)
    frozen = {name for name, _ in list(generator.named_parameters())[:2]}
    for name in frozen:
        generator.get_parameter(name).requires_grad_(False)
    train(tmp_path / "run", "sft", generator=generator, supplies={"reference": None}, max_steps=2)
    generator.save_published(tmp_path / "out.pt")
    parameters = {name for name, _ in generator.named_parameters()}
    assert changed(tmp_path) == parameters - frozen
    assert len(read_tensors(tmp_path / "in.pt").tensors) > len(parameters)  # there are others


@pytest.mark.parametrize("family", FAMILIES)
def test_only_adapted_tensors_differ_after_merging(family: str, tmp_path: Path) -> None:
    generator = loaded(family, tmp_path)
    add_adapters(generator, rank=2, alpha=4, seed=1)
    train(tmp_path / "run", "sft", generator=generator, supplies={"reference": None}, max_steps=2)
    save_adapters(generator, tmp_path / "adapter")
    merge_adapters(generator)
    generator.save_published(tmp_path / "out.pt")
    adapter = read_tensors(tmp_path / "adapter" / "adapter_model.safetensors").tensors
    adapted = {name.removeprefix(PEFT_PREFIX).split(".lora_")[0] + ".weight" for name in adapter}
    # the adapters alone: each of low rank, and none of the generator's own weights
    assert all(".lora_" in name and 2 in tensor.shape for name, tensor in adapter.items())
    found = changed(tmp_path)
    assert found
    assert found <= adapted
    # of a tensor in bfloat16 small updates may round away
    before = read_tensors(tmp_path / "in.pt").tensors
    assert {name for name in adapted if before[name].dtype == torch.float32} <= found


def test_the_null_caption_is_not_trained(tmp_path: Path) -> None:
    """It is a buffer of the text-to-image file; an optimiser over all parameters leaves it."""
    torch.save({"model": tiny_llamagen_t2i().state_dict()}, tmp_path / "in.pt")
    generator = load_generator("llamagen-t2i", tmp_path / "in.pt", grid=(3, 2), num_heads=2)
    assert isinstance(generator, PublishedGenerator)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.5)
    generator.save_published(tmp_path / "out.pt")
    parameters = {name for name, _ in generator.named_parameters()}
    assert changed(tmp_path) == parameters
    assert set(read_tensors(tmp_path / "in.pt").tensors) - parameters == {"cls_embedding.uncond_embedding"}
