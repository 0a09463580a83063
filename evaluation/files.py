"""Writing a file so that readers see the old one or the new one, never half of it."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | Path, data: bytes | Callable[[BinaryIO], object]) -> None:
    """Write `data`, or what it writes when it is called with the file, to `path`; an interruption at any point leaves a previous file at `path` untouched.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
    """
    path = Path(path)
    # Same folder, because a rename is atomic only within one file system; a unique name, because runs may race.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
