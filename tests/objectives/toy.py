"""What the tests of objectives share: exact minimisation, and exact expectations of the shipped functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from align.types import LossOutput


def minimise(parameters: Sequence[Tensor], loss: Callable[[], Tensor]) -> None:
    """LBFGS to convergence, in place."""
    optimiser = torch.optim.LBFGS(
        list(parameters), max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)


def row_losses(objective: Callable[..., LossOutput], rows: Mapping[str, Tensor], **settings: Any) -> Tensor:
    """[N]: the loss of each row as a batch of its own; weighted sums of these are exact expectations."""
    names = list(rows)

    def one(*row: Tensor) -> Tensor:
        return objective(**{name: value[None] for name, value in zip(names, row, strict=True)}, **settings).loss

    return torch.vmap(one)(*rows.values())


def means(output: LossOutput) -> dict[str, float]:
    return {name: (average.total / average.count).item() for name, average in output.metrics.items()}
