"""Results as a person reads them and as a file keeps them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from align.files import write_text
from recipes.run import describe_device
from recipes.speed.machine import versions


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def facts(kind: str, overrides: list[str]) -> dict[str, Any]:
    """What a figure means nothing without."""
    return {
        "command": f"align bench {kind} {shlex.join(overrides)}".strip(),
        "device": describe_device(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def tell(found: dict[str, Any], table: str, results: str | None) -> None:
    """Print the table under the machine's facts, and write all of it where `results` says."""
    packages = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    print(f"{found['device']}; {found['threads']} threads; {packages}\n\n{table}")
    if results is not None:
        write_text(Path(results), json.dumps(found, indent=2) + "\n")
