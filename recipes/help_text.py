"""What `--help` tells of a command's settings: their defaults, and what the YAML files say behind them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from hydra import compose, initialize_config_dir

from recipes.choices import CONF, options
from recipes.config import flatten

_SETTING = re.compile(r"( *)(\w+):(.*)")
_PARENT = re.compile(r"^  - (?!_self_)(\w+)$", re.MULTILINE)  # a defaults entry that is no group's


def describe(command: str, words: Iterable[str] = ()) -> str:
    """The groups and settings of a command. `words` may choose among a group's options, as in data=images."""
    text = (CONF / f"{command}.yaml").read_text()
    groups = {folder.name: options(folder.name) for folder in CONF.iterdir() if folder.is_dir()}
    chosen = [word for word in words for group, _, option in [word.partition("=")] if option in groups.get(group, ())]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, chosen, return_hydra_config=True)
    choices = {str(group): option for group, option in config.hydra.runtime.choices.items() if group in groups}
    notes: dict[str, str] = {}
    for parent in _PARENT.findall(text):
        notes |= _notes(CONF / f"{parent}.yaml")
    notes |= _notes(CONF / f"{command}.yaml")
    for group, option in choices.items():
        if option is not None:
            notes |= _notes(CONF / group / f"{option}.yaml", f"{group}.")
    lines = ["choices (one with --help shows its settings):"] if choices else []
    lines += [f"  {group}={{{','.join(groups[group])}}}" for group in sorted(choices)] + [""] * bool(choices)
    lines.append("settings and their defaults:")
    for key, value in flatten(config):
        if not key.startswith("hydra."):
            # as a person has to type it: null, true
            shown = value if isinstance(value, str) else json.dumps(value)
            lines.append(f"  {key}={shown}" + (f"  # {notes[key]}" if key in notes else ""))
    return "\n".join(lines)


def _notes(file: Path, prefix: str = "") -> dict[str, str]:
    """The comment behind each setting of a YAML file, by its dotted key."""
    found: dict[str, str] = {}
    parents: list[str] = []
    for line in file.read_text().splitlines():
        if (match := _SETTING.fullmatch(line)) is None:
            continue
        parents = [*parents[: len(match[1]) // 2], match[2]]
        _, _, note = match[3].partition("  # ")
        if note:
            found[prefix + ".".join(parents)] = note
    return found
