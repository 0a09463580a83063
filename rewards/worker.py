"""A reward in a Python environment of its own: this file is run, by its path, by that environment's interpreter.

    PYTHON worker.py --reward path/to/file.py:function --kwargs '{"weights": "w.pt"}' [--listen ADDRESS --token-file FILE]

It needs the standard library and numpy, from Python 3.8 on, and nothing of ours: `rewards.client` is the other end.
Without --listen it serves its parent over stdin and stdout, and ends with it; `unix:/path` serves several clients of this
user, `http://127.0.0.1:8400` those who know the token.

A message is a frame: 4 bytes `ARW1`, the lengths of what follows (4 and 8 bytes, big-endian), a JSON header, raw bytes.

    {"op": "hello", "id"}                                            -> what `describe` gives, and "id"
    {"op": "score", "id", "shape", "conditions"} + uint8 [B, H, W, 3] -> {"id", "valid", "error"} + float32 [B], little-endian
    whatever cannot be answered                                      -> {"id", "failed": what went wrong}

Over HTTP the same frames are posted to /score; GET /info and /health give JSON. Calls of the reward come one after
another. A request whose id was seen before gets the answer of that one: a retry costs nothing.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import math
import os
import platform
import queue
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PROTOCOL = 1
MAGIC = b"ARW1"
MEGABYTE = 1 << 20
# distributions that decide what a reward model computes; those that are not installed are left out
VERSIONS = (
    *("numpy", "torch", "torchvision", "transformers", "tokenizers", "open_clip_torch", "timm", "pillow"),
    *("onnxruntime", "image-reward", "diffusers"),
)
_LENGTHS = struct.Struct(">IQ")
_KEPT_ANSWERS = 256


class FrameError(Exception):
    """What was read is no frame."""


def frame_start(header: dict, body_bytes: int) -> bytes:
    """All of a frame but its raw bytes."""
    text = json.dumps(header).encode()
    return MAGIC + _LENGTHS.pack(len(text), body_bytes) + text


def read_frame(read_into: Callable[[Any], int], limit: int) -> tuple[dict, bytearray] | None:
    """Header and raw bytes of the next frame; None where the stream ends between two.

    Args:
        read_into: fills the buffer that it is given from its beginning, gives the number of bytes, 0 at the end.
        limit: bytes that the frame may have in all.

    Raises:
        FrameError: something else than a frame, one that is too large (its raw bytes are not read), or half of one.
    """
    magic, lengths = bytearray(len(MAGIC)), bytearray(_LENGTHS.size)
    if (got := _fill(read_into, magic)) == 0:
        return None
    if magic != MAGIC:
        raise FrameError(f"a message begins with {MAGIC!r}; got {bytes(magic[:got])!r}")
    if _fill(read_into, lengths) < len(lengths):
        raise FrameError("the stream ended within a message")
    header_bytes, body_bytes = _LENGTHS.unpack(lengths)
    if (total := len(MAGIC) + len(lengths) + header_bytes + body_bytes) > limit:
        raise FrameError(f"a message of {total:,} bytes is above the limit of {limit:,}")
    header, body = bytearray(header_bytes), bytearray(body_bytes)
    if _fill(read_into, header) < header_bytes or _fill(read_into, body) < body_bytes:
        raise FrameError("the stream ended within a message")
    try:
        parsed = json.loads(header)
    except ValueError as error:
        raise FrameError(f"the header of a message is no JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise FrameError(f"the header of a message is a {type(parsed).__name__}, not an object")
    return parsed, body


def _fill(read_into: Callable[[Any], int], buffer: bytearray) -> int:
    got, view = 0, memoryview(buffer)
    while got < len(buffer):
        count = read_into(view[got:])
        if not count:
            break
        got += count
    return got


def load(target: str, kwargs: dict) -> tuple[Any, Path]:
    """A reward ready to be called, and the file that it is in: the rules of `rewards.registry`."""
    where, _, attribute = target.rpartition(":")
    if where.endswith(".py"):
        module = module_of_file(Path(where), "align_reward_" + Path(where).stem)
    else:
        module = importlib.import_module(where)
    found = getattr(module, attribute)
    reward: Any = found(**kwargs) if inspect.isclass(found) else functools.partial(found, **kwargs)
    if all(hasattr(reward, method) for method in ("describe", "score", "advance")):
        raise ValueError(
            "a distribution reward has a running state, which a worker cannot hold; use it without a worker"
        )
    if not callable(reward):
        raise ValueError(f"it is a {type(reward).__name__}; a function of images and conditions is needed")
    return reward, Path(str(module.__file__))


def module_of_file(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up by name
    spec.loader.exec_module(module)
    return module


def describe(target: str, kwargs: dict, reward: Any, source: Path) -> dict:
    """What two workers of one reward must agree in."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    weights = {key: _sha256(Path(value)) for key, value in kwargs.items() if isinstance(value, str) and _exists(value)}
    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "protocol": PROTOCOL,
        "reward": target.rpartition(":")[2],
        "kind": str(getattr(reward, "kind", "image")),
        "python": platform.python_version(),
        "versions": versions,
        "source": _sha256(source),
        "weights": weights,
        # a file counts by what it holds: it may lie elsewhere on another machine
        "settings": {key: value for key, value in kwargs.items() if key not in weights},
    }


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # a long text, a null character
        return False


