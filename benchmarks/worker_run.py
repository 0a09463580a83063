"""A training of two processes whose reward is in workers, as soak.py and kills.py start it, and what its processes hold.

GRPO of the shipped mnist-llamagen under torchrun, with gloo on the CPU. Each of the two processes has a worker of its own.
Linux alone: all is read from /proc.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = "ALIGN_BENCHMARK_RUN"  # a variable that all processes of a run inherit, and by which orphans are known, too
SECONDS_OF_SCORING = 0.03
# of all processes: a machine that stands still for minutes must not look like a worker that hangs
PATIENT = "call_timeout: 3600, start_timeout: 3600"


def ink(images: Any, conditions: list[dict[str, Any]]) -> Any:
    """The share of ink, after a wait as for a GPU; each call is marked in a file when it begins and ends."""
    marks = Path(os.environ[MARK]) / "marks"
    _append(marks, "begin")
    time.sleep(SECONDS_OF_SCORING)
    values = images.float().mean(dim=(1, 2, 3)) / 255
    _append(marks, "end")
    return values


def _append(marks: Path, word: str) -> None:
    with marks.open("a") as file:
        file.write(f"{word}\n")


def command(folder: Path, *settings: str) -> list[str]:
    """The training in folder/run; rewards leave their marks in folder/marks."""
    worker = f"worker: {{{PATIENT}}}"
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "recipes.cli", "train", "experiment=mnist/grpo", f"output_dir={folder / 'run'}"),
        *("trainer.global_batch_size=32", "trainer.per_device_train_batch_size=8", "rollout.batch_size=8"),
        *("evaluation=none", "reward.timeout=7200", "+trainer.ddp_timeout=86400"),
        f"reward.rewards=[{{name: '{__file__}:ink', label: ink, {worker}}}]",
        *settings,
    ]


def start(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """What it says goes to folder/said, its temporary files to folder/tmp."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp"), MARK: str(folder)}
    environment = {**os.environ, **own, "PYTHONPATH": os.pathsep.join(paths)}
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(words, env=environment, stdout=said, stderr=said, start_new_session=True)


@dataclass(frozen=True)
class Process:
    """role: launcher, rank 0, rank 1, worker of rank 0, worker of rank 1, zombie, or other."""

    pid: int
    parent: int
    role: str


def processes(folder: Path) -> dict[int, Process]:
    """All that the run in this folder started and that is alive, orphans too; by their numbers."""
    found: dict[int, tuple[int, str]] = {}
    zombies: dict[int, int] = {}
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            if state == "Z":  # it has no variables any more
                zombies[int(path.name)] = int(parent)
                continue
            variables = dict(_pairs((path / "environ").read_bytes()))
            words = (path / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue  # it has just ended
        if variables.get(MARK) == str(folder):
            found[int(path.name)] = (int(parent), _role(words, variables))
    found |= {pid: (parent, "zombie") for pid, parent in zombies.items() if parent in found}
    roles = {pid: role for pid, (_, role) in found.items()}
    return {
        pid: Process(pid, parent, f"worker of {roles.get(parent, 'nobody')}" if role == "worker" else role)
        for pid, (parent, role) in found.items()
    }


def _pairs(block: bytes) -> Iterator[tuple[str, str]]:
    for entry in block.decode(errors="replace").split("\0"):
        name, found, value = entry.partition("=")
        if found:
            yield name, value


def _role(words: list[str], variables: dict[str, str]) -> str:
    if "torch.distributed.run" in words:
        return "launcher"
    if "recipes.cli" in words:
        return f"rank {variables.get('RANK')}"
    return "worker" if any(word.endswith("rewards/worker.py") for word in words) else "other"


def left_over(folder: Path) -> list[str]:
    """What a run that has ended must not leave: processes, and temporary files. torch leaves two folders of its own, empty
    but for folders: torchrun's for logs, and its compiler's."""
    alive = [f"process {one.pid} ({one.role})" for one in processes(folder).values()]
    found = [path.relative_to(folder / "tmp") for path in (folder / "tmp").rglob("*")]
    torch = ("torchelastic_", "torchinductor_")
    return [*alive, *sorted(str(path) for path in found if not path.parts[0].startswith(torch))]


def half_written(folder: Path) -> list[str]:
    """Files of the run that were not put in place yet; those of killed processes go when it is resumed."""
    return sorted(str(path.relative_to(folder)) for path in (folder / "run").rglob(".*"))


def records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log that may just be written."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
