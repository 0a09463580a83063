"""From the `reward:` section of a configuration to the rewards that it names."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from evaluation.classifier import load_classifier
from recipes.parts import zoo_file
from recipes.run import pick_device
from rewards.base import DistributionReward, Gate, Reward, RewardFunction
from rewards.builtin.classifier import classifier_log_prob
from rewards.combine import Ensemble, RewardSet
from rewards.registry import load_reward

# a reward's keyword, or one in its detector_kwargs and the like -> the zoo entry's file that zoo:NAME means there
ZOO_FILES = {"weights": "reward", "reference": "reward_reference", "path": "judge"}
# rewards of this process by their settings: models are read once
_loaded: dict[str, RewardFunction | DistributionReward] = {}


def make_rewards(config: DictConfig) -> RewardSet:
    """The rewards of a `reward:` section, none for an empty list.

    An entry is a reward, {name, label, weight, kwargs, worker, gate}, or an ensemble of others by their labels,
    {ensemble, name, weight, penalty}. kwargs of the form zoo:NAME are that zoo entry's files, see `ZOO_FILES`. What was
    loaded before with equal settings in this process is used again.

    Raises:
        ValueError: an entry of another form, a name twice, or what `load_reward` and `RewardSet` refuse.
    """
    if torch.cuda.is_available():
        # rewards and their workers take the current GPU, nothing has chosen it yet
        torch.cuda.set_device(pick_device())
    rewards: list[Reward] = []
    ensembles: list[Ensemble] = []
    for entry in OmegaConf.to_container(config.rewards, resolve=True):  # type: ignore[union-attr]
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


def reward_facts(rewards: RewardSet) -> list[dict[str, Any]]:
    """What a run's record says of its rewards; those that hold a model tell its fingerprint."""
    facts, held_out = [], rewards.names(trained=False)
    for reward in rewards.rewards:
        own = {
            "name": reward.name,
            "kind": reward.kind,
            "weight": reward.weight,
            "held_out": reward.name in held_out,
        }
        fingerprint = reward_fingerprint(reward.function)
        facts.append({**own, **({"fingerprint": fingerprint} if fingerprint else {})})
    return facts


def reward_fingerprint(function: RewardFunction | DistributionReward) -> str | None:
    """Of the model that a reward judges by; None for one without a model."""
    if isinstance(function, functools.partial) and function.func is classifier_log_prob:
        return load_classifier(function.keywords["weights"]).fingerprint
    return getattr(function, "fingerprint", None)


def optimised(rewards: list[dict[str, Any]]) -> frozenset[str]:
    """Fingerprints of those that were trained on, of what `reward_facts` tells."""
    return frozenset(one["fingerprint"] for one in rewards if one.get("fingerprint") and not one["held_out"])


def optimised_in(generator: DictConfig) -> frozenset[str]:
    """The same of the runs that a `generator:` section's checkpoint or adapter comes from, and of those before them; nothing
    is known of files from elsewhere."""
    found: frozenset[str] = frozenset()
    for path in (generator.checkpoint, generator.get("adapter")):
        for folder in (Path(path), Path(path).parent) if path else ():
            if (folder / "run.json").exists():
                found |= set(json.loads((folder / "run.json").read_text()).get("optimised") or [])
                break
    return found


def close_rewards() -> None:
    """End the workers that rewards of this process have started. Their threads need a living interpreter for it."""
    for identity, reward in list(_loaded.items()):
        if (close := getattr(reward, "close", None)) is not None:
            del _loaded[identity]
            close()


def with_zoo_files(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the paths of zoo entries' files in place of zoo:NAME, see `ZOO_FILES`; other values as they are."""
    found = dict(kwargs)
    for key, value in kwargs.items():
        if isinstance(value, dict):
            found[key] = with_zoo_files(value)
        elif isinstance(value, str) and value.startswith("zoo:") and key in ZOO_FILES:
            found[key] = str(zoo_file(value, ZOO_FILES[key]))
    return found


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
    name, kwargs = str(entry["name"]), with_zoo_files(entry.get("kwargs") or {})
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
