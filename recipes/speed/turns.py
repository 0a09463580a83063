"""Several trainings in one process, step by step in turn, each by its own loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from recipes.speed.machine import synchronize

# to be called at the end of each step; comes back when the next step is due
EndStep = Callable[[], None]


class Turns:
    """Lets threads run one at a time, a step each, and keeps how long each step took, with all that its loop does
    between two steps. A loop has its first turn from the start and gives its last one up by ending."""

    def __init__(self, names: list[str]) -> None:
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.failure: BaseException | None = None
        self._waiting = list(names)  # the first of them has its turn
        self._change = threading.Condition()
        self._started = 0.0

    def run(self, name: str, loop: Callable[[EndStep], None]) -> None:
        """The body of a thread."""
        try:
            self._wait(name)
            loop(lambda: self._end_step(name))
        except BaseException as error:
            self.failure = self.failure or error
        finally:
            with self._change:
                self._waiting.remove(name)
                self._change.notify_all()

    def _end_step(self, name: str) -> None:
        synchronize()
        self.seconds[name].append(time.perf_counter() - self._started)
        with self._change:
            self._waiting.remove(name)
            self._waiting.append(name)
            self._change.notify_all()
        self._wait(name)

    def _wait(self, name: str) -> None:
        with self._change:
            self._change.wait_for(lambda: self.failure is not None or self._waiting[0] == name)
        if self.failure is not None:
            raise InterruptedError("another training failed")
        self._started = time.perf_counter()


def in_turn(loops: Mapping[str, Callable[[EndStep], None]]) -> dict[str, list[float]]:
    """Seconds of every step of each loop but its first, which warms up. What goes wrong in one stops all."""
    turns = Turns(list(loops))
    threads = [threading.Thread(target=turns.run, args=(name, loop)) for name, loop in loops.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if turns.failure is not None:
        raise turns.failure
    return {name: times[1:] for name, times in turns.seconds.items()}


class Watched(TrainerCallback):
    """Ends a step of transformers' loop."""

    def __init__(self, end_step: EndStep) -> None:
        self.end_step = end_step

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.end_step()
