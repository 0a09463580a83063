"""From a configuration to the parts that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from align.checkpoints import load_generator
from align.files import sha256_of_tensors
from align.generators import Generator
from align.training.adapters import merge_saved_adapters
from align.training.inputs import Objective
from align.types import SamplingConfig
from align.zoo_entries import zoo_entry
from recipes.exports import resolve_checkpoint
from recipes.run import pick_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "file": None}


def make_generator(config: DictConfig, **extra: Any) -> Generator:
    """The generator of a `generator:` section. A run's folder as checkpoint means its aligned weights."""
    if config.dtype not in DTYPES:
        raise ValueError(f"unknown generator.dtype {config.dtype!r}; known: {', '.join(DTYPES)}")
    chosen: dict[str, Any] = OmegaConf.to_container(config.config)  # type: ignore[assignment]
    settings = {name: value for name, value in chosen.items() if value is not None}
    if "grid" in settings:
        settings["grid"] = tuple(settings["grid"])
    generator = load_generator(
        config.name,
        resolve_checkpoint(config.checkpoint),
        config.tokenizer_checkpoint,
        text_encoder=config.get("text_encoder"),
        device=pick_device(),
        dtype=DTYPES[config.dtype],
        **settings,
        **extra,
    )
    if config.size is not None and generator.size_name != config.size:
        raise ValueError(
            f"{config.checkpoint} is {generator.family} {generator.size_name or 'of an unpublished size'}, and this recipe's settings are for {config.size}. "
            "Choose the experiment of its size, or set generator.size=null to use these settings all the same"
        )
    generator.engine = config.engine
    if config.adapter is not None:
        merge_saved_adapters(generator, Path(config.adapter))
    return generator


def make_sampling(config: DictConfig) -> SamplingConfig:
    return SamplingConfig(**OmegaConf.to_container(config))  # type: ignore[arg-type]


def tokenizer_hash(generator: Generator) -> str | None:
    """sha256 of the weights of a generator's tokenizer; None without one."""
    tokenizer = getattr(generator, "tokenizer", None)
    return None if tokenizer is None else sha256_of_tensors(tokenizer.state_dict())


def make_objective(config: DictConfig) -> Objective:
    try:
        return instantiate(config)
    except Exception as error:
        raise ValueError(
            f"cannot build the objective {config.get('_target_')}: {str(error).splitlines()[0]}"
        ) from error


def zoo_file(reference: str, key: str) -> Path:
    """A file of the zoo entry `zoo:NAME`, by its key in config.json, which may name another entry's (`zoo:OTHER`).

    Raises:
        ValueError: an entry without it.
    """
    folder = zoo_entry(reference.removeprefix("zoo:"))
    entry = json.loads((folder / "config.json").read_text())
    if key not in entry:
        raise ValueError(f"{reference} comes without {key!r}; its config.json has {', '.join(entry)}")
    return zoo_file(entry[key], key) if entry[key].startswith("zoo:") else folder / entry[key]


def use_bf16(precision: str) -> bool:
    """Whether `trainer.precision` means reduced precision on this machine."""
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"trainer.precision is {precision!r}; known: auto, bf16, fp32")
    available = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return available if precision == "auto" else precision == "bf16"


def num_classes(generator: Generator) -> int:
    if generator.num_classes is None:
        raise ValueError(f"a {generator.family} generator has no classes to balance samples over")
    return generator.num_classes
