"""LoRA adapters on a generator (Hu et al. 2021, arXiv 2106.09685), by the package peft: on, off, and merged away."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from align.generators.base import Generator
from align.tensor_files import read_tensors, save_tensors

ADAPTER_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # of names in peft's files


def add_adapters(generator: Generator, *, rank: int, alpha: int, seed: int) -> None:
    """Freeze the generator and give each of its linear layers a trainable update of low rank, zero at first.

    Raises:
        ValueError: a rank below 1, or the package peft is not installed.
    """
    if rank < 1:
        raise ValueError(f"lora_rank is {rank}; it must be at least 1, or 0 for no adapters")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("adapters come with the package peft; try: pip install 'ar-align[lora]'") from error
    generator.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, generator)


def has_adapters(generator: Generator) -> bool:
    return any("lora_" in name for name, _ in generator.named_parameters())


@contextlib.contextmanager
def adapters_off(generator: Generator) -> Iterator[None]:
    """The generator as it was before its adapters."""
    layers = _layers(generator)
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merge_adapters(generator: Generator) -> None:
    """Add each update to its layer's weights and remove the adapters: names and shapes are the published ones again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(generator.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(generator.get_submodule(parent), child, module.get_base_layer())
    del generator.peft_config  # what peft remembers of them
    generator.requires_grad_(True)


def save_adapters(generator: Generator, folder: Path) -> None:
    """Write the adapters alone, as peft does for a model of the authors' names (`PeftModel.from_pretrained` reads it).

    Raises:
        OSError: the folder cannot be written.
    """
    from peft import get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    known: Any = generator.peft_config
    config = copy.copy(known["default"])
    config.target_modules = {name for name, module in generator.named_modules() if isinstance(module, BaseTunerLayer)}
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    state = get_peft_model_state_dict(generator, save_embedding_layers=False)
    save_tensors(folder / ADAPTER_FILE, {PEFT_PREFIX + name: tensor for name, tensor in state.items()})


def merge_saved_adapters(generator: Generator, folder: Path) -> None:
    """Add what `save_adapters` wrote to a generator's weights.

    Raises:
        FileNotFoundError, ValueError: no such folder, or adapters of another generator.
    """
    if not (folder / ADAPTER_FILE).exists() or not (folder / "adapter_config.json").exists():
        raise FileNotFoundError(f"no adapters at {folder}; a run with trainer.lora_rank leaves them in its adapter/")
    try:
        from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    except ImportError as error:
        raise ValueError("adapters come with the package peft; try: pip install 'ar-align[lora]'") from error
    saved = read_tensors(folder / ADAPTER_FILE).tensors
    state = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in saved.items()}
    try:
        inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), generator)
        result: Any = set_peft_model_state_dict(generator, state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the adapters in {folder} do not fit this generator: {error}") from error
    if result.unexpected_keys:
        raise ValueError(f"the adapters in {folder} are of another generator: {', '.join(result.unexpected_keys[:3])}")
    merge_adapters(generator)


def _layers(generator: Generator) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in generator.modules() if isinstance(module, BaseTunerLayer)]
