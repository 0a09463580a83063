"""What run.json tells of the generator that a training began from: enough to find its files and to load its export."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from align.generators import Generator, PublishedGenerator
from align.inspection import identify

TRAINING = ("dropout", "drop_path")  # keywords of a generator that change nothing in what is sampled


def generator_facts(generator: Generator, config: DictConfig) -> dict[str, Any]:
    """`config` is the `generator:` section that it was made of.

    load: the keywords that `load_generator` takes for the export, whose name does not tell what a published file's does.
    checkpoint, tokenizer: names, sizes and hashes of their files; those of a zoo entry's tokenizer are not told.
    """
    chosen: dict[str, Any] = OmegaConf.to_container(config.config)  # type: ignore[assignment]
    load = {key: value for key, value in chosen.items() if value is not None and key not in TRAINING}
    sizes: Any = getattr(generator, "sizes", None)
    if "grid" in config.config:
        load["grid"] = sizes.grid
    if "schedule" in config.config and "image_size" not in load:
        load |= {"schedule": sizes.schedule, "num_scales": sizes.num_scales}
    facts: dict[str, Any] = {
        "family": generator.family,
        "size": generator.size_name,
        "parameters": sum(parameter.numel() for parameter in generator.parameters()),
        "tokens_per_image": generator.layout.length,
        "num_classes": generator.num_classes,
        "load": {key: _plain(value) for key, value in load.items()},
    }
    if isinstance(generator, PublishedGenerator) and generator.file is not None:
        facts["checkpoint"] = identify(generator.file.path)
    if config.tokenizer_checkpoint is not None:
        facts["tokenizer"] = identify(config.tokenizer_checkpoint)
    return facts


def _plain(value: Any) -> Any:
    """As JSON has it: lists, whatever kind of sequence it was."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
