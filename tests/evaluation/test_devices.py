"""`auto` is the GPU in bfloat16, or the CPU in float32; anything else is taken at its word or refused."""

from __future__ import annotations

import pytest
import torch

from evaluation.devices import pick_device, pick_dtype


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.parametrize(
    ("setting", "picked"), [("auto", "cuda:1"), ("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")]
)
def test_a_gpu_keeps_its_index(two_gpus: None, setting: str, picked: str) -> None:
    assert pick_device(setting) == torch.device(picked)


def test_without_a_gpu_it_is_the_cpu(no_gpu: None) -> None:
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'cuda' is not here: 0 GPUs are seen"):
        pick_device("cuda")


def test_what_is_not_there_is_refused(two_gpus: None) -> None:
    with pytest.raises(ValueError, match="device 'cuda:2' is not here: 2 GPUs are seen"):
        pick_device("cuda:2")
    with pytest.raises(ValueError, match="unknown device 'gpu'; allowed: auto, cpu, cuda"):
        pick_device("gpu")


@pytest.mark.parametrize(
    ("setting", "device", "picked"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_precision(setting: str, device: str, picked: torch.dtype) -> None:
    assert pick_dtype(setting, torch.device(device)) == picked
    with pytest.raises(ValueError, match="unknown dtype 'half'; allowed: auto, float32, bfloat16, float16"):
        pick_dtype("half", torch.device(device))
