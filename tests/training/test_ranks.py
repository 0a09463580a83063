"""Two processes train to the same weights and logs as one, at the same global batch, and go on from their checkpoints."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("two_ranks.py")
# the packages come before their tests, whose folders have the same names
PYTHONPATH = os.pathsep.join(map(str, (SCRIPT.parents[2], SCRIPT.parents[1])))
LAST = "checkpoint-4"


def run(folder: Path, ranks: int, *objectives: str, resume: bool = False) -> None:
    """All objectives one after another, for starting the processes takes most of the time."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if ranks == 2 else []
    # four rows a micro-batch alone, two on each of two ranks
    how = [str(folder), str(4 // ranks), str(ranks), "resume" if resume else "anew", *objectives]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    subprocess.run([sys.executable, *launch, str(SCRIPT), *how], env=environment, check=True, timeout=300)


@pytest.mark.slow
def test_what_goes_wrong_on_one_rank_stops_all_with_its_message(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    script = str(SCRIPT.with_name("failing_rank.py"))
    subprocess.run([sys.executable, *launch, script, str(tmp_path)], env=environment, check=True, timeout=120)
    of_second = {
        "raises": "RewardError: 3 of the last 6 scores of reward 'bad' failed, .*reward 'bad' raised OSError: its weights are gone",
        "hangs": "RewardError: 3 of the last 6 scores of reward 'bad' failed, .*gave no answer for 3 images within 1 seconds",
        "decoding": "RuntimeError: out of memory",
    }
    of_first = {
        **of_second,
        "decoding": "RewardError: process 1 stopped while it made its rollouts: RuntimeError: out of",
    }
    for rank, expected in enumerate((of_first, of_second)):
        for case, message in expected.items():
            seconds, told = (tmp_path / f"{case}-rank{rank}.txt").read_text().split("\n", 1)
            assert re.match(message, told), (case, rank, told)
            assert float(seconds) < 10, (case, rank)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / LAST / "model.safetensors")


def logs(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("seconds")} for line in lines]


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    objectives = ("cca", "ddo", "kto", "grpo")
    run(one, 1, *objectives)
    run(two, 2, *objectives)
    for objective in objectives:
        torch.testing.assert_close(weights(one / objective), weights(two / objective), atol=2e-5, rtol=1e-4)
        for alone, together in zip(logs(one / objective), logs(two / objective), strict=True):
            assert alone == pytest.approx(together, rel=1e-3, abs=1e-5), objective
    # two ranks go on from a checkpoint in the middle of their rollouts, of which each holds its own
    folder = two / "grpo"
    whole, log = weights(folder), logs(folder)
    shutil.rmtree(folder / LAST)
    kept = {path.name for path in (folder / "checkpoint-3").glob("source-*")}
    assert kept == {"source-rank0.safetensors", "source-rank1.safetensors"}
    run(two, 2, "grpo", resume=True)
    torch.testing.assert_close(weights(folder), whole, atol=0, rtol=0)
    assert logs(folder) == log
