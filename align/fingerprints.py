"""The identity of a checkpoint's files. Without torch, so that hashing can begin while torch is imported."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

HASHED_WHOLE = 1_000_000_000  # bytes that are hashed in half a second; larger files get a fingerprint


def files_of(path: Path) -> list[Path]:
    """The files of a folder, or the one."""
    return sorted(part for part in path.iterdir() if part.is_file()) if path.is_dir() else [path]


def sha256_of_file(path: Path) -> str:
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(path: Path, *, whole: bool = False) -> tuple[str, str]:
    """("sha256", ...) of a whole file, or ("fingerprint", ...) of a large one's or a folder's names, sizes and checksums.

    Args:
        whole: read every byte, however many there are.
    """
    parts = files_of(path)
    if len(parts) == 1 and (whole or parts[0].stat().st_size <= HASHED_WHOLE):
        return "sha256", sha256_of_file(parts[0])
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.name.encode() if len(parts) > 1 else b"")
        if whole:
            digest.update(sha256_of_file(part).encode())
        elif zipfile.is_zipfile(part):
            for entry in zipfile.ZipFile(part).infolist():  # torch keeps a CRC-32 of every tensor
                digest.update(f"{entry.filename.partition('/')[2]} {entry.CRC} {entry.file_size}".encode())
        else:
            _update_sampled(digest, part)
    return "fingerprint", digest.hexdigest()


def _update_sampled(digest: Any, part: Path, pieces: int = 256, length: int = 4096) -> None:
    size = part.stat().st_size
    digest.update(str(size).encode())
    with part.open("rb") as handle:
        for piece in range(pieces):
            handle.seek(size * piece // pieces)
            digest.update(handle.read(length))
