"""Modules that are only names and shapes: on torch's meta device, where nothing takes memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Unfilled(TorchFunctionMode):
    """Leaves out the functions of torch.nn.init, which each return the tensor that they were given first."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made inside have no numbers. Nor are any drawn for them: it would change nothing, but the first draw on
    the meta device imports torch's decompositions, for more than a second."""
    with torch.device("meta"), _Unfilled():
        yield
