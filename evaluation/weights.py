"""Files of published weights: by path, or from a repository of the Hugging Face hub, and their hashes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find_file(
    source: str,
    *,
    filename: str | None = None,
    revision: str | None = None,
    sha256: str | None = None,
    download: bool = True,
) -> Path:
    """A file of weights, downloaded where it must be.

    Args:
        source: a file; a folder that holds `filename`; or a repository of the hub, `org/name`, that does. What exists
            on the disk goes first.
        revision: commit, tag or branch of the repository; None is its main branch. Name a commit and it cannot change.
        sha256: of the whole file, in hexadecimal; None takes any.
        download: False takes of a repository only what the Hugging Face cache of this machine holds.

    Raises:
        FileNotFoundError: neither a file nor a repository of that name, or the file is not in it.
        ValueError: a folder or repository without `filename`, a revision of what is on the disk, or another hash.
    """
    path = Path(source).expanduser()
    if path.exists():
        _refuse_revision(source, revision)
        if path.is_dir():
            if filename is None:
                raise ValueError(f"{path} is a folder; name the file in it")
            path = path / filename
            if not path.exists():
                held = ", ".join(sorted(child.name for child in path.parent.iterdir())) or "nothing"
                raise FileNotFoundError(f"{path.parent} has no {filename}; it holds {held}")
    elif not HUB_ID.fullmatch(source):
        _not_found(source, "file")
    elif filename is None:
        raise ValueError(
            f"there is no file {path} (relative to {Path.cwd()}); as a repository of the hub it needs the name of the file in it too"
        )
    else:
        path = _download(source, filename, revision, download)
    if sha256 is not None and (got := sha256_of_file(path)) != sha256.lower():
        raise ValueError(
            f"{path} is not the file that was asked for: its sha256 is {got}, expected {sha256.lower()}. Fetch it anew, or correct the sha256 in the settings"
        )
    return path


def find_folder(
    source: str, *, revision: str | None = None, patterns: Sequence[str] | None = None, download: bool = True
) -> Path:
    """A folder of a model, downloaded where it must be.

    Args:
        source: a folder, or a repository of the hub, `org/name`. A folder on the disk goes first.
        revision, download: as in `find_file`.
        patterns: names of the files to download, such as "*.json"; None is all. Many repositories hold the same weights
            in several formats.

    Raises:
        FileNotFoundError: neither a folder nor a repository of that name.
        ValueError: a file, or a revision of what is on the disk.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        _refuse_revision(source, revision)
        return path
    if path.exists():
        raise ValueError(f"{path} is a file; a folder is needed, with config.json and the weights in it")
    if not HUB_ID.fullmatch(source):
        _not_found(source, "folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=None if patterns is None else list(patterns),
                local_files_only=not download,
            )
        )
    except Exception as error:
        _not_downloaded(source, "", revision, download, error)


def weights_in(folder: Path) -> Path | None:
    """The file of weights in a folder of transformers; None if there is none, or if it is in several parts."""
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    return next((file for file in files if file.exists()), None)


def sha256_of_file(path: Path) -> str:
    """In hexadecimal; read once as long as neither the file's size nor its time changes."""
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)


def fingerprint_of(paths: Sequence[Path]) -> str:
    """16 hexadecimal digits that tell the weights in these files from others: the sha256 of one, or of all of theirs."""
    digests = [sha256_of_file(path) for path in paths]
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return whole[:16]


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(repository: str, filename: str, revision: str | None, download: bool) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, filename, revision=revision, local_files_only=not download))
    except Exception as error:
        _not_downloaded(repository, filename, revision, download, error)


def _refuse_revision(source: str, revision: str | None) -> None:
    if revision is not None:
        raise ValueError(
            f"{source} is on the disk, so it has no revision {revision!r}; leave the revision out, or name a repository of the hub"
        )


def _not_found(source: str, kind: str) -> NoReturn:
    raise FileNotFoundError(
        f"there is no {kind} {source} (relative to {Path.cwd()}), and a repository of the hub is named org/name"
    )


def _not_downloaded(repository: str, filename: str, revision: str | None, download: bool, error: Exception) -> NoReturn:
    wanted = f"{filename} of {repository}" if filename else repository
    if not download:
        raise FileNotFoundError(
            f"{repository} is not on the disk (relative to {Path.cwd()}), nor is {wanted} at revision {revision or 'main'} in the Hugging Face cache of this machine; it is not downloaded here. Where there is a network: hf download {repository}; or give the path of a copy"
        ) from error
    raise FileNotFoundError(
        f"{repository} is not on the disk (relative to {Path.cwd()}), and {wanted} at revision {revision or 'main'} did not come from the hub: {type(error).__name__}: {error}. Download it where there is a network and give its path, or see whether name and revision are right"
    ) from error
