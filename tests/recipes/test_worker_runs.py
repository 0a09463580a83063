"""Training with a reward in processes of its own: the same weights as with it in this one, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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

def slow(images, conditions):
    with Path(__file__).with_suffix(".pids").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(0.1)
    return images.mean(axis=(1, 2, 3)) / 255

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
def test_kills_of_the_worker_of_the_training_and_of_both_change_nothing(file: Path) -> None:
    """All runs are processes of their own: in this one sums may be rounded otherwise."""
    long = [*SHORT, "trainer.max_steps=16", "trainer.save_steps=3", "trainer.logging_steps=2", "preflight=false"]
    long += ["rollout.num_iterations=2"]
    other = file.with_name("others.py")
    shutil.copy(file, other)
    pids, log = file.with_suffix(".pids"), Path("broken/metrics.jsonl")

    def start(file: Path, *settings: str) -> subprocess.Popen[bytes]:
        words = [
            sys.executable,
            "-m",
            "recipes.cli",
            "train",
            *long,
            reward(file, "slow", ", worker: {images: numpy}"),
            *settings,
        ]
        return subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)

    def workers() -> list[int]:
        return list(dict.fromkeys(map(int, pids.read_text().split()))) if pids.exists() else []

    def wait_until(happened: Callable[[], bool]) -> None:
        until = time.monotonic() + 120
        while not happened():
            assert time.monotonic() < until
            time.sleep(0.01)

    def logged(step: int) -> Callable[[], bool]:
        return lambda: log.exists() and f'{{"step": {step},' in log.read_text()

    whole = start(other, "output_dir=whole")  # beside the others
    training = start(file, "output_dir=broken")
    wait_until(logged(2))
    os.kill(workers()[0], signal.SIGKILL)
    wait_until(logged(6))
    assert len(workers()) == 2  # it went on with another one
    training.kill()
    training.wait()
    wait_until(lambda: gone(workers()[1]))  # which sees for itself that nobody is left
    half_written = Path("broken/.run.json.17.tmp")
    half_written.touch()
    training = start(file, "output_dir=broken", "resume=auto")
    wait_until(logged(10))
    for pid in (training.pid, workers()[2]):
        os.kill(pid, signal.SIGKILL)
    training.wait()
    assert start(file, "output_dir=broken", "resume=auto").wait(timeout=300) == 0
    assert whole.wait(timeout=300) == 0
    assert without_seconds(log) == without_seconds(Path("whole/metrics.jsonl"))
    expected = weights("whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights("broken").items())
    wait_until(lambda: all(map(gone, workers())))
    assert len(workers()) == 4
    assert not half_written.exists()


def without_seconds(log: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith("seconds")} for line in lines]


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
