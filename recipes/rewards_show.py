"""Show what a reward does, its settings, and the line that trains on it: align rewards show NAME"""

from __future__ import annotations

import inspect
from typing import Any

from recipes.rewards_list import from_where
from rewards.base import DistributionReward, kind_of
from rewards.catalog import catalog
from rewards.environments import ENVIRONMENTS
from rewards.registry import find_reward


def main(words: list[str]) -> None:
    if len(words) != 1:
        raise ValueError(
            f"align rewards show takes one name, of `align rewards list` or path/to/file.py:function; got {' '.join(words) or 'nothing'}"
        )
    name = words[0]
    found = find_reward(name)
    settings = settings_of(found)
    print(f"{name}, a reward of {KINDS[_kind(found)]}")
    print(
        next((f"{from_where(entry)} ({entry.value})" for entry in catalog() if entry.name == name), "a file of yours")
    )
    print(f"\n{inspect.getdoc(found) or 'It has no docstring.'}\n")
    print("settings:" if settings else "It has no settings.")
    for setting in settings:
        print(f"  {shown(setting)}")
    uses = [module for entry in catalog() if entry.name == name for module in entry.uses]
    worker = next((own for own, environment in ENVIRONMENTS.items() if environment.module in uses), None)
    print(
        f"\nTo train on it:\n  align train experiment=mnist/grpo 'reward.rewards=[{example(name, settings, worker)}]'"
    )


KINDS = {
    "image": "an image",
    "group": "the images of one prompt, which it compares",
    "distribution": "the whole batch of a training step",
}


def _kind(found: Any) -> str:
    if inspect.isclass(found) and issubclass(found, DistributionReward):
        return "distribution"
    return kind_of(found)


def settings_of(found: Any) -> list[inspect.Parameter]:
    """What kwargs may set: a class's keywords, or a function's after images and conditions."""
    parameters = list(inspect.signature(found).parameters.values())
    return parameters if inspect.isclass(found) else parameters[2:]


def shown(setting: inspect.Parameter) -> str:
    """`batch_size=32  (int)`, `weights  (str | Path, required)`."""
    kind = "" if setting.annotation is setting.empty else inspect.formatannotation(setting.annotation).strip("'")
    if setting.default is setting.empty:
        return f"{setting.name}  ({', '.join(filter(None, [kind, 'required']))})"
    return f"{setting.name}={setting.default}" + (f"  ({kind})" if kind else "")


def example(name: str, settings: list[inspect.Parameter], environment: str | None = None) -> str:
    """The entry of a recipe, with the settings that have no default."""
    required = [f"{setting.name}: ..." for setting in settings if setting.default is setting.empty]
    parts = [f'name: "{name}"' if ":" in name else f"name: {name}"]
    if required:
        parts.append(f"kwargs: {{{', '.join(required)}}}")
    if environment is not None:
        parts.append(f"worker: {{environment: {environment}}}")
    return f"{{{', '.join(parts)}}}"