def _sha256(path: Path) -> str:
    """Of a file; of a folder: of the names and contents of its files."""
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(inner for inner in path.rglob("*") if inner.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()} {_sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as handle:
        while block := handle.read(MEGABYTE):
            digest.update(block)
    return digest.hexdigest()


def read_images(header: dict, body: bytearray) -> tuple[np.ndarray, list]:
    """uint8 [B, H, W, 3] and B rows of a request."""
    shape, rows = header.get("shape"), header.get("conditions")
    if not isinstance(shape, list) or len(shape) != 4 or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"images have the shape [B, H, W, 3]; got {shape}")
    if shape[3] != 3 or math.prod(shape) != len(body):
        raise ValueError(f"images of shape {shape} do not fit {len(body)} bytes; they are uint8 [B, H, W, 3]")
    if not isinstance(rows, list) or len(rows) != shape[0] or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{shape[0]} images need a list of as many conditions, each an object")
    return np.frombuffer(body, np.uint8).reshape(shape), rows


def check_scores(result: Any, batch: int) -> tuple[np.ndarray, list | None, str]:
    """float32 [B], which of them are valid (None: all), and what went wrong with the others.

    Raises:
        ValueError: anything but `batch` finite numbers or NaN, or such values with `valid` and `error` beside them.
    """
    valid, error = None, ""
    if all(hasattr(result, name) for name in ("values", "valid", "error")) and not isinstance(result, dict):
        valid, error, result = _array(result.valid), str(result.error), result.values
        if valid.shape != (batch,) or valid.dtype.kind != "b":
            raise ValueError(f"`valid` of partial scores is {batch} booleans; got {valid.dtype} {list(valid.shape)}")
    array = _array(result)
    allowed = f"a reward returns {batch} numbers, one for each image, and NaN where it does not apply"
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"the reward returned a {type(result).__name__} {result!r:.60}, which is not all numbers; {allowed}"
        )
    if array.shape != (batch,):
        raise ValueError(f"the reward returned shape {list(array.shape)}; {allowed}")
    with np.errstate(over="ignore"):  # too large for float32 is refused below
        values = array.astype("<f4")
    if valid is not None:
        values[~valid] = np.nan
    if np.isinf(values).any():
        raise ValueError(f"the reward is infinite for image {int(np.isinf(values).argmax())} of {batch}; {allowed}")
    return values, None if valid is None else valid.tolist(), error


def _array(result: Any) -> np.ndarray:
    if hasattr(result, "detach"):  # a torch tensor; numpy has no bfloat16
        result = result.detach().cpu()
        return (result.double() if result.is_floating_point() else result).numpy()
    return np.asarray(result)


