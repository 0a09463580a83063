"""Workers that share one queue of calls: who takes which, what is tried again, and when nothing is tried any more."""

from __future__ import annotations

import collections
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rewards.transport import Link, ProcessLink, Refused, TransportFault
from rewards.worker_settings import WorkerSettings

TRIES = 3
BACKOFF = (0.5, 1.0)  # seconds that a worker rests after its first failure in a row, and after each further one
BREAKER_CALLS, BREAKER_SECONDS = 3, 30.0


@dataclass(eq=False)
class Call:
    """Images that go to a worker in one message, and what came back."""

    header: dict[str, Any]
    body: memoryview
    size: int
    tries: int = 0
    failed_on: set[int] = field(default_factory=set)
    values: np.ndarray | None = None
    valid: np.ndarray | None = None
    error: str = ""
    done: threading.Event = field(default_factory=threading.Event)

    def finish(self, values: np.ndarray, valid: np.ndarray, error: str) -> None:
        self.values, self.valid, self.error = values, valid, error
        self.done.set()

    def fail(self, error: str) -> None:
        self.finish(np.full(self.size, np.nan, np.float32), np.zeros(self.size, bool), error)


class WorkerPool:
    """Workers that take calls from one queue. Each has a thread, which opens its link, asks, and opens it again."""

    def __init__(self, links: Sequence[Link], settings: WorkerSettings) -> None:
        self.links, self.settings = links, settings
        self.hellos: list[dict[str, Any] | Exception | None] = [None] * len(links)
        self.faults = [0] * len(links)  # in a row
        self._waiting: collections.deque[Call] = collections.deque()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._unanswered, self._paused_until, self._last_error = 0, 0.0, ""
        self._owner = os.getpid()
        self._threads = [
            threading.Thread(target=self._run, args=(index,), name=f"reward worker {index}", daemon=True)
            for index in range(len(links))
        ]
        for thread in self._threads:
            thread.start()

    def wait_until_open(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: all(hello is not None for hello in self.hellos))

    def put(self, calls: Sequence[Call]) -> None:
        """Let the workers do these calls; returns when all are done, or given up."""
        if self._unanswered >= BREAKER_CALLS and len(calls) > 1:
            self.put(calls[:1])  # on trial: the others only if this one is answered
            calls = calls[1:]
        with self._changed:
            if self._closed.is_set():
                raise ValueError("the workers of this reward were closed; load it again")
            if self._unanswered >= BREAKER_CALLS and time.monotonic() < self._paused_until:
                for call in calls:
                    call.fail(self._last_error)
            else:
                self._waiting.extend(calls)
                self._changed.notify_all()
        for call in calls:
            call.done.wait()

    def close(self) -> None:
        """End the threads and the processes of our own."""
        if os.getpid() != self._owner:
            return  # a forked copy; the workers are its parent's
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
        for link in self.links:
            link.close()  # a thread that waits for an answer is woken up by it
        until = time.monotonic() + 2
        for thread in self._threads:
            thread.join(max(0, until - time.monotonic()))
        while self._waiting:
            self._waiting.popleft().fail("the workers were closed")

    def _run(self, index: int) -> None:
        link = self.links[index]
        try:
            hello: dict[str, Any] | Exception = self._open(index)
        except Exception as error:
            hello = error
        with self._changed:
            self.hellos[index] = hello
            self._changed.notify_all()
        is_open = not isinstance(hello, Exception)
        while (call := self._take(index)) is not None:
            try:
                if not is_open:
                    self._open_again(index)
                    is_open = True
                call.finish(*self._ask(link, call))
                self._count(answered=True)
                self.faults[index] = 0
            except TransportFault as fault:
                is_open = False
                link.close()
                self.faults[index] += 1
                self._give_back(index, call, f"{link.where} {fault}")
                self._closed.wait(BACKOFF[min(self.faults[index], len(BACKOFF)) - 1])
            except Refused as error:
                call.fail(f"{link.where}: {error}")
            except Exception as error:  # whatever it is, who waits for this call is told
                is_open = False
                call.fail(f"{link.where}: {type(error).__name__}: {error}")
            if not is_open:
                link.close()
        link.close()

    def _open(self, index: int) -> dict[str, Any]:
        """At the start: a server that is not there yet is tried as often as a call."""
        for pause in (*BACKOFF, None):
            try:
                return self.links[index].open(self.settings.start_timeout)
            except TransportFault:
                self.links[index].close()
                if pause is None or isinstance(self.links[index], ProcessLink) or self._closed.wait(pause):
                    raise
        raise AssertionError

    def _open_again(self, index: int) -> None:
        hello = self.links[index].open(self.settings.start_timeout)
        first = self.hellos[index]
        assert isinstance(first, dict)
        if changed := differences(first, hello):
            raise Refused(f"is not what it was when it was first started: {changed}; end this run and begin anew")

    def _take(self, index: int) -> Call | None:
        """The next call that this worker may try; None at the end. One that it failed is left to others that did not."""
        with self._changed:
            while not self._closed.is_set():
                for call in self._waiting:
                    if index not in call.failed_on or len(call.failed_on) == len(self.links):
                        self._waiting.remove(call)
                        return call
                self._changed.wait()
        return None

    def _ask(self, link: Link, call: Call) -> tuple[np.ndarray, np.ndarray, str]:
        header, body = link.ask(call.header, call.body, self.settings.call_timeout)
        valid = header.get("valid")
        valid_B = np.ones(call.size, bool) if valid is None else np.asarray(valid)
        if len(body) != 4 * call.size or valid_B.shape != (call.size,) or valid_B.dtype != bool:
            raise Refused(f"answered {len(body)} bytes for {call.size} images; 4 are needed for each")
        return np.frombuffer(body, "<f4"), valid_B, str(header.get("error", ""))

    def _give_back(self, index: int, call: Call, error: str) -> None:
        """A call that was not answered: to the front of the queue, or given up."""
        call.tries += 1
        call.failed_on.add(index)
        if call.tries < TRIES and not self._closed.is_set():
            with self._changed:
                self._waiting.appendleft(call)
                self._changed.notify_all()
        else:
            call.fail(f"{error}\n(tried {call.tries} times)")
            self._count(answered=False, error=error)

    def _count(self, *, answered: bool, error: str = "") -> None:
        """The breaker: after too many calls in a row that no worker answered, those that wait are given up at once."""
        with self._changed:
            self._unanswered = 0 if answered else self._unanswered + 1
            self._last_error = error
            if self._unanswered >= BREAKER_CALLS:
                self._paused_until = time.monotonic() + BREAKER_SECONDS
                while self._waiting:
                    self._waiting.popleft().fail(error)


def differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In what two hellos differ that scores may depend on; empty if in nothing."""
    one, two = identity(first), identity(other)
    keys = sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
    return ", ".join(f"{key} {one.get(key)} and {two.get(key)}" for key in keys)


def identity(hello: Mapping[str, Any]) -> dict[str, Any]:
    """What scores may depend on, of a hello."""
    flat: dict[str, Any] = {}
    for key, value in hello.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        elif key not in ("id", "pid", "limit"):
            flat[key] = value
    return flat
