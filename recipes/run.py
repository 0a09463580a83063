"""A run's folder: created once, described in run.json, never overwritten by accident."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from align.files import alone_in, remove_torsos, write_text

LONGEST_WAIT = timedelta(days=2)
PACKAGES = ("ar-align", "torch", "transformers", "accelerate", "numpy")


class Run:
    """Open a run folder and keep its run.json up to date; of several processes the first one alone does.

    Args:
        kind: train, study, sweep, eval, ... (the command).
        overrides: the command line's key=value, to say how to reproduce it.
        append: a folder of the same kind may be used again (eval adds rows, sample draws anew).
    """

    def __init__(
        self, config: DictConfig, *, kind: str, overrides: list[str], name: str | None = None, append: bool = False
    ) -> None:
        self.folder = Path(config.output_dir)
        self._started = time.monotonic()
        try:
            self._open(config, kind, overrides, name, append)
        finally:
            wait_for_all()

    def _open(self, config: DictConfig, kind: str, overrides: list[str], name: str | None, append: bool) -> None:
        self._spent, self.record = 0.0, dict[str, Any]()
        if not is_first_process():
            return
        resume = config.get("resume") == "auto"
        earlier = self.read()
        if earlier and kind == "train":
            with alone_in(self.folder):
                pass  # lest the run.json of a training that goes on be replaced, or all of it
        if earlier and append and earlier["kind"] != kind:
            raise ValueError(
                f"{self.folder} holds a run of `align {earlier['kind']}`, whose run.json would be replaced; set another output_dir="
            )
        if earlier and not append and not resume:
            # a mistake that was found before anything was made needs no clearing away
            fruitless = str(earlier.get("status")).startswith("failed") and len(list(self.folder.iterdir())) == 1
            if not fruitless and not config.get("overwrite", False):
                choices = "resume=auto to go on with it, " if "resume" in config else ""
                raise ValueError(
                    f"{self.folder} holds a run already ({earlier.get('status')}); add {choices}overwrite=true to replace it, or another output_dir="
                )
            shutil.rmtree(self.folder)
            earlier = {}
        if earlier and resume:
            _refuse_other_settings(earlier["config"], OmegaConf.to_container(config))
            remove_torsos(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._spent = earlier.get("wall_seconds", 0.0) if resume else 0.0
        self.record = {
            "name": name or config.get("name", kind),
            "kind": kind,
            "command": f"align {kind} {shlex.join(overrides)}".strip(),
            "config": OmegaConf.to_container(config),
            "versions": {"python": platform.python_version(), **{package: _version(package) for package in PACKAGES}},
            "git": _git(),
            "device": describe_device(),
            "processes": num_processes(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": "running",
            "hashes": {},
        }
        self.update()

    def read(self) -> dict[str, Any]:
        path = self.folder / "run.json"
        return json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """What ends the work inside is written to run.json, and goes on up."""
        try:
            yield
        except KeyboardInterrupt:
            self.update(status="interrupted")
            raise
        except Exception as error:
            from align.training.contact import lost_contact

            self.update(status="failed: another process stopped" if lost_contact(error) else f"failed: {error}")
            raise

    def update(self, **facts: Any) -> None:
        """Merge facts into run.json and write it whole."""
        if not is_first_process():
            return
        self.record |= facts
        self.record["wall_seconds"] = round(self._spent + time.monotonic() - self._started, 1)
        write_text(self.folder / "run.json", json.dumps(self.record, indent=2) + "\n")


def _refuse_other_settings(before: Any, now: Any, prefix: str = "") -> None:
    """A run is resumed with its own settings, or not at all."""
    for key in {**before, **now}:
        if prefix + key in ("resume", "overwrite", "alarms"):  # alarms watch and compute nothing
            continue
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _refuse_other_settings(old, new, f"{prefix}{key}.")
        elif old != new:
            raise ValueError(
                f"cannot resume with other settings: {prefix}{key} was {old!r}, now {new!r}; set it back, or use another output_dir="
            )


def describe_device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu ({torch.get_num_threads()} threads, {platform.machine()})"


def pick_device() -> torch.device:
    """The GPU of this process, as torchrun numbers them; the CPU where there is none."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    return int(os.environ.get("RANK", "0"))


def is_first_process() -> bool:
    return process_index() == 0


def wait_for_all() -> None:
    """Go on once every process of a torchrun has come here."""
    if num_processes() > 1:
        from accelerate import PartialState

        # one process may compute metrics for longer than a collective's usual ten minutes
        PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT).wait_for_everyone()


def of_first_process(value: Any) -> Any:
    """What the first process found, for all of them."""
    if num_processes() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def refuse_many_processes(command: str) -> None:
    """Raises ValueError under torchrun, for what would do the same work in every process."""
    if num_processes() > 1:
        raise ValueError(
            f"{command} runs in one process; only `align train` (without rounds), `align eval`, `align sweep`, `align data encode` and `align data captions` share work among several"
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _git() -> dict[str, Any] | None:
    """Revision of the source tree this runs from; None for an installed wheel."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            "revision": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None


def say(message: str) -> None:
    """A line for the person at the terminal."""
    if not is_first_process():
        return
    print(message, file=sys.stderr, flush=True)
