"""A training of two processes with rewards in workers is killed twenty times: does its log come out as if it never was?

    python benchmarks/kills.py [--seed 0] [--out benchmarks/results/kills-cpu.json]

An unbroken run shows what to expect, and how long each phase of a run takes. Then the same run is broken by kill -9, in turns
of one of its two processes, of a worker, and of everything, each in every phase: starting up, collecting, scoring, updating,
saving, logging; and one of its processes at the end, while it exports. The moment within the phase is drawn from the seed. Everything is the
launcher and both processes; every other time the workers, too: else they must see for themselves that nobody is left. What has
stopped goes on by the same command with resume=auto.

In the end metrics.jsonl must be the same as the unbroken run's to the last digit but for the seconds, alarms.jsonl and the
weights must be the same, and after each kill that stops it every process must be gone soon: else the exit code is 1.

The phases are seen from outside: by what is in the run's folder, and by marks that the reward leaves. Averages are logged over
two steps, rollouts are used for two, and checkpoints come every third step, so that they fall into the middle of both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from worker_run import command, half_written, left_over, processes, records, start

from align.training.checkpoints import is_complete

KINDS = ("a rank", "a worker", "everything")
PHASES = ("starting up", "collecting", "scoring", "updating", "saving", "logging")
LAST_PHASE = "exporting"
STEPS = 66
CALLS = 4  # of the reward for a step's rollouts: two micro-batches in each of two processes
LOGGING = 0.003  # seconds after a record is there that count as logging
SETTINGS = (
    *(f"trainer.max_steps={STEPS}", "trainer.save_steps=3", "trainer.logging_steps=2", "trainer.sample_every=10"),
    # all that a run carries along: rollouts, an adapted coefficient, a reference that moves
    *("rollout.num_iterations=2", "kl.target=0.02", "reference.sync_steps=4", "reference.mixup=0.5"),
    *("alarms.kl=0.02", "preflight=false"),
)
STANDSTILL = 1.0  # seconds between two looks, of which there are a thousand a second
PROMPT = 30.0  # seconds in which all must be gone; torchrun then uses force
PATIENCE = 3600.0  # seconds until a wait is given up


class Watch:
    """The phase that a run is in, and when each began last, as seen in its folder."""

    def __init__(self, folder: Path) -> None:
        self.run, self.marks = folder / "run", folder / "marks"
        self.seconds: dict[str, list[float]] = defaultdict(list)  # of the phases that are over
        self._sizes = {path: _size(path) for path in (self.marks, self.run / "metrics.jsonl")}
        self._checkpoints = self._look_at_checkpoints()
        self._ends = 0
        self._looked = time.monotonic()
        self.phase, self.began = "starting up", {"starting up": self._looked}

    def look(self) -> str:
        now = time.monotonic()
        if now - self._looked > STANDSTILL:  # this process stood still, and so the others
            self.began[self.phase] += now - self._looked
        self._looked = now
        for word in self._grown(self.marks).split():
            self._ends += word == "end"
            if word == "begin" and self.phase in ("starting up", "collecting"):
                self._enter("scoring")
            elif word == "end" and self._ends == CALLS:
                self._enter("updating")
        if self._grown(self.run / "metrics.jsonl"):
            self._ends = 0
            self._enter("logging")
        elif self.phase == "logging" and now > self.began[self.phase] + LOGGING:
            self._enter("collecting")
        before, self._checkpoints = self._checkpoints, self._look_at_checkpoints()
        for step, whole in self._checkpoints.items():
            if not whole and step not in before:
                self._enter("saving")
            elif whole and not before.get(step):
                self._enter(LAST_PHASE if step == STEPS else "updating" if step % 2 else "collecting")
        return self.phase

    def _enter(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[self.phase].append(now - self.began[self.phase])
        self.phase, self.began[phase] = phase, now

    def _grown(self, path: Path) -> str:
        before, self._sizes[path] = self._sizes[path], _size(path)
        if self._sizes[path] <= before:
            return ""
        with path.open() as file:
            file.seek(before)
            return file.read(self._sizes[path] - before)

    def _look_at_checkpoints(self) -> dict[int, bool]:
        """Steps, and whether they are whole."""
        found = self.run.glob("checkpoint-*")
        return {int(path.name.split("-")[1]): (path / "complete.json").exists() for path in found}

    def step(self) -> int:
        """That was logged last."""
        return max((record["step"] for record in records(self.run / "metrics.jsonl")), default=0)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@dataclass
class Kill:
    """What is killed in which phase, after how large a share of its usual length, or where that is over; then what was seen."""

    kind: str
    phase: str
    share: float
    which: int  # of the two
    workers_too: bool
    after_step: int
    milliseconds: float = 0.0  # since the phase began
    logged: int = 0
    checkpoint: int = 0
    torso: bool = False
    went_on: bool = False  # with another worker; else it stopped, or was
    seconds: float = 0.0  # until that
    left: list[str] = field(default_factory=list)


def plan(seed: int) -> list[Kill]:
    """Every kind in every phase, once more everything, and a rank at the end; kinds in turns."""
    draw = random.Random(seed)
    phases = {kind: draw.sample(PHASES, len(PHASES)) for kind in KINDS}
    pairs = [(kind, phases[kind][turn]) for turn in range(len(PHASES)) for kind in KINDS]
    pairs += [("everything", "scoring"), ("a rank", LAST_PHASE)]
    workers = cycle((True, False))
    return [
        Kill(
            kind,
            phase,
            0.9 * draw.random(),
            draw.randrange(2),
            kind == "everything" and next(workers),
            3 * number,
        )
        for number, (kind, phase) in enumerate(pairs)
    ]


class Runner:
    """The run that is broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.watch = Watch(self.folder)
        self.process = start(command(self.folder, *SETTINGS, "resume=auto"), self.folder)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def finish(self) -> float:
        """Let it come to its end; seconds of its last phase."""
        self.wait(lambda: self.watch.look() and not self.alive, "the end")
        assert self.process is not None
        if self.process.returncode:
            raise SystemExit(f"exit code {self.process.returncode}; it said:\n{self.said()}")
        return time.monotonic() - self.watch.began[self.watch.phase]

    def stop(self) -> None:
        """As a cluster does, with a checkpoint."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(PATIENCE)

    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")[-3000:]

    def wait(self, until: Callable[[], Any], what: str) -> None:
        clock = time.monotonic()
        while not until():
            if time.monotonic() > clock + PATIENCE:
                raise SystemExit(f"waited {PATIENCE:g} seconds for {what}; it said:\n{self.said()}")
            time.sleep(0.0005)

    def break_it(self, kill: Kill, usual: float) -> None:
        """Wait for the moment, kill, and see what comes of it."""
        if kill.phase not in ("starting up", LAST_PHASE):
            self._reach(lambda: self.watch.step() >= kill.after_step, f"step {kill.after_step}")
        self._reach(lambda: self.watch.phase == kill.phase, f"the phase {kill.phase}")
        began = self.watch.began
        self._reach(
            lambda: time.monotonic() >= began[kill.phase] + kill.share * usual or self.watch.phase != kill.phase,
            "the moment",
        )
        clock = time.monotonic()
        killed = self._kill(kill)
        kill.milliseconds = round(1000 * (clock - began[kill.phase]), 1)
        self._look_at_disk(kill)
        clock = time.monotonic()
        if kill.kind == "a worker":
            self.wait(lambda: not self.alive or self._pids(*_roles(kill)) - killed, "another worker")
        kill.went_on = self.alive and kill.kind == "a worker"
        if not kill.went_on:
            self.wait(lambda: not self.alive and not processes(self.folder), "the end of all processes")
            kill.left = left_over(self.folder)
        kill.seconds = round(time.monotonic() - clock, 2)

    def _reach(self, moment: Callable[[], bool], what: str) -> None:
        def there() -> bool:
            self.watch.look()
            if not self.alive:
                raise SystemExit(f"it ended before {what}:\n{self.said()}")
            return moment()

        self.wait(there, what)

    def _pids(self, *roles: str) -> set[int]:
        return {pid for pid, process in processes(self.folder).items() if process.role in roles}

    def _kill(self, kill: Kill) -> set[int]:
        """Those that were killed; what is only just being started, too."""
        killed: set[int] = set()
        while not killed or (kill.kind == "everything" and self._pids(*_roles(kill))):
            if not self.alive and not killed:
                raise SystemExit(f"it ended before it was killed:\n{self.said()}")
            for pid in self._pids(*_roles(kill)):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        return killed

    def _look_at_disk(self, kill: Kill) -> None:
        checkpoints = {int(path.name.split("-")[1]): is_complete(path) for path in self.watch.run.glob("checkpoint-*")}
        kill.logged = self.watch.step()
        kill.checkpoint = max((step for step, whole in checkpoints.items() if whole), default=0)
        kill.torso = not all(checkpoints.values())


def _roles(kill: Kill) -> list[str]:
    if kill.kind == "everything":
        workers = ["worker of rank 0", "worker of rank 1"] if kill.workers_too else []
        return ["launcher", "rank 0", "rank 1", *workers]
    return [f"rank {kill.which}" if kill.kind == "a rank" else f"worker of rank {kill.which}"]


def compared(expected: Path, got: Path) -> dict[str, bool]:
    """What is the same in two runs."""

    def digits(run: Path) -> list[str]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [json.dumps({k: v for k, v in line.items() if not k.startswith("seconds")}) for line in lines]

    weights = [torch.load(run / "generator.pt", weights_only=True)["model"] for run in (expected, got)]
    return {
        "metrics.jsonl is the same, but for the seconds": digits(expected) == digits(got),
        "alarms.jsonl is the same": (expected / "alarms.jsonl").read_bytes() == (got / "alarms.jsonl").read_bytes(),
        "the weights are the same": weights[0].keys() == weights[1].keys()
        and all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="where the runs are made and left; else they are taken away")
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="align-kills-"))).absolute()
    whole = Runner(folder / "unbroken")
    whole.start()
    whole.watch.seconds[LAST_PHASE].append(whole.finish())
    usual = {phase: statistics.median(seconds) for phase, seconds in whole.watch.seconds.items()}
    # processes end before the launcher, and may be quicker than usual
    usual[LAST_PHASE] = min(usual[LAST_PHASE] / 3, 1.0)
    print("usual seconds: " + ", ".join(f"{phase} {seconds:.3f}" for phase, seconds in usual.items()))
    broken = Runner(folder / "broken")
    kills = plan(options.seed)
    for kill in kills:
        if kill.phase == "starting up" and broken.alive:
            broken.stop()
        if not broken.alive:
            broken.start()
        broken.break_it(kill, usual[kill.phase])
        show(kill)
    if not broken.alive:
        broken.start()
    broken.finish()
    checks = {
        **compared(folder / "unbroken/run", folder / "broken/run"),
        f"all gone within {PROMPT:g} seconds": all(kill.seconds <= PROMPT for kill in kills if not kill.went_on),
        "nothing was left": not any(kill.left for kill in kills)
        and not left_over(broken.folder) + half_written(broken.folder),
    }
    said = (broken.folder / "said").read_text(errors="replace")
    record = {
        "what": f"python benchmarks/kills.py --seed {options.seed}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other work",
        "usual_seconds": {phase: round(seconds, 4) for phase, seconds in usual.items()},
        "resumed_from": re.findall(r"resuming from .*?(checkpoint-\d+)|(no whole checkpoint)", said),
        "kills": [asdict(kill) for kill in kills],
        "verdicts": checks,
    }
    for name, passed in checks.items():
        print(f"{'PASS' if passed else 'FAIL'}  {name}")
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    if options.folder is None:
        shutil.rmtree(folder)
    sys.exit(not all(checks.values()))


def show(kill: Kill) -> None:
    what = kill.kind if not kill.workers_too else "everything and the workers"
    then = f"went on after {kill.seconds} s" if kill.went_on else f"all gone after {kill.seconds} s"
    torso = ", half a checkpoint left" if kill.torso else ""
    print(
        f"{what:<27} {kill.phase:<12} +{kill.milliseconds:7.1f} ms; logged {kill.logged}, whole checkpoint {kill.checkpoint}{torso}; {then}"
        + (f"; LEFT {kill.left}" if kill.left else ""),
        flush=True,
    )


if __name__ == "__main__":
    main()
