"""What is kept of a block's activations: gradients do not depend on it, and less is kept from mode to mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import FAMILIES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from align.generators.recompute import CHOICES, PRODUCTS


class Products(TorchDispatchMode):
    """Counts matrix products and attentions."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in PRODUCTS
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)
def test_gradients_are_the_same_at_less_memory(make: Callable[[], Any]) -> None:
    generator = make()
    raw = [0, 3] if generator.num_classes else ["a red cube", "two balls"]
    condition = generator.encode_condition(raw)
    tokens = torch.zeros(2, generator.layout.length, dtype=torch.long)
    gradients, kept, products = [], [], []
    for mode in CHOICES:
        generator.gradient_checkpointing = mode
        generator.zero_grad()
        memory = Kept()
        with memory:
            loss = generator(tokens, condition).logsumexp(-1).sum()
        with Products() as backward:
            loss.backward()
        gradients.append([p.grad.clone() for p in generator.parameters() if p.grad is not None])
        kept.append(memory.bytes)
        products.append(backward.count)
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))
    assert products[0] == products[1] < products[2], "selective makes no product again"
    assert kept[0] > kept[2]


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that the backward pass finds, each storage once."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        self.alive: list[Tensor] = []
        super().__init__(self._note, lambda tensor: tensor)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        self.alive.append(tensor)  # no other storage takes its place
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())
