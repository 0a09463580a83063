"""One variant of a training step in a process of its own, for its peak memory: python -m recipes.speed.alone SETTINGS."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def peak_alone(settings: Mapping[str, Any]) -> float:
    """Bytes: of the GPU, or the most that the whole process held, imports included."""
    command = [sys.executable, "-m", "recipes.speed.alone", json.dumps(settings)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise ValueError(f"{settings['variant']} failed alone: {found.stderr.strip().splitlines()[-1]}")
    return float(found.stdout.strip().splitlines()[-1])


def main(argument: str) -> None:
    from recipes.speed import contrastive
    from recipes.speed.machine import peak_bytes, reset_peak
    from recipes.speed.models import make_model

    settings = json.loads(argument)
    torch.set_num_threads(settings["threads"])
    task = contrastive.Task(lambda: make_model(**settings["model"]), settings["trainer"], settings["micro_batch"])
    reset_peak()
    with tempfile.TemporaryDirectory() as folder:
        contrastive.VARIANTS[settings["variant"]](task, Path(folder), lambda: None)
    print(peak_bytes())


if __name__ == "__main__":
    main(sys.argv[1])
