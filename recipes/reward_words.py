"""The words behind `align rewards score` and `check`: names, key=value settings, and the reward they make."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

SETTING = re.compile(r"(-{0,2})([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)
SECTIONS = ("kwargs", "worker", "row")
SHORT = {"prompt": "row.prompt", "label": "row.label"}


@dataclass
class Words:
    """names: words that are no settings; kwargs, worker, row: sections of settings; settings: the command's own."""

    names: list[str] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    worker: dict[str, Any] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def read_words(words: Iterable[str], known: Mapping[str, Any]) -> Words:
    """Sort words. A setting is key=value or --key value; values are read as YAML, prompts and other texts as they are.

    Args:
        known: the command's own settings and their defaults; one that is False may stand alone as --key.

    Raises:
        ValueError: an unknown setting, one without its value, or a value of another kind than the default's.
    """
    found = Words(settings=dict(known))
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if (match := SETTING.fullmatch(word)) is not None:
            _put(found, match[2], match[3], known)
        elif word.startswith("--"):
            key = word.removeprefix("--")
            if known.get(key) is False:
                found.settings[key] = True
            elif not rest:
                raise ValueError(f"{word} needs a value: {word} VALUE, or {key}=VALUE")
            else:
                _put(found, key, rest.pop(0), known)
        else:
            found.names.append(word)
    return found


def _put(found: Words, key: str, text: str, known: Mapping[str, Any]) -> None:
    section, _, name = SHORT.get(key, key).partition(".")
    if section in SECTIONS and name:
        getattr(found, section)[name] = text if key == "prompt" else _value(key, text)
        return
    if key not in known:
        allowed = [*SHORT, *(f"{section}.NAME" for section in SECTIONS), *known]
        near = difflib.get_close_matches(key, allowed, n=1)
        hint = f". Did you mean {near[0]}=?" if near else ""
        raise ValueError(f"unknown setting {key!r}; known: {', '.join(allowed)}{hint}")
    value, default = _value(key, text), known[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (isinstance(value, bool) if isinstance(default, bool) else number and value > 0):
        raise ValueError(f"{key} is {default} by default; got {text!r}")
    found.settings[key] = value


def _value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(
            f"cannot read the value of {key}={text!r}; put quotes around it, inside the shell's"
        ) from error


def entry_of(name: str, words: Words) -> dict[str, Any]:
    """The entry of `reward.rewards` that these words stand for."""
    entry: dict[str, Any] = {"name": name}
    if words.kwargs:
        entry["kwargs"] = words.kwargs
    if words.worker:
        entry["worker"] = words.worker
    return entry
