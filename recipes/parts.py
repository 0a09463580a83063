"""From a configuration to the parts that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from align.checkpoints import load_generator, zoo_entry
from align.files import sha256_of_tensors
from align.generators import Generator
from align.training.adapters import merge_saved_adapters
from align.training.inputs import Objective
from align.types import SamplingConfig
from evaluation.classifier import load_classifier
from evaluation.protocol import Protocol, Reference, self_check
from recipes.exports import resolve_checkpoint
from recipes.run import pick_device
from rewards.base import DistributionReward, Gate, Reward, RewardFunction
from rewards.combine import Ensemble, RewardSet
from rewards.registry import load_reward

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "file": None}
# a reward's keyword -> the zoo entry's file that zoo:NAME means there
ZOO_FILES = {"weights": "reward", "extractor": "reward", "reference": "reward_reference"}
# rewards of this process by their settings: models are read once
_loaded: dict[str, RewardFunction | DistributionReward] = {}


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
    if config.adapter is not None:
        merge_saved_adapters(generator, Path(config.adapter))
    return generator


def make_sampling(config: DictConfig) -> SamplingConfig:
    return SamplingConfig(**OmegaConf.to_container(config))  # type: ignore[arg-type]


def tokenizer_hash(generator: Generator) -> str | None:
    """sha256 of the weights of a generator's tokenizer; None without one."""
    tokenizer = getattr(generator, "tokenizer", None)
    return None if tokenizer is None else sha256_of_tensors(tokenizer.state_dict())


def make_rewards(config: DictConfig) -> RewardSet:
    """The rewards of a `reward:` section, none for an empty list.

    An entry is a reward, {name, label, weight, kwargs, worker, gate}, or an ensemble of others by their labels,
    {ensemble, name, weight, penalty}. kwargs of the form zoo:NAME are that zoo entry's files, see `ZOO_FILES`. What was
    loaded before with equal settings in this process is used again.

    Raises:
        ValueError: an entry of another form, a name twice, or what `load_reward` and `RewardSet` refuse.
    """
    rewards: list[Reward] = []
    ensembles: list[Ensemble] = []
    for entry in OmegaConf.to_container(config.rewards):  # type: ignore[union-attr]
        if not isinstance(entry, dict) or not ("name" in entry and entry.keys() <= _allowed(entry)):
            raise ValueError(
                f"reward.rewards holds {entry!r}; each reward is {{name: NAME, weight: 1.0, kwargs: {{...}}}}, the last two if needed, with "
                "label, worker and gate as further settings; an ensemble is {ensemble: [NAME, NAME], name: NAME, weight: 1.0, penalty: 1.0}"
            )
        label = str(entry.get("label") or entry["name"])
        weight = _number(label, "weight", entry.get("weight", 1.0), "0: log only")
        if "ensemble" in entry:
            penalty = _number(label, "penalty", entry.get("penalty", 1.0), "standard deviations taken off the mean")
            ensembles.append(Ensemble(label, tuple(map(str, entry["ensemble"])), penalty, weight))
        else:
            rewards.append(Reward(label, _load(entry), weight, _gate(label, entry.get("gate"))))
    return RewardSet(tuple(rewards), tuple(ensembles))


def _allowed(entry: Mapping[str, Any]) -> set[str]:
    own = {"ensemble", "penalty"} if "ensemble" in entry else {"label", "kwargs", "worker", "gate"}
    return {"name", "weight", *own}


def _number(label: str, name: str, value: Any, hint: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"reward {label!r} has {name} {value!r}; it must be a number ({hint})")
    return float(value)


def _gate(label: str, section: Any) -> Gate | None:
    if section is None:
        return None
    if not isinstance(section, dict) or section.keys() != {"reward", "at_least"}:
        raise ValueError(f"the gate of reward {label!r} is {section!r}; it is {{reward: NAME, at_least: 1.0}}")
    return Gate(str(section["reward"]), _number(label, "a gate at_least", section["at_least"], "of the other reward"))


def _load(entry: Mapping[str, Any]) -> RewardFunction | DistributionReward:
    name, kwargs = str(entry["name"]), dict(entry.get("kwargs") or {})
    for key, value in kwargs.items():
        if isinstance(value, str) and value.startswith("zoo:") and key in ZOO_FILES:
            kwargs[key] = str(zoo_file(value, ZOO_FILES[key]))
    file = Path(name.rpartition(":")[0])
    version = file.read_text() if file.suffix == ".py" and file.is_file() else None
    identity = json.dumps([name, version, kwargs, entry.get("worker")], sort_keys=True, default=str)
    if identity not in _loaded:
        if entry.get("worker") is None:
            _loaded[identity] = load_reward(name, **kwargs)
        else:
            from rewards.client import load_worker_reward

            _loaded[identity] = load_worker_reward(name, kwargs, entry["worker"])
    return _loaded[identity]


def make_objective(config: DictConfig) -> Objective:
    try:
        return instantiate(config)
    except Exception as error:
        raise ValueError(
            f"cannot build the objective {config.get('_target_')}: {str(error).splitlines()[0]}"
        ) from error


def make_protocol(reference: str) -> Protocol:
    """The evaluation protocol that comes with a zoo entry, as `zoo:NAME`; its real-against-real check is run first.

    An entry may name another one's protocol instead of its own, so that their figures compare.
    """
    if not reference.startswith("zoo:"):
        raise ValueError(f"unknown protocol {reference!r}; use zoo:NAME, the protocol of a zoo entry")
    folder = zoo_entry(reference.removeprefix("zoo:"))
    entry = json.loads((folder / "config.json").read_text())["protocol"]
    if isinstance(entry, str):
        return make_protocol(entry)
    extractor = load_classifier(folder / entry["extractor"]).to(pick_device()).eval()
    protocol = Protocol(entry["name"], extractor, Reference.load(folder / entry["reference"]))
    self_check(protocol)
    return protocol


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
