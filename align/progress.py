"""One style of progress bar: lively at a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(
    *, total: int, description: str, unit: str, initial: int = 0, leave: bool = True, disable: bool = False
) -> tqdm[Any]:
    interval = 0.2 if sys.stderr.isatty() else 20.0
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        initial=initial,
        leave=leave,
        disable=disable,
        mininterval=interval,
        maxinterval=interval,
    )