class Engine:
    """Answers requests one after another, in the thread that runs `work`; other threads hand them in by `ask`."""

    def __init__(self, limit: int, call_limit: float | None) -> None:
        self.limit = limit  # bytes of a message
        self.call_limit = call_limit  # seconds of a call
        self.state = "loading"
        self.hello: dict = {}
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._seen: collections.OrderedDict = collections.OrderedDict()  # id -> its answer, or who waits for it

    def ask(self, header: dict, body: bytearray, reply: Callable[..., None]) -> None:
        """`reply(header, body)` is called with the answer, by any thread."""
        name = header.get("id")
        if not isinstance(name, str):
            return reply({"id": None, "failed": f"a request has an id, a text; got {name!r}"}, b"")
        with self._lock:
            known = self._seen.get(name)
            if known is None:
                self._seen[name] = [reply]
                self._requests.put((header, body))
            elif isinstance(known, list):
                known.append(reply)
        if isinstance(known, tuple):
            reply(*known)
        return None

    def serve(self, read_into: Callable[[Any], int], send: Callable[[bytes], Any]) -> None:
        """Answer the frames of one client until it is gone, or sends what is none."""
        lock = threading.Lock()

        def reply(header: dict, body: bytes) -> None:
            with lock:
                send(frame_start(header, len(body)) + body)

        try:
            while (frame := read_frame(read_into, self.limit)) is not None:
                self.ask(*frame, reply)
        except FrameError as error:
            reply({"id": None, "failed": str(error)}, b"")
        except OSError:
            pass  # a client that was killed resets its connection

    def fail(self, message: str) -> None:
        """Answer the first request with what prevents all work."""
        header, _ = self._requests.get()
        self._answer(header["id"], {"failed": message}, b"")

    def work(self, reward: Any, images: str) -> None:
        """Answer for ever; `images` is what the reward is given, torch or numpy."""
        torch: Any = importlib.import_module("torch") if images == "torch" else sys.modules.get("torch")
        if torch is not None:
            torch.set_grad_enabled(False)
        self.state = "ready"
        while True:
            header, body = self._requests.get()
            if header.get("op") == "hello":
                self._answer(header["id"], dict(self.hello, pid=os.getpid(), limit=self.limit), b"")
                continue
            try:
                batch, rows = read_images(header, body)
                result = self._call(reward, torch.from_numpy(batch) if images == "torch" else batch, rows)
                values, valid, error = check_scores(result, len(batch))
            except BaseException as problem:  # SystemExit too: a reward that leaves has not scored
                traceback.print_exc()
                self.state = "degraded"
                self._answer(header["id"], {"failed": explain(problem)}, b"")
            else:
                self.state = "ready"
                self._answer(header["id"], {"valid": valid, "error": error}, values.tobytes())

    def _call(self, reward: Any, batch: Any, rows: list) -> Any:
        if self.call_limit is not None:
            # prints where the call hangs, then ends this process, also if the call never lets go of the interpreter lock
            faulthandler.dump_traceback_later(self.call_limit, exit=True, file=2)
        try:
            return reward(batch, rows)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _answer(self, name: str, header: dict, body: bytes) -> None:
        answer = dict(header, id=name), body
        with self._lock:
            waiting, self._seen[name] = self._seen[name], answer
            self._seen.move_to_end(name)
            for old in list(self._seen)[:-_KEPT_ANSWERS]:
                if isinstance(self._seen[old], tuple):
                    del self._seen[old]
        for reply in waiting:
            try:
                reply(*answer)
            except OSError:  # who asked is gone; the answer waits for a retry
                traceback.print_exc()


def explain(problem: BaseException) -> str:
    """An exception in a few lines: its type, its text, where it came from."""
    own = [frame for frame in traceback.extract_tb(problem.__traceback__) if frame.filename != __file__]
    frames = traceback.format_list(own[-2:])
    return f"{type(problem).__name__}: {problem}\n{''.join(frames)}".rstrip()


def serve_parent(engine: Engine) -> None:
    """Serve stdin and stdout. Both are kept from the reward: what it prints goes to stderr, and it has nothing to read."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = sys.stderr

    def send(data: bytes) -> None:
        while data:
            data = data[outgoing.write(data) :]

    def serve() -> None:
        try:
            engine.serve(incoming.readinto, send)
        finally:
            leave()

    threading.Thread(target=serve, daemon=True).start()


def leave() -> None:
    """End at once, also in the middle of a call, with every process that the reward started."""
    if os.getsid(0) == os.getpid():  # as `rewards.transport` starts it; else others may share the group
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Score images by a reward in this Python environment.")
    add = parser.add_argument
    add("--reward", required=True, help="path/to/file.py:function or package.module:function")
    add("--kwargs", type=json.loads, default={}, help="the reward's settings, in JSON")
    add("--images", choices=("auto", "torch", "numpy"), default="auto", help="auto: torch if it is installed here")
    add("--listen", help="unix:/path or http://host:port; without it, stdin and stdout are served")
    add("--token-file", help="holds the token for HTTP; without it the variable ALIGN_REWARD_TOKEN does")
    add("--allow-remote", action="store_true", help="listen also where other machines can reach it")
    add("--max-megabytes", type=int, default=64, help="limit of a message")
    add("--call-limit", type=float, help="seconds of a call; the worker ends where one takes longer")
    options = parser.parse_args()
    # our folder was put first on the path, where `base` and such would hide others' modules
    sys.path[0] = str(Path.cwd())
    engine = Engine(options.max_megabytes * MEGABYTE, options.call_limit)
    if options.listen is None:
        serve_parent(engine)
    else:
        try:
            others = module_of_file(Path(__file__).with_name("worker_listen.py"), "align_worker_listen")
            others.listen(engine, options.listen, options.token_file, options.allow_remote)
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
    try:
        reward, source = load(options.reward, options.kwargs)
        engine.hello = describe(options.reward, options.kwargs, reward, source)
    except BaseException as error:
        traceback.print_exc()
        if options.listen is None:
            engine.fail(explain(error))
        sys.exit(1)
    images = options.images
    if images == "auto":
        images = "torch" if importlib.util.find_spec("torch") else "numpy"
    engine.work(reward, images)


if __name__ == "__main__":
    main()
