"""Threads that do not keep a process alive: whoever presses Ctrl-C while a reward hangs gets the terminal back.

Those of concurrent.futures are waited for when the interpreter ends, however long they take. All names of threads that run
rewards begin with "reward": recipes/cli.py leaves by another way while there is one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lane:
    """Calls that are made one after another, in the order of `submit`, in a thread of their own until `close`."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="rewards", daemon=True)
            self._thread.start()
        future: Future[Result] = Future()
        self._waiting.put((future, call))
        return future

    def close(self) -> None:
        """End the thread after the calls that were submitted; those that were cancelled are not made."""
        self._waiting.put(None)

    def _work(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            future, call = waiting
            if future.set_running_or_notify_cancel():
                _make(future, call)


def map_in_threads(call: Callable[[Item], Result], items: Iterable[Item], *, number: int) -> list[Result]:
    """What a call gives for each item, in order, by `number` threads at most. The first exception is raised."""
    made: list[tuple[Future[Result], Item]] = [(Future(), item) for item in items]
    waiting: queue.SimpleQueue[tuple[Future[Result], Item]] = queue.SimpleQueue()
    for one in made:
        waiting.put(one)

    def work() -> None:
        while True:
            try:
                future, item = waiting.get_nowait()
            except queue.Empty:
                return
            _make(future, partial(call, item))

    for _ in range(min(number, len(made))):
        threading.Thread(target=work, name="reward call", daemon=True).start()
    return [future.result() for future, _ in made]


def _make(future: Future[Result], call: Callable[[], Result]) -> None:
    try:
        future.set_result(call())
    except BaseException as error:  # it is the one that waits who wants to know
        future.set_exception(error)
