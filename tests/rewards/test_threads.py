"""Calls in threads: in order, with their exceptions, and without keeping a process alive."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rewards.threads import Lane, map_in_threads


def failing() -> int:
    raise KeyError("weights")


def test_a_lane_makes_one_call_after_another() -> None:
    lane, made = Lane(), []
    slow = lane.submit(lambda: (time.sleep(0.05), made.append("slow"))[1])
    wrong = lane.submit(failing)
    fast = lane.submit(lambda: made.append("fast"))
    assert fast.result(10) is None
    assert made == ["slow", "fast"]
    assert slow.done()
    with pytest.raises(KeyError, match="weights"):
        wrong.result(10)


def test_a_closed_lane_ends_its_thread_and_skips_what_was_cancelled() -> None:
    lane, release, made = Lane(), threading.Event(), []
    lane.submit(lambda: release.wait(10))
    lane.submit(lambda: made.append("cancelled")).cancel()
    last = lane.submit(lambda: made.append("last"))
    lane.close()
    release.set()
    last.result(10)
    assert made == ["last"]
    assert lane._thread is not None
    lane._thread.join(10)
    assert not lane._thread.is_alive()


def test_results_come_in_the_order_of_the_items() -> None:
    meet = threading.Barrier(3, timeout=10)  # three at once, and no more

    def call(item: int) -> int:
        meet.wait()
        time.sleep(0.01 * (3 - item % 3))
        return 10 * item

    assert map_in_threads(call, range(6), number=3) == [0, 10, 20, 30, 40, 50]
    assert map_in_threads(call, [], number=3) == []


def test_the_first_exception_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        map_in_threads(lambda item: 1 / item, [1, 0, 2], number=2)


@pytest.mark.parametrize("call", ["Lane().submit(hang)", "main.start()"])
def test_a_process_ends_while_a_call_hangs(call: str) -> None:
    code = (
        "import threading, time\nfrom rewards.threads import Lane, map_in_threads\ndef hang(*_): time.sleep(30)\n"
        "main = threading.Thread(target=map_in_threads, args=(hang, [1, 2]), kwargs={'number': 2}, daemon=True)\n"
        f"{call}\ntime.sleep(0.05)\n"
    )
    clock = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20, cwd=Path(__file__).parents[2])
    assert time.monotonic() - clock < 15
