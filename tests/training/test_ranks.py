"""Two processes train to the same weights and logs as one, at the same global batch, and go on from their checkpoints:
replicated by torchrun, and cut up by accelerate launch with the configuration that comes with the recipes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("two_ranks.py")
# the packages come before their tests, whose folders have the same names
PYTHONPATH = os.pathsep.join(map(str, (SCRIPT.parents[2], SCRIPT.parents[1])))
LAST = "checkpoint-4"
CASES = ("cca", "ddo", "kto", "grpo", "va_pi", "cca_moving", "cca_adapters", "grpo_guided")


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
FSDP2 = [
    "-m",
    "accelerate.commands.launch",
    "--config_file",
    str(SCRIPT.parents[2] / "recipes" / "launch" / "fsdp2.yaml"),
]
FSDP2 += ["--num_processes", "2", "--main_process_port", "0"]


def run(folder: Path, launch: list[str], *cases: str, resume: bool = False) -> None:
    """All cases one after another, for starting the processes takes most of the time."""
    ranks = 2 if launch else 1
    # four rows a micro-batch alone, two on each of two ranks
    how = [str(folder), str(4 // ranks), str(ranks), "resume" if resume else "anew", *cases]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    subprocess.run([sys.executable, *launch, str(SCRIPT), *how], env=environment, check=True, timeout=300)


@pytest.mark.slow
def test_what_goes_wrong_on_one_rank_stops_all_with_its_message(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    script = str(SCRIPT.with_name("failing_rank.py"))
    subprocess.run([sys.executable, *TORCHRUN, script, str(tmp_path)], env=environment, check=True, timeout=120)
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
    return load_file(folder / "trained.safetensors")


def logs(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("seconds")} for line in lines]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a single process makes of each case."""
    folder = tmp_path_factory.mktemp("one")
    run(folder, [], *CASES)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launch", "cases"), [(TORCHRUN, ("cca", "ddo", "kto", "grpo")), (FSDP2, CASES)], ids=["replicated", "sharded"]
)
def test_two_ranks_equal_one(tmp_path: Path, one: Path, launch: list[str], cases: Sequence[str]) -> None:
    run(tmp_path, launch, *cases)
    for case in cases:
        torch.testing.assert_close(weights(one / case), weights(tmp_path / case), atol=2e-5, rtol=1e-4)
        for alone, together in zip(logs(one / case), logs(tmp_path / case), strict=True):
            assert alone == pytest.approx(together, rel=1e-3, abs=1e-5), case
    # they go on from a checkpoint in the middle of their rollouts, of which each holds its own, and of a line of the log
    resumed = [case for case in cases if case in ("grpo", "cca_moving", "cca_adapters")]
    before = {case: (weights(tmp_path / case), logs(tmp_path / case)) for case in resumed}
    for case in resumed:
        shutil.rmtree(tmp_path / case / LAST)
        (tmp_path / case / "trained.safetensors").unlink()
    kept = {path.name for path in (tmp_path / "grpo" / "checkpoint-3").glob("source-*")}
    assert kept == {"source-rank0.safetensors", "source-rank1.safetensors"}
    run(tmp_path, launch, *resumed, resume=True)
    for case, (whole, log) in before.items():
        torch.testing.assert_close(weights(tmp_path / case), whole, atol=0, rtol=0)
        assert logs(tmp_path / case) == log, case
