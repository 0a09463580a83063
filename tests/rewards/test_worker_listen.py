"""Workers that listen: several clients on a unix socket; over HTTP only who knows the token, and no large message."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards import worker_pool
from rewards.base import PartialScores
from rewards.client import load_worker_reward
from rewards.serve import serve
from rewards.transport import HttpLink, Refused, SocketLink, TransportFault
from rewards.worker import frame_start, read_frame

FUNCTIONS = Path(__file__).parent.parent / "worker_rewards.py"
WORKER = Path(worker_pool.__file__).with_name("worker.py")
IMAGES = torch.arange(6 * 2 * 2 * 3, dtype=torch.uint8).reshape(6, 2, 2, 3)
MEANS = [5.5, 17.5, 29.5, 41.5, 53.5, 65.5]


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "BACKOFF", (0.0, 0.0))
    monkeypatch.delenv("ALIGN_REWARD_TOKEN", raising=False)


@contextlib.contextmanager
def listening(address: str, *words: str) -> Iterator[str]:
    command = [sys.executable, str(WORKER), "--reward", f"{FUNCTIONS}:act", "--images", "numpy", "--listen", address]
    with subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            yield line.removeprefix("listening on ").strip() or process.stderr.read()
        finally:
            process.kill()


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text("right\n")
    return file


@pytest.fixture(scope="module")
def server(token: Path) -> Iterator[str]:
    with listening("http://127.0.0.1:0", "--token-file", str(token)) as address:
        yield address


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("s") / "s"
    path.touch()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))  # by a worker that died
    with listening(f"unix:{path}"):
        yield path


def request(name: str, **row: Any) -> dict[str, Any]:
    return {"op": "score", "id": name, "shape": [1, 1, 1, 3], "conditions": [row]}


def same_request_twice(first: Any, second: Any, log: Path) -> None:
    """The second while the first is computed, and again when it is done."""
    header, answers = request(str(log), do="nap", log=str(log)), []
    threads = [
        threading.Thread(target=lambda link=link: answers.append(link.ask(header, memoryview(b"abc"), 10)))
        for link in (first, second)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.append(second.ask(header, memoryview(b"abc"), 10))
    assert len(answers) == 3
    assert all(answer == answers[0] for answer in answers)
    assert len(log.read_text().splitlines()) == 1


def test_two_clients_of_a_socket(socket_path: Path) -> None:
    first, second = (load_worker_reward("r", {}, {"addresses": [f"unix:{socket_path}"]}) for _ in range(2))
    assert first(IMAGES, [{}] * 6).tolist() == MEANS  # type: ignore[union-attr]
    assert second(IMAGES, [{}] * 6).tolist() == MEANS  # type: ignore[union-attr]
    first.close()
    assert second(IMAGES, [{}] * 6).tolist() == MEANS  # type: ignore[union-attr]
    assert second.health() == [(f"unix:{socket_path}", "ready")]
    second.close()


def test_a_socket_is_its_users_own(socket_path: Path) -> None:
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    with listening(f"unix:{socket_path}") as message:
        assert f"another worker listens at {socket_path}" in message


def test_a_request_that_is_sent_again_is_computed_once(socket_path: Path, server: str, tmp_path: Path) -> None:
    sockets = SocketLink(f"unix:{socket_path}"), SocketLink(f"unix:{socket_path}")
    for link in sockets:
        link.open(10)
    same_request_twice(*sockets, tmp_path / "socket")
    for link in sockets:
        link.close()
    same_request_twice(HttpLink(server, "right"), HttpLink(server, "right"), tmp_path / "http")


def test_a_client_that_talks_nonsense_is_told_and_left(socket_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_path))
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.closing(client.makefile("rb")) as stream:
            frame = read_frame(stream.readinto, 1000)
    assert frame == ({"id": None, "failed": "a message begins with b'ARW1'; got b'GET '"}, b"")


def test_a_message_that_is_too_large_is_refused_while_it_is_sent(socket_path: Path) -> None:
    link = SocketLink(f"unix:{socket_path}")
    link.open(10)
    with pytest.raises(Refused, match=r"a message of 100,000,\d+ bytes is above the limit of 67,108,864"):
        link.ask(request("large"), memoryview(bytes(100_000_000)), 10)
    link.close()


def test_scores_over_http(server: str, token: Path) -> None:
    reward = load_worker_reward("r", {}, {"addresses": [server], "token_file": str(token), "batch_size": 4})
    assert reward(IMAGES, [{}] * 6).tolist() == MEANS  # type: ignore[union-attr]
    assert reward.health() == [(server, "ready")]
    scores = reward(IMAGES, [{}] * 5 + [{"do": "complain"}])
    assert isinstance(scores, PartialScores)
    assert scores.valid.tolist() == [True] * 4 + [False] * 2
    assert "KeyError: 'prompt'" in scores.error
    assert reward.health() == [(server, "degraded")]
    reward.close()


@pytest.mark.parametrize("given", ["wrong", "", "right "])
def test_a_wrong_token_is_refused(server: str, given: str) -> None:
    with pytest.raises(Refused, match="answered 401: the bearer token is missing or wrong"):
        HttpLink(server, given).state()
    with pytest.raises(Refused, match="answered 401"):
        HttpLink(server, given).ask(request("wrong"), memoryview(b"abc"), 10)


def test_a_wrong_token_does_not_start(server: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("wrong")
    with pytest.raises(
        ValueError, match="did not start: http://.*: answered 401: the bearer token is missing or wrong"
    ):
        load_worker_reward("r", {}, {"addresses": [server], "token_file": str(tmp_path / "token")})


@pytest.mark.parametrize(
    ("method", "path", "length", "status"),
    [
        ("POST", "/score", str(100_000_000), 413),  # declared, and never sent
        ("POST", "/score", "0", 411),
        ("POST", "/score", "many", 411),
        ("POST", "/other", "3", 404),
        ("GET", "/other", None, 404),
    ],
)
def test_requests_are_answered_without_their_body(
    server: str, method: str, path: str, length: str | None, status: int
) -> None:
    host, _, port = server.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.putrequest(method, path)
    connection.putheader("Authorization", "Bearer right")
    if length is not None:
        connection.putheader("Content-Length", length)
    connection.endheaders()
    assert connection.getresponse().status == status
    connection.close()


def test_a_body_of_100_megabytes_is_refused_and_the_server_goes_on(server: str) -> None:
    link = HttpLink(server, "right")
    with pytest.raises(Refused, match="answered 413: 100,000,078 bytes are above the limit of 67,108,864"):
        link.ask({"op": "score", "id": "large", "shape": [], "conditions": [1]}, memoryview(bytes(100_000_000)), 10)
    assert link.state() in ("ready", "degraded")


@pytest.mark.parametrize("sent", [frame_start({"id": "a"}, 100) + b"abc", frame_start({"id": "a"}, 0) + b"abc", b"{}"])
def test_a_body_that_is_no_message_is_refused(server: str, sent: bytes) -> None:
    text = HttpLink(server, "right")._request("POST", "/score", sent, timeout=5)
    assert b'"failed"' in text
    assert b"message" in text


def test_listening_needs_a_token_and_stays_on_this_machine(token: Path) -> None:
    with listening("http://127.0.0.1:0") as message:
        assert message == "error: HTTP needs a token: give --token-file FILE, or set ALIGN_REWARD_TOKEN\n"
    with listening("http://0.0.0.0:0", "--token-file", str(token)) as message:
        assert "0.0.0.0 can be reached from other machines, unencrypted; say --allow-remote" in message
    with listening("ftp://x") as message:
        assert "cannot listen on 'ftp://x'; allowed: unix:/path, http://host:port" in message


@contextlib.contextmanager
def answering(*answers: tuple[int, bytes]) -> Iterator[str]:
    """A server that gives these, one after another."""
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = left.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *words: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_busy_server_may_be_asked_again(status: int) -> None:
    with answering((status, b"busy")) as address, pytest.raises(TransportFault, match=f"answered {status}: busy"):
        HttpLink(address, "t").ask(request("a"), memoryview(b"abc"), 5)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ((500, b"no"), Refused, "answered 500: no"),
        ((200, b""), TransportFault, "sent an empty answer"),
        ((200, b"<html>"), TransportFault, "broke off: a message begins with"),
        ((200, frame_start({"id": "b"}, 0)), TransportFault, "answered request 'b' instead of 'a'"),
    ],
)
def test_other_answers_are_told_apart(answer: tuple[int, bytes], kind: type[Exception], message: str) -> None:
    with answering(answer) as address, pytest.raises(kind, match=message):
        HttpLink(address, "t").ask(request("a"), memoryview(b"abc"), 5)


def test_a_server_that_is_still_loading_is_waited_for() -> None:
    hello = {"protocol": 1}
    loading, ready = (json.dumps({"state": state}).encode() for state in ("loading", "ready"))
    with answering((200, loading), (200, ready), (200, json.dumps(hello).encode())) as address:
        assert HttpLink(address, "t").open(5) == hello
    with (
        answering((200, loading), (200, loading)) as address,
        pytest.raises(TransportFault, match="is still loading after 0.1 seconds"),
    ):
        HttpLink(address, "t").open(0.1)
    with answering((200, b"[1]")) as address, pytest.raises(Refused, match="is no worker of a reward: /health gave"):
        HttpLink(address, "t").open(5)


@pytest.mark.parametrize(
    "make", [lambda path: SocketLink(f"unix:{path}"), lambda path: HttpLink("http://127.0.0.1:1", "t")]
)
def test_nobody_there(make: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(TransportFault, match="cannot be reached: .*; is it running there?"):
        make(tmp_path / "none").open(1)


def test_serving_makes_a_token_that_only_its_user_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr("os.execve", lambda *arguments: called.append(arguments))
    file = tmp_path / "new" / "token"
    serve(f"{FUNCTIONS}:mean", {"scale": 2.0}, "http://127.0.0.1:8400", str(file), device="1")
    (python, command, variables), token = called[0], file.read_text()
    assert python == command[0] == sys.executable
    assert command[command.index("--listen") + 1] == "http://127.0.0.1:8400"
    assert command[command.index("--token-file") + 1] == str(file)
    assert "--allow-remote" not in command
    assert variables["CUDA_VISIBLE_DEVICES"] == "1"
    assert len(token.strip()) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    serve(f"{FUNCTIONS}:mean", {}, "http://127.0.0.1:8400", str(file))
    assert file.read_text() == token
    with pytest.raises(ValueError, match=r"has to know a token: give token_file=PATH"):
        serve(f"{FUNCTIONS}:mean", {}, "http://127.0.0.1:8400")


def test_the_command_line_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.rewards_serve import main

    called: list[Any] = []
    monkeypatch.setattr("os.execve", lambda *arguments: called.append(arguments))
    main(
        [f"{FUNCTIONS}:mean", "listen=unix:/x", "kwargs.scale=2.5", "max_megabytes=8", "allow_remote=true", "python=/p"]
    )
    command = called[0][1]
    assert command[0] == "/p"
    assert json.loads(command[command.index("--kwargs") + 1]) == {"scale": 2.5}
    assert command[command.index("--max-megabytes") + 1] == "8"
    assert command[-1] == "--allow-remote"
    for words, message in ((["x"], "which reward, and where?"), (["x", "listn=y"], "unknown setting 'listn'")):
        with pytest.raises(ValueError, match=message):
            main(words)
