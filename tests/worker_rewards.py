"""Rewards that tests run in workers. Like any reward of a foreign environment they know numpy, and nothing of ours."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

Rows = list[dict[str, Any]]


def mean(images: np.ndarray, conditions: Rows, *, scale: float = 1.0, weights: str = "") -> Any:
    return np.asarray(images).mean(axis=(1, 2, 3)) * scale


class Made:
    def __init__(self, *, scale: float) -> None:
        if scale < 0:
            raise ValueError(f"scale is {scale}")
        self.scale = scale

    def __call__(self, images: np.ndarray, conditions: Rows) -> Any:
        return mean(images, conditions, scale=self.scale)


def rank(images: np.ndarray, conditions: Rows) -> Any:
    return np.full(len(images), len(images))


rank.kind = "group"  # type: ignore[attr-defined]


def column(images: np.ndarray, conditions: Rows) -> Any:
    return [row["value"] for row in conditions]


def partial(images: np.ndarray, conditions: Rows) -> Any:
    valid = np.array(["broken" not in row for row in conditions])
    return SimpleNamespace(values=np.arange(len(images)), valid=valid, error="image 1 is broken")


def act(images: np.ndarray, conditions: Rows) -> Any:
    """The mean, but what a row's "do" says happens first; with a "flag", only while that file is there."""
    for row in conditions:
        if "log" in row:
            with Path(row["log"]).open("a") as log:
                log.write(f"{os.getpid()}\n")
        if "flag" in row:
            if not Path(row["flag"]).exists():
                continue
            Path(row["flag"]).unlink()
        if row.get("do") == "few":
            return [0.0] * (len(images) - 1)
        if "do" in row:
            ACTIONS[row["do"]]()
    return mean(images, conditions)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(60)


def nap() -> None:
    time.sleep(0.1)


def chatter() -> None:
    print("a library that talks")
    os.write(1, b"from below Python\n")
    subprocess.run(["echo", "and from a process"], check=True)


def garble() -> None:
    """Write into the very stream that carries the answers."""
    for descriptor in range(3, 20):
        try:
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.write(descriptor, b"no frame at all, and longer than one")
        except OSError:
            continue


def leave() -> None:
    raise SystemExit(3)


def complain() -> None:
    raise KeyError("prompt")


ACTIONS = {
    "die": die,
    "hang": hang,
    "nap": nap,
    "chatter": chatter,
    "garble": garble,
    "leave": leave,
    "complain": complain,
}


def bear_and_hang(images: np.ndarray, conditions: Rows) -> Any:
    """The first time: start a process of its own, write down both, and hang."""
    pids = Path(conditions[0]["pids"])
    if not pids.exists():
        child = subprocess.Popen(["sleep", "60"])
        pids.write_text(f"{os.getpid()} {child.pid}")
        hang()
    return mean(images, conditions)
