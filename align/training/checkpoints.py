"""Which training checkpoint is whole, and how to go on from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from align.files import write_text

COMPLETE_FILE = "complete.json"
METRICS_FILE = "metrics.jsonl"
ALARMS_FILE = "alarms.jsonl"


def mark_complete(folder: Path) -> None:
    """Put a checkpoint's files on disk, then record them; a folder without the record is a torso."""
    sizes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[str(path.relative_to(folder))] = path.stat().st_size
    write_text(folder / COMPLETE_FILE, json.dumps(sizes))


def is_complete(folder: Path) -> bool:
    record = folder / COMPLETE_FILE
    if not record.exists():
        return False
    sizes = json.loads(record.read_text())
    return all((folder / name).exists() and (folder / name).stat().st_size == size for name, size in sizes.items())


def latest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run; torsos left by a kill are passed over."""
    whole = [folder for folder in run.glob("checkpoint-*") if is_complete(folder)]
    return max(whole, key=lambda folder: int(folder.name.split("-")[1]), default=None)


def rewind_logs(run: Path, step: int) -> None:
    """Forget metrics and alarms logged after `step`, so that a resumed run's logs read as an unbroken one's."""
    for path in (run / METRICS_FILE, run / ALARMS_FILE):
        if path.exists():
            write_text(path, "".join(line + "\n" for line in _lines_until(path, step)))


def logged_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The records of a log up to `step`; none where it has not begun."""
    return [json.loads(line) for line in _lines_until(path, step)] if path.exists() else []


def _lines_until(path: Path, step: int) -> list[str]:
    return [line for line in path.read_text().splitlines() if _step(line) <= step]


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")  # half a line, as a kill leaves it
