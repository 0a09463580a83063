"""Writing a file so that readers see the old one or the new one, never half of it."""

import os
import uuid
from pathlib import Path


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`; an interruption at any point leaves a previous file at `path` untouched.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
    """
    path = Path(path)
    # Same folder, because a rename is atomic only within one file system; a unique name, because runs may race.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
