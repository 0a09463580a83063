"""Training with a reward in processes of its own: the same weights as with it in this one, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import fails, run

from recipes.exports import find_export

CODE = """
import os
import time
from pathlib import Path

def boldness(images, conditions):
    with Path(__file__).with_suffix(".pids").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    return images.float().mean(dim=(1, 2, 3)) / 255

def dies_once(images, conditions):
    if not (mark := Path(__file__).with_suffix(".died")).exists():
        mark.touch()
        os._exit(3)
    return boldness(images, conditions)

def hangs(images, conditions):
    with Path(__file__).with_suffix(".pids").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(60)

def dies(images, conditions):
    os._exit(3)
"""
SHORT = (
    *("experiment=mnist/grpo", "kl.coefficient=0", "trainer.max_steps=2", "trainer.logging_steps=1"),
    *("trainer.per_device_train_batch_size=16", "rollout.batch_size=8", "evaluation=none", "trainer.sample_every=0"),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def reward(file: Path, name: str, worker: str = "") -> str:
    return f"reward.rewards=[{{name: '{file}:{name}', label: mine{worker}}}]"


def weights(folder: str) -> dict[str, torch.Tensor]:
    return torch.load(find_export(Path(folder)), weights_only=True)["model"]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
def test_a_run_does_not_depend_on_where_its_reward_is_computed(file: Path) -> None:
    run("train", *SHORT, "output_dir=here", reward(file, "boldness"))
    run("train", *SHORT, "output_dir=there", reward(file, "boldness", ", worker: {number: 2, batch_size: 4}"))
    run("train", *SHORT, "output_dir=mended", reward(file, "dies_once", ", worker: {}"))
    here = weights("here")
    for folder in ("there", "mended"):
        assert all(torch.equal(tensor, here[name]) for name, tensor in weights(folder).items())
    record = json.loads(Path("there/run.json").read_text())
    (told,) = record["rewards"]
    assert (told["name"], told["kind"], told["held_out"], len(told["fingerprint"])) == ("mine", "image", False, 64)
    (logged, _) = [json.loads(line) for line in Path("mended/metrics.jsonl").read_text().splitlines()]
    assert logged["failed/mine"] == 0
    pids = {int(line) for line in file.with_suffix(".pids").read_text().split()}
    assert len(pids) == 4  # this process, two workers, and the one that was started again
    time.sleep(0.2)
    assert all(gone(pid) for pid in pids - {os.getpid()})


@pytest.mark.slow
def test_a_reward_that_dies_stops_the_run_with_its_words(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "train", *SHORT, reward(file, "dies", ", worker: {}"))
    assert "16 of the last 16 scores of reward 'mine' failed" in error
    assert "exit code 3" in error


@pytest.mark.slow
def test_a_run_that_is_broken_off_leaves_nothing_behind(file: Path) -> None:
    """Ctrl-C twice, while the reward hangs in its worker."""
    words = ["train", *SHORT, "preflight=false", reward(file, "hangs", ", worker: {}")]
    process = subprocess.Popen([sys.executable, "-m", "recipes.cli", *words], stderr=subprocess.PIPE, text=True)
    pids = file.with_suffix(".pids")
    until = time.monotonic() + 60
    while not pids.exists() and time.monotonic() < until:
        time.sleep(0.05)
    (worker,) = map(int, pids.read_text().split())
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert "error: interrupted" in said
    assert gone(worker)
