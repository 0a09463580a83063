"""From a configuration to the parts that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from align.checkpoints import load_generator, zoo_entry
from align.data import Codes
from align.files import sha256_of_tensors
from align.generators import Generator
from align.training.contrast import Objective
from align.types import SamplingConfig
from evaluation.classifier import load_classifier
from evaluation.protocol import Protocol, Reference, self_check
from recipes.run import pick_device

EXPORT_FILE = "generator.pt"  # the aligned generator in a run's folder, in the published format


def make_generator(config: DictConfig, **extra: Any) -> Generator:
    """The generator of a `generator:` section. A run's folder as checkpoint means its aligned weights."""
    checkpoint = config.checkpoint
    if checkpoint is not None and Path(checkpoint).is_dir():
        checkpoint = Path(checkpoint) / EXPORT_FILE
        if not checkpoint.exists():
            raise FileNotFoundError(
                f"{checkpoint.parent} holds no {EXPORT_FILE}; is the run finished? Go on with resume=auto"
            )
    settings: dict[str, Any] = {str(key): value for key, value in config.config.items() if value is not None}
    if "grid" in settings:
        settings["grid"] = tuple(settings["grid"])
    return load_generator(
        config.name, checkpoint, config.tokenizer_checkpoint, device=pick_device(), **settings, **extra
    )


def make_sampling(config: DictConfig) -> SamplingConfig:
    return SamplingConfig(**OmegaConf.to_container(config))  # type: ignore[arg-type]


def make_codes(reference: str, generator: Generator) -> Codes:
    """Token codes from a file, or `zoo:NAME` for those that come with a zoo entry."""
    codes = Codes.load(zoo_file(reference, "codes") if reference.startswith("zoo:") else reference)
    if codes.tokens_NL.shape[1] != generator.layout.length or codes.tokens_NL.max() >= generator.vocab_size:
        raise ValueError(
            f"{reference}: images of {codes.tokens_NL.shape[1]} tokens up to {codes.tokens_NL.max()}; the generator takes {generator.layout.length} tokens below {generator.vocab_size}"
        )
    tokenizer = getattr(generator, "tokenizer", None)
    if tokenizer is not None and (found := sha256_of_tensors(tokenizer.state_dict())) != codes.tokenizer:
        raise ValueError(
            f"{reference} was made by another tokenizer ({codes.tokenizer[:12]}, the generator's is {found[:12]}); encode the images again with this one"
        )
    return codes


def make_objective(config: DictConfig) -> Objective:
    try:
        return instantiate(config)
    except Exception as error:
        raise ValueError(
            f"cannot build the objective {config.get('_target_')}: {str(error).splitlines()[0]}"
        ) from error


def make_protocol(reference: str) -> Protocol:
    """The evaluation protocol that comes with a zoo entry, as `zoo:NAME`; its real-against-real check is run first."""
    if not reference.startswith("zoo:"):
        raise ValueError(f"unknown protocol {reference!r}; use zoo:NAME, the protocol of a zoo entry")
    folder = zoo_entry(reference.removeprefix("zoo:"))
    entry = json.loads((folder / "config.json").read_text())["protocol"]
    extractor = load_classifier(folder / entry["extractor"]).to(pick_device()).eval()
    protocol = Protocol(entry["name"], extractor, Reference.load(folder / entry["reference"]))
    self_check(protocol)
    return protocol


def zoo_file(reference: str, key: str) -> Path:
    folder = zoo_entry(reference.removeprefix("zoo:"))
    return folder / json.loads((folder / "config.json").read_text())[key]


def num_classes(generator: Generator) -> int:
    if generator.num_classes is None:
        raise ValueError(f"a {generator.family} generator has no classes to balance samples over")
    return generator.num_classes
