"""The weights of the tiny models are numbers of their names, so that stored scores hold on every machine."""

from __future__ import annotations

import torch
from torch import nn

from rewards.tiny.fill import fill


def model() -> nn.ModuleDict:
    return nn.ModuleDict({"linear": nn.Linear(300, 200), "norm": nn.LayerNorm(300)})


def test_numbers_are_these() -> None:
    state = {"a.bias": torch.zeros(3), "scale": torch.tensor(9.0), "steps": torch.tensor(7)}
    fill(state, seed=0)
    torch.testing.assert_close(state["a.bias"], torch.tensor([0.01472904, 0.04371754, 0.0651662]), rtol=0, atol=1e-7)
    assert abs(state["scale"]) < 0.1
    assert state["steps"] == 7


def test_scales_keep_signals_alive() -> None:
    state = fill(model(), seed=1).state_dict()
    assert abs(state["linear.weight"].std() * 300**0.5 - 1) < 0.02
    assert abs(state["norm.weight"] - 1).max() < 0.1 < 2 * abs(state["norm.weight"] - 1).max()
    assert abs(state["linear.bias"]).max() < 0.1 < 2 * abs(state["linear.bias"]).max()


def test_other_tensors_and_their_order_do_not_matter() -> None:
    whole = fill(model(), seed=1).state_dict()
    alone = fill({"norm.bias": torch.zeros(300)}, seed=1)
    assert torch.equal(alone["norm.bias"], whole["norm.bias"])
    assert not torch.equal(fill({"norm.bias": torch.zeros(300)}, seed=2)["norm.bias"], whole["norm.bias"])
    assert not torch.equal(whole["norm.bias"], fill({"norm.bias2": torch.zeros(300)}, seed=1)["norm.bias2"])
