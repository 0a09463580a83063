"""A server that speaks as OpenAI's does and answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

Answer = Callable[[dict[str, Any], int], tuple[int, bytes] | None]


def says(text: str | None, **choice: Any) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"content": text}, **choice}]}).encode()


class Server:
    """Answers by a function of the request and of how often the same question came before; None: hangs up."""

    def __init__(self) -> None:
        self.answer: Answer = lambda request, before: says("Score: 5")
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        outer = self
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    before = sum(question_of(other) == question_of(request) for other in outer.requests)
                    outer.requests.append(request)
                    outer.headers.append({**self.headers, "path": self.path})
                answered = outer.answer(request, before)
                if answered is None:
                    return
                self.send_response(answered[0])
                self.send_header("Content-Length", str(len(answered[1])))
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                self.wfile.write(answered[1])

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.server.handle_error = lambda *_: None  # clients that give up are part of the tests
        self.released = threading.Event()
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def hang(self) -> None:
        """Until the test ends."""
        self.released.wait(30)


def question_of(request: dict[str, Any]) -> str:
    return request["messages"][0]["content"][1]["text"]


@contextmanager
def running_server() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.released.set()
        server.server.shutdown()
        server.server.server_close()


def first_words(**chances: float) -> dict[str, Any]:
    listed = [{"token": token.replace("_", " "), "logprob": float(np.log(chance))} for token, chance in chances.items()]
    return {"logprobs": {"content": [{"token": "x", "top_logprobs": listed}, {"token": "y", "top_logprobs": []}]}}
