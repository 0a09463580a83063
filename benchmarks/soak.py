"""Half an hour of GRPO with rewards in workers, on two processes: does memory stay flat, and is anything left behind?

    python benchmarks/soak.py [--minutes 30] [--out benchmarks/results/soak-cpu.json]

Every five seconds each process of the run is looked at: its own memory (anonymous, shared and swapped pages, of which no
other process can take a share, so that neighbours do not show), its share of all memory (PSS), open files, sockets, threads;
and how many processes there are, and temporary files. Memory is compared by medians of a minute, since a checkpoint or a grid
takes a little for a moment; counts by the least of a minute, since a file may just be open.

The warm-up is not counted: until three checkpoints, two sample grids and 300 calls of the rewards are through, so that every
path of the run was taken and what is kept on purpose is full (a worker remembers its last 256 answers). The run is then
ended by SIGTERM, as a cluster does. Memory must stay within 2 % of its beginning, counts must not grow, and nothing may be
left: else the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from worker_run import command, half_written, left_over, processes, records, start

LIMIT = 0.02
EVERY = 5.0  # seconds
WARM = {"steps": 200, "calls": 300, "checkpoints": 3}  # checkpoints every 50 steps, grids every 100
SETTINGS = (
    *("trainer.max_steps=1000000", "trainer.lr_scheduler_type=constant", "trainer.learning_rate=1.0e-6"),
    *("trainer.save_steps=50", "trainer.sample_every=100", "trainer.logging_steps=1"),
)
MEGABYTE = 1 << 20
Sample = dict[str, Any]


def look(folder: Path) -> Sample:
    """Own memory and PSS in bytes, open files, sockets and threads of each process by its role; and counts of all."""
    found: Sample = {"time": time.monotonic(), "own": {}, "pss": {}, "files": {}, "sockets": {}, "threads": {}}
    alive = processes(folder)
    for pid, process in alive.items():
        try:
            status = _sizes(Path(f"/proc/{pid}/status"))
            pss = _sizes(Path(f"/proc/{pid}/smaps_rollup"))["Pss"]
            open_files = [_target(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        except (OSError, KeyError):
            continue  # a zombie, or it has just ended
        found["own"][process.role] = status["RssAnon"] + status["RssShmem"] + status["VmSwap"]
        found["pss"][process.role] = pss
        found["threads"][process.role] = status["Threads"] // 1024  # the one that is no size
        found["sockets"][process.role] = sum(target.startswith("socket:") for target in open_files)
        found["files"][process.role] = len(open_files)
    found["processes"] = {"all": len(alive)}
    found["temporary"] = {"all": len(list((folder / "tmp").rglob("*"))) + len(half_written(folder))}
    return found


def _sizes(path: Path) -> dict[str, int]:
    """Lines such as `RssAnon:  123 kB`, in bytes."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) > 1 and row[1].isdigit()}


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""  # it has just been closed


def warm(folder: Path) -> bool:
    done = {
        "steps": len(records(folder / "run/metrics.jsonl")),
        "calls": (folder / "marks").read_text().count("end") // 2 if (folder / "marks").exists() else 0,  # of a worker
        "checkpoints": max((int(path.name.split("-")[1]) for path in (folder / "run").glob("checkpoint-*")), default=0)
        // 50,
    }
    return all(done[name] >= number for name, number in WARM.items())


def by_minute(
    samples: Sequence[Sample], name: str, role: str, of: Callable[[list[float]], float]
) -> tuple[np.ndarray, np.ndarray]:
    """Minutes from the first sample, and a number of each minute's samples."""
    minutes: dict[int, list[float]] = defaultdict(list)
    for sample in samples:
        values = sample[name].values() if role == "all" else [sample[name][role]] if role in sample[name] else []
        if values:
            minutes[int((sample["time"] - samples[0]["time"]) / 60)].append(sum(values))
    kept = {minute: of(values) for minute, values in sorted(minutes.items()) if len(values) > 1}
    return np.array(list(kept)), np.array(list(kept.values()))


def memory(samples: Sequence[Sample], name: str, role: str) -> dict[str, float]:
    """Of its medians by the minute: first and last, the slope by least squares with its standard error, and the largest
    deviation from the first as a share of it."""
    minutes, values = by_minute(samples, name, role, statistics.median)
    slope, error = 0.0, 0.0
    if len(minutes) > 2:
        (slope, _), covariance = np.polyfit(minutes, values, 1, cov=True)
        error = float(covariance[0, 0]) ** 0.5
    return {
        "start_MB": round(values[0] / MEGABYTE, 2),
        "end_MB": round(values[-1] / MEGABYTE, 2),
        "slope_MB_per_hour": round(60 * slope / MEGABYTE, 3),
        "slope_error": round(60 * error / MEGABYTE, 3),
        "largest_deviation": round(float(np.abs(values / values[0] - 1).max()), 5),
    }


