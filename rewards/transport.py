"""How the client reaches one worker: a process of its own, a unix socket, HTTP. `rewards.worker` is the other end.

A link is opened, which gives the worker's hello, and then asked; it is closed and opened again after any fault. None of
them retries or remembers: `rewards.worker_pool` does.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from rewards.worker import MEGABYTE, FrameError, frame_start, read_frame

ANSWER_LIMIT = 64 * MEGABYTE
LOG_LIMIT = MEGABYTE
_TRANSIENT = (408, 429, 502, 503, 504)


class TransportFault(Exception):
    """A worker that is dead, silent or out of step: it may answer if it is asked again."""


class Refused(Exception):
    """A worker's own word that it cannot do what was asked: asking again will not help."""


class Link(Protocol):
    """A way to one worker; `where` names it in messages. Any method may raise TransportFault or Refused."""

    where: str

    def open(self, timeout: float) -> dict[str, Any]:
        """Connect, and wait `timeout` seconds at most until the reward is loaded; the worker's hello."""

    def ask(self, header: Mapping[str, Any], body: memoryview, timeout: float) -> tuple[dict[str, Any], bytearray]:
        """A request's answer, header and raw bytes."""

    def state(self) -> str:
        """`loading`, `ready`, `degraded` (its last call failed) or `gone`; the link need not be open."""

    def close(self) -> None:
        """Give the worker up; a process of our own is ended. Never raises."""


def parse_answer(header: dict[str, Any], body: bytearray, name: str) -> tuple[dict[str, Any], bytearray]:
    if "failed" in header:
        raise Refused(str(header["failed"]))
    if header.get("id") != name:
        raise TransportFault(f"answered request {header.get('id')!r} instead of {name!r}")
    return header, body


