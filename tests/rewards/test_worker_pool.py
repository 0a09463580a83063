"""Who takes which call, what is tried again, and the breaker: with workers that only pretend."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from rewards import worker_pool
from rewards.base import PartialScores
from rewards.client import WorkerReward
from rewards.transport import Refused, TransportFault
from rewards.worker_settings import WorkerSettings

HELLO = {"protocol": 1, "kind": "image", "limit": 1 << 20, "versions": {}, "weights": {}, "settings": {}}
IMAGES = torch.arange(8 * 3, dtype=torch.uint8).reshape(8, 1, 1, 3)


class Pretended:
    """A link to a worker that gives the first channel of each image, unless `act` raises first."""

    def __init__(self, act: Callable[[int], None] = lambda count: None, **hello: Any) -> None:
        self.where, self._act, self._hello = "pretended", act, {**HELLO, **hello}
        self.asked: list[dict[str, Any]] = []
        self.opened = 0

    def open(self, timeout: float) -> dict[str, Any]:
        self.opened += 1
        return self._hello

    def ask(self, header: Mapping[str, Any], body: memoryview, timeout: float) -> tuple[dict[str, Any], bytearray]:
        self.asked.append(dict(header))
        self._act(len(self.asked))
        return {"valid": None, "error": ""}, bytearray(np.frombuffer(body, np.uint8)[::3].astype("<f4").tobytes())

    def state(self) -> str:
        return "ready"

    def close(self) -> None: ...


def fault(count: int) -> None:
    raise TransportFault(f"is dead ({count})")


def reward(*links: Pretended, batch_size: int = 2) -> WorkerReward:
    return WorkerReward("r", links, WorkerSettings(batch_size=batch_size))


def score(worker: WorkerReward, number: int = 8) -> tuple[list[float], list[bool], str]:
    result = worker(IMAGES[:number], [{}] * number)
    if isinstance(result, PartialScores):
        return result.values.tolist(), result.valid.tolist(), result.error
    return result.tolist(), [True] * number, ""


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "BACKOFF", (0.0, 0.0))


def test_a_call_is_tried_three_times_with_one_id() -> None:
    link = Pretended(lambda count: fault(count) if count < 3 else None)
    worker = reward(link, batch_size=8)
    assert score(worker) == ([0, 3, 6, 9, 12, 15, 18, 21], [True] * 8, "")
    assert len({header["id"] for header in link.asked}) == 1
    assert len(link.asked) == link.opened == 3
    score(worker)
    assert len({header["id"] for header in link.asked}) == 2
    dead = Pretended(fault)
    values, valid, error = score(reward(dead, batch_size=8))
    assert np.isnan(values).all()
    assert not any(valid)
    assert error == "pretended is dead (3)\n(tried 3 times)"
    assert len(dead.asked) == 3


def test_what_a_worker_refuses_is_not_tried_again() -> None:
    def refuse(count: int) -> None:
        if count == 2:
            raise Refused("no prompt")

    link = Pretended(refuse)
    values, valid, error = score(reward(link))
    assert valid == [True, True, False, False, True, True, True, True]
    assert values[4:] == [12, 15, 18, 21]
    assert error == "pretended: no prompt"
    assert len(link.asked) == 4
    assert link.opened == 1


def test_an_error_that_nobody_foresaw_is_told_too() -> None:
    def stumble(count: int) -> None:
        raise MemoryError("no room")

    assert score(reward(Pretended(stumble)))[1:] == ([False] * 8, "pretended: MemoryError: no room")


def test_the_pause_between_tries_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "BACKOFF", (0.05, 0.1))
    times: list[float] = []

    def note(count: int) -> None:
        times.append(time.monotonic())
        fault(count)

    score(reward(Pretended(note), batch_size=8))
    assert times[1] - times[0] >= 0.05
    assert times[2] - times[1] >= 0.1


def test_a_dead_worker_leaves_its_calls_to_another() -> None:
    """It fails at once, again and again, while the other one is busy; no call may be lost to it."""
    dead, busy = Pretended(fault), Pretended(lambda count: time.sleep(0.01))
    for _ in range(3):
        assert score(reward(dead, busy, batch_size=1))[1] == [True] * 8
    assert dead.asked


def test_calls_go_to_whoever_is_free() -> None:
    held = threading.Event()
    slow, fast = Pretended(lambda count: held.wait(10) and None), Pretended()
    worker = reward(slow, fast, batch_size=1)
    scoring = threading.Thread(target=lambda: score(worker))
    scoring.start()
    until = time.monotonic() + 10
    while len(slow.asked) + len(fast.asked) < 8 and time.monotonic() < until:
        time.sleep(0.001)
    assert len(slow.asked) <= 1
    held.set()
    scoring.join()


def test_the_breaker_pauses_and_tries_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "BREAKER_SECONDS", 0.2)
    healed = False
    link = Pretended(lambda count: None if healed else fault(count))
    worker = reward(link)
    assert not any(score(worker)[1])
    assert len(link.asked) == 9  # three calls of three tries; the fourth was given up unasked
    assert score(worker)[1:] == ([False] * 8, "pretended is dead (9)")
    assert len(link.asked) == 9
    time.sleep(0.25)
    assert not any(score(worker)[1])
    assert len(link.asked) == 12  # one call on trial
    healed = True
    time.sleep(0.25)
    assert all(score(worker)[1])
    healed = False
    score(worker, 4)
    assert len(link.asked) == 12 + 4 + 6  # it takes three failures in a row again


def test_an_answer_of_another_length_is_no_score() -> None:
    class Short(Pretended):
        def ask(self, *arguments: Any) -> tuple[dict[str, Any], bytearray]:
            header, body = super().ask(*arguments)
            return header, body[:-4]

    assert score(reward(Short(), batch_size=8))[1:] == (
        [False] * 8,
        "pretended: answered 28 bytes for 8 images; 4 are needed for each",
    )


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ([Pretended(protocol=2)], "speaks protocol 2, and this package 1; serve it with the worker.py of this version"),
        ([Pretended(), Pretended(versions={"numpy": "1"})], "have versions.numpy None and 1; they must score alike"),
        ([Pretended(), Pretended(kind="group")], "have kind image and group"),
    ],
)
def test_workers_must_agree(links: list[Pretended], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward(*links)


def test_a_package_that_is_missing_is_not_the_expected_one() -> None:
    settings = WorkerSettings(expect={"versions": {"torch": "2.0", "numpy": "2"}})
    with pytest.raises(ValueError, match=r"pretended has versions.torch None; reward 'r' expects 2.0"):
        WorkerReward("r", [Pretended(versions={"numpy": "2"})], settings)


def test_places_and_limits_may_differ() -> None:
    reward(Pretended(pid=1), Pretended(pid=2, limit=1 << 21, id="x"))


def test_closing_ends_who_waits() -> None:
    held = threading.Event()
    worker = reward(Pretended(lambda count: held.wait(10) and None), batch_size=1)
    results: list[Any] = []
    scoring = threading.Thread(target=lambda: results.append(score(worker)))
    scoring.start()
    time.sleep(0.05)
    threading.Timer(0.05, held.set).start()
    worker.close()
    scoring.join(5)
    assert results[0][2] == "the workers were closed"
