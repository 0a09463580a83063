"""What `rewards.worker` loads to be reached by more than its parent: a unix socket, HTTP. Standard library only."""

from __future__ import annotations

import hmac
import http.server
import ipaddress
import json
import os
import queue
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from rewards.worker import Engine

TOKEN_VARIABLE = "ALIGN_REWARD_TOKEN"


def listen(engine: Engine, address: str, token_file: str | None, allow_remote: bool) -> None:
    """Serve at an address, from threads of its own, and print where.

    Raises:
        ValueError, OSError: an address that is none, is taken, or can be reached from elsewhere; HTTP without a token.
    """
    if address.startswith("unix:"):
        listen_unix(engine, address[len("unix:") :])
    elif address.startswith("http://"):
        listen_http(engine, address, token_file, allow_remote)
    else:
        raise ValueError(f"cannot listen on {address!r}; allowed: unix:/path, http://host:port")


def listen_unix(engine: Engine, path: str) -> None:
    """Serve clients of this user on a unix socket; a file that a dead worker left there is replaced."""
    listener = socket.socket(socket.AF_UNIX)
    if Path(path).is_socket():
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(path)
            raise ValueError(f"another worker listens at {path}; end it, or choose another path")
        except ConnectionRefusedError:
            Path(path).unlink()
    mask = os.umask(0o177)  # nobody else may connect
    listener.bind(path)
    os.umask(mask)
    listener.listen()

    def serve(connection: socket.socket) -> None:
        with connection:
            engine.serve(connection.recv_into, connection.sendall)

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()

    print(f"listening on unix:{path}", flush=True)
    threading.Thread(target=accept, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    """One request a connection; `engine` and `token` are set on a subclass."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a client may be silent within a request
    engine: Engine
    token: str

    def do_GET(self) -> None:
        if self._known():
            if self.path == "/health":
                self._send(200, json.dumps({"state": self.engine.state}).encode())
            elif self.path == "/info" and self.engine.hello:
                self._send(200, json.dumps(dict(self.engine.hello, limit=self.engine.limit)).encode())
            else:
                self._send(*((503, b"loading") if self.path == "/info" else (404, b"known: /score /info /health")))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not self._known():
            pass  # it is told so
        elif self.path != "/score":
            self._send(404, b"known: /score /info /health")
        elif not length.isdecimal() or int(length) == 0:
            self._send(411, b"the request needs a body and its Content-Length")
        elif int(length) > self.engine.limit:
            self._send(413, f"{int(length):,} bytes are above the limit of {self.engine.limit:,}".encode())
        elif not self.engine.hello:
            self._send(503, b"loading")
        else:
            self._send(*self._exchange(int(length)))

    def _exchange(self, left: int) -> tuple[int, bytes]:
        """The frame that answers the one in the body, of `left` bytes, with its status."""

        def read_into(buffer: memoryview) -> int:
            nonlocal left
            count = self.rfile.readinto(buffer[:left])
            left -= count
            return count

        answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.engine.serve(read_into, answers.put)
        if left and answers.empty():
            return 408, b"the body did not arrive"
        return 200, answers.get()

    def _known(self) -> bool:
        given = self.headers.get("Authorization", "").encode()
        if hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            return True
        self._send(401, b"the bearer token is missing or wrong")
        return False

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        """Requests are not listed; the reward's own errors are printed where they arise."""


def listen_http(engine: Engine, address: str, token_file: str | None, allow_remote: bool) -> None:
    token = (Path(token_file).read_text() if token_file else os.environ.get(TOKEN_VARIABLE, "")).strip()
    if not token:
        raise ValueError(f"HTTP needs a token: give --token-file FILE, or set {TOKEN_VARIABLE}")
    parts = urlsplit(address)
    host = socket.gethostbyname(parts.hostname or "")
    if not ipaddress.ip_address(host).is_loopback and not allow_remote:
        raise ValueError(f"{host} can be reached from other machines, unencrypted; say --allow-remote if that is meant")
    handler = type("BoundHandler", (Handler,), {"engine": engine, "token": token})
    server = http.server.ThreadingHTTPServer((host, parts.port or 0), handler)
    print(f"listening on http://{host}:{server.server_port}", flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
