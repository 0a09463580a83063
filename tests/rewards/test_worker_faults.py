"""What can go wrong with a worker: it recovers or ends in a clear message, no score is made up, no process is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rewards import transport, worker_pool
from rewards.base import PartialScores
from rewards.client import WorkerReward, load_worker_reward
from rewards.worker import frame_start

FUNCTIONS = Path(__file__).parent.parent / "worker_rewards.py"
WORKER = Path(worker_pool.__file__).with_name("worker.py")
IMAGES = torch.arange(6 * 2 * 2 * 3, dtype=torch.uint8).reshape(6, 2, 2, 3)
MEANS = torch.tensor([5.5, 17.5, 29.5, 41.5, 53.5, 65.5])


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "BACKOFF", (0.0, 0.0))


def started() -> Iterator[WorkerReward]:
    reward = load_worker_reward(f"{FUNCTIONS}:act", {}, {"images": "numpy", "batch_size": 2, "call_timeout": 0.5})
    yield reward
    reward.close()
    assert is_gone(pid_of(reward))


act = pytest.fixture(started)
steady = pytest.fixture(scope="module")(started)  # for tests that leave it as it is


def pid_of(reward: WorkerReward) -> int:
    return int(reward.health()[0][0].rpartition("process ")[2].rstrip(")"))


def is_gone(pid: int) -> bool:
    """Dead; one that waits for its parent's look is."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(*pids: int) -> None:
    until = time.monotonic() + 10
    while not all(is_gone(pid) for pid in pids):
        assert time.monotonic() < until, f"{[pid for pid in pids if not is_gone(pid)]} are left behind"
        time.sleep(0.01)


def rows(**third: Any) -> list[dict[str, Any]]:
    """Six rows, the third of them (in the second call) with these columns."""
    return [{}, {}, third, {}, {}, {}]


@pytest.mark.parametrize("do", ["die", "hang", "garble"])
def test_a_worker_that_fails_once_is_started_again(act: WorkerReward, do: str, tmp_path: Path) -> None:
    first = pid_of(act)
    (tmp_path / "flag").touch()
    scores = act(IMAGES, rows(do=do, flag=str(tmp_path / "flag")))
    assert isinstance(scores, Tensor)
    assert scores.tolist() == MEANS.tolist()
    assert pid_of(act) != first
    assert is_gone(first)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("die", r"worker 0 of .*act \(process \d+\) ended without an answer \(killed by SIGKILL\)\n\(tried 3 times\)"),
        pytest.param(
            "garble", r"broke off: a message begins with b'ARW1'; got b'no f'.*tried 3", marks=pytest.mark.slow
        ),
        pytest.param("hang", r"did not answer within 0.5 seconds.*in hang\n.*tried 3 times", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_fails_always_costs_the_rows_of_its_call(act: WorkerReward, do: str, message: str) -> None:
    scores = act(IMAGES, rows(do=do))
    assert isinstance(scores, PartialScores)
    assert scores.valid.tolist() == [True, True, False, False, True, True]
    assert scores.values.isnan().tolist() == [False, False, True, True, False, False]
    assert scores.values[[0, 1, 4, 5]].tolist() == MEANS[[0, 1, 4, 5]].tolist()
    assert_matches(message, scores.error)


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + pattern):
        raise ValueError(text)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("few", r"ValueError: the reward returned shape \[1\]; a reward returns 2 numbers"),
        ("complain", r"KeyError: 'prompt'\n  File .*worker_rewards.py.*in complain\n    raise KeyError"),
        ("leave", "SystemExit: 3"),
    ],
)
def test_the_rewards_own_mistakes_are_not_tried_again(
    steady: WorkerReward, do: str, message: str, tmp_path: Path
) -> None:
    pid = pid_of(steady)
    scores = steady(IMAGES, rows(do=do, log=str(tmp_path / "log")))
    assert isinstance(scores, PartialScores)
    assert scores.valid.tolist() == [True, True, False, False, True, True]
    assert_matches(message, scores.error)
    assert (tmp_path / "log").read_text().splitlines() == [str(pid)]
    assert pid_of(steady) == pid


def test_what_a_reward_prints_is_not_taken_for_an_answer(steady: WorkerReward) -> None:
    scores = steady(IMAGES, [{"do": "chatter"}] * 6)
    assert isinstance(scores, Tensor)
    assert scores.tolist() == MEANS.tolist()


