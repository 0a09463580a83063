"""Commands of several kinds: `align data encode`, `align rewards list`, `align bench train`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from types import ModuleType


def module_of_kind(command: str, kinds: Mapping[str, str], words: list[str]) -> ModuleType:
    """The module that the first word after a command names; it has main(words).

    Raises:
        ValueError: no word, or an unknown one.
    """
    if words and words[0] in kinds:
        return importlib.import_module(kinds[words[0]])
    near = difflib.get_close_matches(words[0], kinds, n=1) if words else []
    problem = f"unknown: align {command} {words[0]}" if words else f"align {command} does several things"
    hint = f". Did you mean: align {command} {near[0]}?" if near else f"; see align {command} --help"
    raise ValueError(f"{problem}; known: {', '.join(kinds)}{hint}")
