"""How one of several processes stops: at once, with its reason; the others then stop, too, without a word of their own
that would bury it."""

from __future__ import annotations

import sys
import time
import traceback

from recipes.run import num_processes, process_index

GRACE = 10  # seconds that a process which lost contact waits to be ended, so that the other one counts as the first


def tell_failure(error: BaseException, message: str) -> None:
    """Print what stopped this process; a launcher that keeps account of its processes (torchrun, accelerate launch) also
    says at its end which of them failed first, and with what."""
    from align.training.contact import lost_contact

    who = f"process {process_index()} of {num_processes()}"
    if lost_contact(error):
        print(f"{who} stopped: another one is gone, and says why", file=sys.stderr, flush=True)
        time.sleep(GRACE)
        return
    print(f"error: {who} stopped: {message}", file=sys.stderr, flush=True)
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    get_error_handler().record_exception(error)


def tell_unexpected(error: Exception) -> None:
    """A fault of the program rather than of its use: with the way there."""
    from align.training.contact import lost_contact

    if not lost_contact(error):
        traceback.print_exception(error)
    tell_failure(error, f"{type(error).__name__}: {error}")