def counts(samples: Sequence[Sample], name: str, role: str) -> dict[str, int]:
    """The least of the first and of the last minute, and the most of any sample."""
    _, least = by_minute(samples, name, role, min)
    _, most = by_minute(samples, name, role, max)
    return {"start": int(least[0]), "end": int(least[-1]), "most": int(most.max())}


def watch(process: subprocess.Popen[bytes], folder: Path, minutes: float) -> tuple[list[Sample], list[Sample]]:
    """Samples of the warm-up, and of so many minutes after it."""
    warming: list[Sample] = []
    samples: list[Sample] = []
    told = time.monotonic()
    while process.poll() is None and (not samples or time.monotonic() < samples[0]["time"] + 60 * minutes):
        time.sleep(EVERY)
        one = look(folder)
        (samples if samples or warm(folder) else warming).append(one)
        if time.monotonic() > told + 60:
            told = time.monotonic()
            own = ", ".join(f"{role} {value / MEGABYTE:.1f}" for role, value in sorted(one["own"].items()))
            print(f"{'' if samples else 'warming up: '}{own} MB", flush=True)
    return warming, samples


def end(process: subprocess.Popen[bytes]) -> float:
    """Seconds until the run was gone after SIGTERM."""
    clock = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait()
    return time.monotonic() - clock


def report(samples: Sequence[Sample]) -> dict[str, Any]:
    roles = [*sorted({role for sample in samples for role in sample["own"]}), "all"]
    return {
        "memory": {role: memory(samples, "own", role) for role in roles},
        "pss": {role: memory(samples, "pss", role) for role in roles},
        "counts": {
            name: {role: counts(samples, name, role) for role in roles if name in ("files", "sockets", "threads")}
            or {"all": counts(samples, name, "all")}
            for name in ("files", "sockets", "threads", "processes", "temporary")
        },
    }


def verdicts(found: dict[str, Any], ended: dict[str, Any]) -> dict[str, bool]:
    grown = [one["end"] > one["start"] for name, roles in found["counts"].items() for one in roles.values()]
    return {
        "memory within 2 %": max(one["largest_deviation"] for one in found["memory"].values()) <= LIMIT,
        "no count grew": not any(grown),
        "nothing is left": not ended["left_over"],
        "ended at once with a checkpoint": ended["checkpoint_of_the_last_step"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path, help="where the run is made and left; else it is taken away")
    options = parser.parse_args()
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="align-soak-"))).absolute()
    process = start(command(folder, *SETTINGS), folder)
    try:
        warming, samples = watch(process, folder, options.minutes)
        if process.poll() is not None:
            sys.exit(
                f"the run ended by itself with exit code {process.returncode}:\n{(folder / 'said').read_text()[-3000:]}"
            )
        steps = len(records(folder / "run/metrics.jsonl"))
        seconds = end(process)
    finally:
        if process.poll() is None:
            for pid in processes(folder):
                os.kill(pid, signal.SIGKILL)
    last = records(folder / "run/metrics.jsonl")[-1]["step"]
    ended = {
        "seconds": round(seconds, 1),
        "exit_code": process.returncode,
        "checkpoint_of_the_last_step": (folder / f"run/checkpoint-{last}/complete.json").exists(),
        "left_over": left_over(folder) + half_written(folder),
    }
    found = report(samples)
    checks = verdicts(found, ended)
    gaps = [two["time"] - one["time"] for one, two in pairwise(samples)]
    record = {
        "what": "python benchmarks/soak.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared with other work",
        "minutes": round((samples[-1]["time"] - samples[0]["time"]) / 60, 1),
        "longest_stop_seconds": round(max(gaps), 1),
        "warm_up": {"until": WARM, "minutes": round((samples[0]["time"] - warming[0]["time"]) / 60, 1)},
        "steps": steps,
        "samples": len(samples),
        **found,
        "ended": ended,
        "verdicts": checks,
    }
    show(record)
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    if options.folder is None:
        shutil.rmtree(folder)
    sys.exit(not all(checks.values()))


def show(record: dict[str, Any]) -> None:
    print(f"{record['steps']} steps; {record['minutes']} minutes after a warm-up of {record['warm_up']['minutes']}")
    for name in ("memory", "pss"):
        for role, one in record[name].items():
            print(
                f"{name:<7} {role:<17} {one['start_MB']:8.1f} -> {one['end_MB']:8.1f} MB, slope {one['slope_MB_per_hour']:+7.2f}"
                f" +- {one['slope_error']:.2f} MB an hour, at most {one['largest_deviation']:.2%} off"
            )
    for name, roles in record["counts"].items():
        told = ", ".join(f"{role} {one['start']} -> {one['end']} (most {one['most']})" for role, one in roles.items())
        print(f"{name:<9} {told}")
    print(f"ended: {record['ended']}")
    for name, passed in record["verdicts"].items():
        print(f"{'PASS' if passed else 'FAIL'}  {name}")


if __name__ == "__main__":
    main()
