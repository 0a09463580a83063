"""Build the Python environment of a reward whose packages do not go with the trainer's: align rewards env NAME

For example: align rewards env image-reward
Then: a reward with worker: {environment: image-reward}

Without a name: which there are, and which of them are built.

folder=PATH  where; the default is ar-align/environments/NAME in the user's cache folder
python=PATH  an interpreter to build it for; torch is then installed anew. The default is this one, with its torch shared
"""

from __future__ import annotations

import time
from pathlib import Path

from rewards.environments import ENVIRONMENTS, build_environment, interpreter

SETTINGS = ("folder", "python")


def main(words: list[str]) -> None:
    names = [word for word in words if "=" not in word]
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    if unknown := sorted(set(settings) - set(SETTINGS)):
        raise ValueError(f"unknown setting {unknown[0]!r}; align rewards env takes {' and '.join(SETTINGS)}")
    if not names and not settings:
        for name in ENVIRONMENTS:
            print(f"{name:<20}{_state(name)}")
        return
    if len(names) != 1:
        raise ValueError(f"which environment? Name one of: {', '.join(ENVIRONMENTS)}; got {' '.join(names) or 'none'}")
    started = time.monotonic()
    folder = Path(settings["folder"]).expanduser() if "folder" in settings else None
    python = build_environment(names[0], folder, settings.get("python"))
    print(f"ready in {time.monotonic() - started:.0f} s: {python}")
    worker = f"{{python: {python}}}" if folder else f"{{environment: {names[0]}}}"
    print(f"name it in a reward's settings as worker: {worker}")


def _state(name: str) -> str:
    try:
        return str(interpreter(name))
    except ValueError as problem:
        return str(problem)