class SocketLink:
    """A worker that listens at unix:/path."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._socket: socket.socket | None = None

    def open(self, timeout: float) -> dict[str, Any]:
        self._socket = self._connect()
        name = uuid.uuid4().hex
        return self.ask({"op": "hello", "id": name}, memoryview(b""), timeout)[0]

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self.where.removeprefix("unix:"))
        except OSError as error:
            connection.close()
            raise TransportFault(f"cannot be reached: {error}; is it running there?") from error
        return connection

    def ask(self, header: Mapping[str, Any], body: memoryview, timeout: float) -> tuple[dict[str, Any], bytearray]:
        if self._socket is None:
            raise TransportFault("is not connected")
        connection, deadline = self._socket, time.monotonic() + timeout

        def read_into(buffer: memoryview) -> int:
            connection.settimeout(max(deadline - time.monotonic(), 1e-3))
            return connection.recv_into(buffer)

        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before it read all
                connection.settimeout(timeout)
                connection.sendall(frame_start(dict(header), len(body)))
                connection.settimeout(max(deadline - time.monotonic(), 1e-3))
                connection.sendall(body)
            frame = read_frame(read_into, ANSWER_LIMIT)
        except TimeoutError as error:
            raise TransportFault(f"did not answer within {timeout:g} seconds") from error
        except (OSError, FrameError) as error:
            raise TransportFault(f"broke off: {error}") from error
        if frame is None:
            raise TransportFault("ended without an answer")
        return parse_answer(*frame, header["id"])

    def state(self) -> str:
        return "gone" if self._socket is None else "ready"

    def close(self) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            with contextlib.suppress(OSError):  # wakes who waits for it, and ends a copy that a forked child holds
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


class ProcessLink(SocketLink):
    """A worker process of our own, in a session of its own; its stdin and stdout are one end of a socket pair.

    Its stderr goes to a file without a name, of which nothing is left however this process ends.

    Args:
        command: interpreter, worker.py and its arguments.
        environment: all of its variables.
    """

    def __init__(self, where: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        super().__init__(where)
        self._command, self._environment = command, environment
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115, held as long as this link
        fcntl.fcntl(self._log, fcntl.F_SETFL, os.O_APPEND)  # the worker goes on at the end, also after we cut it

    def open(self, timeout: float) -> dict[str, Any]:
        self._log.truncate(0)
        hello = super().open(timeout)
        self.where = f"{self.where.partition(' (')[0]} (process {hello['pid']})"
        return hello

    def _connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=self._log,
                    env=dict(self._environment),
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise Refused(f"cannot be started: {error}; `python` is the path of an interpreter") from error
        return ours

    def ask(self, header: Mapping[str, Any], body: memoryview, timeout: float) -> tuple[dict[str, Any], bytearray]:
        started = time.monotonic()
        if os.fstat(self._log.fileno()).st_size > LOG_LIMIT:
            self._log.truncate(0)  # only its last lines are ever told
        try:
            return super().ask(header, body, timeout)
        except TransportFault as fault:
            # a worker ends itself after as many seconds as we wait, and may be the first
            late = time.monotonic() - started > 0.9 * timeout
            text = f"did not answer within {timeout:g} seconds" if late else str(fault)
            raise TransportFault(f"{text}{self._ending()}{self.last_lines()}") from fault

    def _ending(self) -> str:
        """How the process ended, if it did."""
        if self._process is None:
            return ""
        try:
            code = self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            return ""
        return f" (killed by {signal.Signals(-code).name})" if code < 0 else f" (exit code {code})"

    def last_lines(self) -> str:
        log = self._log.fileno()
        text = os.pread(log, 2000, max(0, os.fstat(log).st_size - 2000))
        lines = text.decode(errors="replace").strip().splitlines()[-12:]
        return "; its last lines:\n" + "\n".join(lines) if lines else ""

    def state(self) -> str:
        return "gone" if self._process is None or self._process.poll() is not None else "ready"

    def close(self) -> None:
        super().close()
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):  # its whole group: what the reward started goes with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class HttpLink:
    """A worker that listens at http://host:port, for those who know the token. A connection for each request."""

    def __init__(self, where: str, token: str) -> None:
        self.where = where
        self._headers = {"Authorization": f"Bearer {token}"}

    def open(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while self.state() == "loading":
            if time.monotonic() > deadline:
                raise TransportFault(f"is still loading after {timeout:g} seconds")
            time.sleep(0.2)
        return self._get("/info")

    def ask(self, header: Mapping[str, Any], body: memoryview, timeout: float) -> tuple[dict[str, Any], bytearray]:
        start = frame_start(dict(header), len(body))
        answer = memoryview(self._request("POST", "/score", start, body, timeout=timeout))

        def read_into(buffer: memoryview) -> int:
            nonlocal answer
            count = min(len(buffer), len(answer))
            buffer[:count], answer = answer[:count], answer[count:]
            return count

        try:
            frame = read_frame(read_into, ANSWER_LIMIT)
        except FrameError as error:
            raise TransportFault(f"broke off: {error}") from error
        if frame is None:
            raise TransportFault("sent an empty answer")
        return parse_answer(*frame, header["id"])

    def state(self) -> str:
        return str(self._get("/health").get("state"))

    def close(self) -> None:
        """Nothing is held."""

    def _get(self, path: str) -> dict[str, Any]:
        text = self._request("GET", path, timeout=10)
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise Refused(f"is no worker of a reward: {path} gave {text[:60]!r}") from error

    def _request(self, method: str, path: str, *parts: bytes | memoryview, timeout: float) -> bytes:
        address = urlsplit(self.where)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)
        try:
            connection.putrequest(method, path)
            for key, value in self._headers.items():
                connection.putheader(key, value)
            connection.putheader("Content-Length", str(sum(len(part) for part in parts)))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before it read all
                connection.endheaders()
                for part in parts:
                    connection.send(part)
            response = connection.getresponse()
            status, text = response.status, response.read()
        except TimeoutError as error:
            raise TransportFault(f"did not answer within {timeout:g} seconds") from error
        except (OSError, http.client.HTTPException) as error:
            raise TransportFault(f"cannot be reached: {type(error).__name__}: {error}; is it running there?") from error
        finally:
            connection.close()
        if status in _TRANSIENT:
            raise TransportFault(f"answered {status}: {text[:200].decode(errors='replace')}")
        if status != 200:
            raise Refused(f"answered {status}: {text[:200].decode(errors='replace')}")
        return text