def test_a_worker_leaves_no_file_and_keeps_a_short_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after kill -9 of the training there is nothing to take away."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(transport, "LOG_LIMIT", 300)
    reward = load_worker_reward(f"{FUNCTIONS}:act", {}, {"images": "numpy", "number": 1})
    assert list(tmp_path.iterdir()) == []
    log = reward._pool.links[0]._log.fileno()  # type: ignore[attr-defined]
    for _ in range(9):
        reward(IMAGES, [{"do": "chatter"}] * 6)
        assert 0 < os.fstat(log).st_size < 300 + 6 * 70  # three lines an image
    scores = reward(IMAGES, [{"do": "chatter"}] * 5 + [{"do": "die"}])
    reward.close()
    assert isinstance(scores, PartialScores)
    assert "its last lines:\n" in scores.error
    assert "and from a process" in scores.error


def test_a_worker_that_changed_does_not_go_on(tmp_path: Path) -> None:
    source = tmp_path / "r.py"
    source.write_text("def f(images, conditions):\n    return [1.0] * len(images)\n")
    reward = load_worker_reward(f"{source}:f", {}, {"images": "numpy"})
    assert reward(IMAGES, rows()).tolist() == [1.0] * 6  # type: ignore[union-attr]
    source.write_text("def f(images, conditions):\n    return [2.0] * len(images)\n")
    os.kill(pid_of(reward), signal.SIGKILL)
    scores = reward(IMAGES, rows())
    reward.close()
    assert isinstance(scores, PartialScores)
    assert not scores.valid.any()
    assert_matches(
        r"is not what it was when it was first started: source \w{64} and \w{64}; end this run", scores.error
    )


def test_one_of_two_workers_that_is_killed_costs_nothing() -> None:
    reward = load_worker_reward(f"{FUNCTIONS}:act", {}, {"images": "numpy", "batch_size": 1, "number": 2})
    os.kill(pid_of(reward), signal.SIGKILL)
    assert reward(IMAGES, rows()).tolist() == MEANS.tolist()  # type: ignore[union-attr]
    reward.close()
    assert is_gone(pid_of(reward))


PARENT = """
import json, subprocess, sys, time
worker = subprocess.Popen(json.loads(sys.argv[1]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
worker.stdin.write(bytes.fromhex(sys.argv[2]))
worker.stdin.flush()
time.sleep(60)
"""


def test_a_worker_ends_with_a_client_that_is_killed(tmp_path: Path) -> None:
    """Also in the middle of a call, and with what the reward started."""
    header = {"op": "score", "id": "1", "shape": [1, 1, 1, 3], "conditions": [{"pids": str(tmp_path / "pids")}]}
    command = [sys.executable, str(WORKER), "--reward", f"{FUNCTIONS}:bear_and_hang", "--images", "numpy"]
    frame = (frame_start(header, 3) + b"abc").hex()
    with subprocess.Popen([sys.executable, "-c", PARENT, json.dumps(command), frame]) as parent:
        until = time.monotonic() + 20
        while not (tmp_path / "pids").exists() or len((tmp_path / "pids").read_text().split()) < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
        assert not any(is_gone(pid) for pid in pids)
        parent.kill()
    wait_until_gone(*pids)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["pass", "raise SystemExit(1)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_process_is_left_by_a_client_that_does_not_close(end: str) -> None:
    program = f"""
import os, signal
from rewards.client import load_worker_reward
reward = load_worker_reward({str(FUNCTIONS)!r} + ":mean", {{}}, {{"images": "numpy", "number": 2}})
print(*[where.rpartition("process ")[2].rstrip(")") for where, _ in reward.health()], flush=True)
{end}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2
    wait_until_gone(*pids)


def test_what_a_reward_started_ends_with_a_call_that_took_too_long(tmp_path: Path) -> None:
    reward = load_worker_reward(f"{FUNCTIONS}:bear_and_hang", {}, {"images": "numpy", "call_timeout": 0.3})
    scores = reward(IMAGES, [{"pids": str(tmp_path / "pids")}] * 6)
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert scores.tolist() == MEANS.tolist()  # type: ignore[union-attr]
    wait_until_gone(*pids)
    reward.close()
