"""LoRA adapters on a generator (Hu et al. 2021, arXiv 2106.09685), by the package peft: on, off, and merged away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from align.generators.base import Generator


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
    generator.requires_grad_(True)


def _layers(generator: Generator) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in generator.modules() if isinstance(module, BaseTunerLayer)]
