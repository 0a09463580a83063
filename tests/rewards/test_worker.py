"""The worker's own parts: what it reads, what it lets through, and that any Python with numpy can run it."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import rewards.worker
from rewards.worker import FrameError, check_scores, describe, frame_start, load, read_frame, read_images

ROOT = Path(rewards.worker.__file__).parent
FUNCTIONS = Path(__file__).parent.parent / "worker_rewards.py"


@pytest.mark.parametrize("name", ["worker.py", "worker_listen.py"])
def test_an_old_python_with_numpy_is_enough(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text(), feature_version=(3, 8))
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module != "rewards.worker":  # for the type checker only
            roots.add(str(node.module).split(".")[0])
    assert roots - set(sys.stdlib_module_names) <= {"numpy"}


def test_a_frame_carries_header_and_bytes() -> None:
    stream = io.BytesIO(frame_start({"text": "ü", "number": float("inf")}, 3) + b"abc" + frame_start({}, 0))
    assert read_frame(stream.readinto, 1000) == ({"text": "ü", "number": float("inf")}, b"abc")
    assert read_frame(stream.readinto, 1000) == ({}, b"")
    assert read_frame(stream.readinto, 1000) is None


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"HTTP/1.1 200 OK and more", r"begins with b'ARW1'; got b'HTTP'"),
        (b"ARW1\0\0", "ended within a message"),
        (frame_start({"a": 1}, 5) + b"abcd", "ended within a message"),
        (frame_start({"a": 1}, 1000), r"a message of 1,024 bytes is above the limit of 1,000"),
        (frame_start({}, 0)[:-2] + b"{{", "is no JSON"),
        (frame_start([], 0), "is a list, not an object"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_frame_is_refused(sent: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        read_frame(io.BytesIO(sent).readinto, 1000)


def test_pieces_of_a_frame_are_put_together() -> None:
    stream = io.BytesIO(frame_start({"a": 1}, 5) + b"abcde")
    assert read_frame(lambda buffer: stream.readinto(buffer[:1]), 1000) == ({"a": 1}, b"abcde")


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ([1, 2.5, True], [1, 2.5, 1]),
        (np.array([1.0, 2.0, 1e30]), [1, 2, np.float32(1e30)]),
        (torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16, requires_grad=True), [1, 2, 3]),
        (torch.tensor([1, 2, 3]), [1, 2, 3]),
        ([float("nan"), 0.0, float("nan")], [np.nan, 0, np.nan]),
    ],
)
def test_numbers_come_in_many_shapes(result: Any, expected: list[float]) -> None:
    values, valid, error = check_scores(result, 3)
    assert values.dtype == np.dtype("<f4")
    np.testing.assert_array_equal(values, expected)
    assert valid is None
    assert error == ""


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0, 2.0], r"returned shape \[2\]; a reward returns 3 numbers"),
        (np.zeros((3, 1)), r"returned shape \[3, 1\]"),
        (0.5, r"returned shape \[\]"),
        (["a", "b", "c"], r"returned a list \['a', 'b', 'c'\], which is not all numbers"),
        (None, "returned a NoneType None"),
        ([0.0, float("inf"), 0.0], "infinite for image 1 of 3"),
        ([0.0, 0.0, -1e300], "infinite for image 2 of 3"),
        (SimpleNamespace(values=[1.0, 2.0, 3.0], valid=[True, False], error=""), r"is 3 booleans; got bool \[2\]"),
        (SimpleNamespace(values=[1.0, 2.0, 3.0], valid=[1, 0, 1], error=""), r"is 3 booleans; got int64"),
        (SimpleNamespace(values=[1.0, 2.0], valid=[True, False, True], error=""), r"returned shape \[2\]"),
    ],
)
def test_what_is_no_reward_is_refused(result: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_scores(result, 3)


def test_failures_of_single_images_pass_without_their_numbers() -> None:
    partial = SimpleNamespace(values=[1.0, float("inf"), 3.0], valid=[True, False, True], error="image 1 is broken")
    values, valid, error = check_scores(partial, 3)
    np.testing.assert_array_equal(values, [1, np.nan, 3])
    assert (valid, error) == ([True, False, True], "image 1 is broken")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"shape": [1, 2, 3], "conditions": [{}]}, r"have the shape \[B, H, W, 3\]; got \[1, 2, 3\]"),
        ({"shape": [1, 2, 2, True], "conditions": [{}]}, "have the shape"),
        ({"shape": [1, 2, 4, 3], "conditions": [{}]}, "do not fit 12 bytes"),
        ({"shape": [1, 3, 4, 1], "conditions": [{}]}, "do not fit 12 bytes"),
        ({"shape": [1, 2, 2, 3], "conditions": [{}, {}]}, "1 images need a list of as many conditions"),
        ({"shape": [1, 2, 2, 3], "conditions": ["a prompt"]}, "each an object"),
        ({}, "got None"),
    ],
)
def test_requests_that_do_not_fit_are_refused(header: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_images(header, bytearray(12))


def test_a_reward_may_write_into_its_images() -> None:
    images, rows = read_images({"shape": [1, 1, 2, 3], "conditions": [{"a": 1}]}, bytearray(range(6)))
    assert images.tolist() == [[[[0, 1, 2], [3, 4, 5]]]]
    assert rows == [{"a": 1}]
    images += 1


def test_the_description_hashes_files_by_content(tmp_path: Path) -> None:
    weights, folder = tmp_path / "w.bin", tmp_path / "model"
    weights.write_bytes(b"weights")
    folder.mkdir()
    (folder / "a").write_bytes(b"1")

    def described(**kwargs: Any) -> dict[str, Any]:
        reward, source = load(f"{FUNCTIONS}:mean", kwargs)
        return describe(f"{FUNCTIONS}:mean", kwargs, reward, source)

    first = described(weights=str(weights), scale=2.0)
    assert first["weights"] == {"weights": hashlib.sha256(b"weights").hexdigest()}
    assert first["settings"] == {"scale": 2.0}
    assert first["source"] == hashlib.sha256(FUNCTIONS.read_bytes()).hexdigest()
    assert (first["reward"], first["kind"], first["versions"]["numpy"]) == ("mean", "image", np.__version__)
    before = described(weights=str(folder))["weights"]
    (folder / "a").rename(folder / "b")
    assert described(weights=str(folder))["weights"] != before


def test_the_kind_of_a_reward_is_told() -> None:
    reward, source = load(f"{FUNCTIONS}:rank", {})
    assert describe("x:rank", {}, functools.partial(reward), source)["kind"] == "group"


def test_rewards_with_a_state_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("class R:\n    def describe(self): ...\n    score = advance = describe\n")
    with pytest.raises(ValueError, match="a distribution reward has a running state, which a worker cannot hold"):
        load(f"{tmp_path / 'r.py'}:R", {})
