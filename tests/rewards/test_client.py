"""A reward in workers gives what it gives in process, in order; workers that would not score alike do not start."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rewards import client
from rewards.base import PartialScores, kind_of
from rewards.client import WorkerReward, load_worker_reward
from rewards.transport import ProcessLink
from rewards.worker_settings import WorkerSettings, process_environment, worker_command

FUNCTIONS = Path(__file__).parent.parent / "worker_rewards.py"
IMAGES = torch.randint(0, 256, (10, 4, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MEANS = torch.from_numpy(IMAGES.numpy().mean(axis=(1, 2, 3))).float()


def worker(function: str, kwargs: dict[str, Any] | None = None, **settings: Any) -> WorkerReward:
    return load_worker_reward(f"{FUNCTIONS}:{function}", kwargs or {}, {"images": "numpy", **settings})


@pytest.fixture(scope="module")
def two_means() -> Iterator[WorkerReward]:
    reward = worker("mean", {"scale": 2.0}, number=2, batch_size=3)
    yield reward
    reward.close()


def test_the_batch_is_cut_and_put_together_in_order(two_means: WorkerReward) -> None:
    for number in (10, 3, 1):
        scores = two_means(IMAGES[:number], [{}] * number)
        assert isinstance(scores, Tensor)
        assert scores.dtype == torch.float32
        assert torch.equal(scores, 2 * MEANS[:number])
    assert two_means(IMAGES[:0], []).tolist() == []  # type: ignore[union-attr]
    assert [state for _, state in two_means.health()] == ["ready", "ready"]


def test_images_need_not_lie_in_one_piece(two_means: WorkerReward) -> None:
    turned = IMAGES.permute(0, 2, 1, 3)[::2]
    assert torch.equal(two_means(turned, [{}] * 5), 2 * MEANS[::2])  # type: ignore[arg-type]


def test_equal_workers_have_equal_fingerprints(two_means: WorkerReward) -> None:
    same = worker("mean", {"scale": 2.0})
    other = worker("mean", {"scale": 3.0})
    same.close()
    other.close()
    assert same.fingerprint == two_means.fingerprint != other.fingerprint


def test_rows_travel_with_their_columns() -> None:
    reward = worker("column")
    values = [1, 2.5, np.float32(3), torch.tensor(4), True, float("nan")]
    scores = reward(IMAGES[:6], [{"value": value, "prompt": "Größe ☃", "more": [{"a": (1, 2)}]} for value in values])
    assert torch.equal(scores[:5], torch.tensor([1, 2.5, 3, 4, 1]))  # type: ignore[index]
    assert scores[5].isnan()  # type: ignore[index]
    with pytest.raises(
        ValueError, match=r"row 1 cannot be sent to a worker: it holds a object; it has \['other', 'value'\]"
    ):
        reward(IMAGES[:2], [{"value": 1}, {"value": 1, "other": object()}])
    reward.close()
    with pytest.raises(ValueError, match="the workers of this reward were closed"):
        reward(IMAGES[:1], [{"value": 1}])


def test_failures_of_single_images_are_kept() -> None:
    reward = worker("partial")
    scores = reward(IMAGES[:3], [{}, {"broken": True}, {}])
    reward.close()
    assert isinstance(scores, PartialScores)
    assert scores.valid.tolist() == [True, False, True]
    assert scores.values[[0, 2]].tolist() == [0, 2]
    assert scores.values[1].isnan()
    assert scores.error == "image 1 is broken"


def test_a_group_is_never_cut() -> None:
    reward = worker("rank", number=2, batch_size=3, max_megabytes=1)
    assert kind_of(reward) == "group"
    assert reward(IMAGES, [{}] * 10).tolist() == [10] * 10  # type: ignore[union-attr]
    large = torch.zeros(10, 200, 200, 3, dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=r"a group of images \[10, 200, 200, 3\] is above .* raise worker.max_megabytes"
    ):
        reward(large, [{}] * 10)
    reward.close()


def test_calls_fit_into_a_message() -> None:
    reward = worker("mean", max_megabytes=1)
    images = torch.full((10, 200, 200, 3), 7, dtype=torch.uint8)  # 1.2 MB in all, more than a message
    assert reward(images, [{}] * 10).tolist() == [7.0] * 10  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"images \[1, 700, 700, 3\] is above"):
        reward(torch.zeros(1, 700, 700, 3, dtype=torch.uint8), [{}])
    reward.close()


def test_a_class_is_made_once_from_its_settings() -> None:
    reward = worker("Made", {"scale": 2.0})
    assert torch.equal(reward(IMAGES, [{}] * 10), 2 * MEANS)  # type: ignore[arg-type]
    reward.close()


@pytest.mark.slow
def test_a_registered_reward_gets_torch_images(tmp_path: Path) -> None:
    from rewards.builtin.jpeg import jpeg_compressibility

    reward = load_worker_reward("jpeg-compressibility", {}, {})
    (tmp_path / "r.py").write_text("def f(images, conditions):\n    return images.float().mean(dim=(1, 2, 3))\n")
    own = load_worker_reward(f"{tmp_path / 'r.py'}:f", {}, {})
    assert reward(IMAGES, [{}] * 10).tolist() == pytest.approx(list(jpeg_compressibility(IMAGES, [{}] * 10)))  # type: ignore[union-attr]
    torch.testing.assert_close(own(IMAGES, [{}] * 10), MEANS)
    reward.close()
    own.close()


@pytest.mark.parametrize(
    ("function", "kwargs", "message"),
    [
        ("nothing", {}, r"worker 0 of .*nothing: AttributeError: module .* has no attribute 'nothing'"),
        ("Made", {"scale": -1.0}, r"ValueError: scale is -1.0\n.*raise ValueError"),
        ("Made", {"scales": 1.0}, "TypeError: .*unexpected keyword argument 'scales'"),
        ("FUNCTIONS", {}, "has no attribute"),
    ],
)
def test_a_reward_that_does_not_load_says_why(function: str, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + message):
        worker(function, kwargs)


def test_workers_of_different_weights_do_not_start(tmp_path: Path) -> None:
    links = []
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        command = worker_command(f"{FUNCTIONS}:mean", {"weights": tmp_path / name}, sys.executable)
        environment = process_environment(sys.executable, None)
        links.append(ProcessLink(f"worker {name}", [*command, "--images", "numpy"], environment))
    with pytest.raises(
        ValueError,
        match=r"differ: worker a .* and worker b .* have weights.weights ca978112\w+ and 3e23e816\w+; they must",
    ):
        WorkerReward("mean", links, WorkerSettings())
    assert [link.state() for link in links] == ["gone", "gone"]


def test_what_is_expected_of_workers_is_compared(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("a")
    right = hashlib.sha256(b"a").hexdigest()
    kwargs = {"weights": str(tmp_path / "w")}
    worker("mean", kwargs, expect={"weights": {"weights": right}, "versions": {"numpy": np.__version__}}).close()
    with pytest.raises(ValueError, match=rf"has weights.weights {right}; reward .* expects 0000"):
        worker("mean", kwargs, expect={"weights": {"weights": "0000"}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pyton": "x"}, "unknown setting worker.pyton; known: python, environment, number"),
        ({"number": 0}, "worker.number is 0; it must be a whole number above 0"),
        ({"number": "2"}, "worker.number is '2'; it must be a whole number"),
        ({"batch_size": 2.5}, "worker.batch_size is 2.5; it must be a whole number"),
        ({"call_timeout": -1}, "worker.call_timeout is -1; it must be a number above 0"),
        ({"python": "x", "addresses": ["unix:/x"]}, "one says where the reward runs"),
        ({"images": "jax"}, "worker.images is 'jax'; known: auto, torch, numpy"),
        ({"devices": [0, 1]}, "worker.devices names 2 of worker.number=1"),
        ({"devices": "0"}, "worker.devices is '0'; it must be a list"),
        ({"addresses": ["ftp://x"]}, "allowed: unix:/path, http://host:port"),
        ({"expect": {"version": {}}}, "worker.expect has 'version'; known: versions, weights"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_worker_reward("jpeg-compressibility", {}, settings)


@pytest.mark.parametrize(
    ("name", "kwargs", "settings", "message"),
    [
        ("jpg", {}, {}, "0 rewards are registered as 'jpg'; known: .*jpeg-compressibility"),
        ("none.py:f", {}, {}, "there is no file none.py to load the reward 'f' from"),
        (
            "m:f",
            {"a": object()},
            {},
            "the settings of reward 'm:f' do not fit into JSON for its worker: <object .* of type object",
        ),
        ("m:f", {"a": 1}, {"addresses": ["unix:/x"]}, "the servers there have their own settings"),
        ("m:f", {}, {"addresses": ["http://127.0.0.1:1"]}, "workers over HTTP want their token"),
        ("m:f", {}, {"python": "/none/python"}, "cannot be started: .*No such file.*`python` is the path"),
    ],
)
def test_what_cannot_be_started_is_refused(
    name: str, kwargs: dict[str, Any], settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALIGN_REWARD_TOKEN", raising=False)
    with pytest.raises(ValueError, match=message):
        load_worker_reward(name, kwargs, settings)


def test_another_python_gets_the_file_of_a_registered_reward() -> None:
    assert "rewards.builtin.jpeg:jpeg_compressibility" in worker_command("jpeg-compressibility", {}, sys.executable)
    (target,) = [word for word in worker_command("jpeg-compressibility", {}, "/other/python") if "jpeg" in word]
    file, _, function = target.rpartition(":")
    assert Path(file).name == "jpeg.py"
    assert Path(file).is_absolute()
    assert function == "jpeg_compressibility"


def test_a_worker_is_not_tied_to_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "ACCELERATE_USE_FSDP", "PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    own = process_environment(sys.executable, None)
    assert {"RANK", "MASTER_ADDR", "ACCELERATE_USE_FSDP"}.isdisjoint(own)
    assert {"PYTHONPATH", "OMP_NUM_THREADS"} <= own.keys()
    other = process_environment("/other/python", "2")
    assert "PYTHONPATH" not in other
    assert other["CUDA_VISIBLE_DEVICES"] == "2"


def test_a_worker_sees_the_gpu_of_its_training_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(client.torch.cuda, "is_available", lambda: False)
    assert client._own_device() is None
    monkeypatch.setattr(client.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(client.torch.cuda, "current_device", lambda: 1)
    assert client._own_device() == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert client._own_device() == "6"
