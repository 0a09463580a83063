"""Rows worked on a part at a time, in smaller parts from then on where memory has run out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from tqdm import tqdm

from align.sampling.graphs import release_recordings

Result = TypeVar("Result")


class MicroBatches:
    """Cuts rows up for work whose result for a row does not depend on the rows beside it.

    Args:
        size: rows of a part, at most.
        multiple: parts are cut between so many rows.
        what: rows are called this where it is said that fewer are taken.
    """

    def __init__(self, size: int, *, multiple: int = 1, what: str = "rows") -> None:
        self.size = max(size // multiple, 1) * multiple
        self.multiple = multiple
        self.what = what

    def __call__(self, count: int, work: Callable[[slice], Result]) -> Iterator[tuple[slice, Result]]:
        """Each part with what the work makes of it.

        Raises:
            torch.OutOfMemoryError: also for the smallest part.
        """
        start = 0
        while start < count:
            part = slice(start, min(start + self.size, count))
            tried = part.stop - part.start
            half = tried // 2 // self.multiple * self.multiple
            try:
                result = work(part)
            except torch.OutOfMemoryError:
                if not half:
                    raise
            else:
                yield part, result
                start = part.stop
                continue
            # only now: while an error is handled, its traceback holds the tensors of the work that failed
            tqdm.write(
                f"{tried} {self.what} at once are too many for this device's memory; going on with {half}", sys.stderr
            )
            self.size = half
            release_recordings(share=0.0)
            torch.cuda.empty_cache()
