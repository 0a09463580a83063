"""What SIGTERM does to a training whose other process is gone."""

from __future__ import annotations

import signal
from types import FrameType

import pytest

from align.training.callbacks import StopOnSignal


@pytest.mark.parametrize(
    ("number", "message", "ends"),
    [
        (signal.SIGTERM, "Connection closed by peer [127.0.0.1]:5", True),
        (signal.SIGTERM, "out of memory", False),  # a reason of its own, still to be told
        (signal.SIGINT, "Connection closed by peer [127.0.0.1]:5", False),
    ],
)
def test_a_process_that_a_launcher_ends_goes_when_it_has_lost_contact(number: int, message: str, ends: bool) -> None:
    seen: list[int] = []

    def outside(received: int, frame: FrameType | None) -> None:
        seen.append(received)

    before = {one: signal.signal(one, outside) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(RuntimeError, match="peer|memory"), StopOnSignal():
            signal.raise_signal(number)
            assert seen == []  # the first one asks for an end after this step
            raise RuntimeError(message)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert seen == ([signal.SIGTERM] if ends else [])
