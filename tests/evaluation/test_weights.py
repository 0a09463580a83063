"""Weights are found on the disk or on the hub, are those that were asked for, and errors say where was looked."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from evaluation.weights import find_file, find_folder, fingerprint_of, sha256_of_file

SHA256 = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.pt").write_bytes(b"weights")
    return tmp_path


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub that holds org/name with model.pt, and notes what it is asked."""
    asked: list[tuple[Any, ...]] = []

    def file(repository: str, filename: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.append((repository, filename, revision, local_files_only))
        if filename != "model.pt":
            raise huggingface_hub.errors.EntryNotFoundError("404: no such entry")
        return str(folder / filename)

    def snapshot(
        repository: str, *, revision: str | None, allow_patterns: list[str] | None, local_files_only: bool
    ) -> str:
        asked.append((repository, allow_patterns, revision, local_files_only))
        if repository != "org/name":
            raise OSError("offline")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return asked


def test_what_is_on_the_disk_goes_first(
    folder: Path, hub: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "model.pt"
    assert find_file(str(path), filename="ignored.pt", sha256=SHA256.upper()) == path
    assert find_file(str(folder), filename="model.pt") == path
    assert find_folder(str(folder)) == folder
    monkeypatch.chdir(folder)
    (folder / "org" / "name").mkdir(parents=True)
    assert find_folder("org/name") == Path("org/name")
    assert hub == []


def test_the_hub_is_asked_for_one_revision(folder: Path, hub: list[tuple[Any, ...]]) -> None:
    assert find_file("org/name", filename="model.pt", revision="abc", sha256=SHA256) == folder / "model.pt"
    assert find_folder("org/name", revision="abc", patterns=("*.json",)) == folder
    assert find_folder("org/name", download=False) == folder
    assert find_file("org/name", filename="model.pt", download=False) == folder / "model.pt"
    assert hub == [
        ("org/name", "model.pt", "abc", False),
        ("org/name", ["*.json"], "abc", False),
        ("org/name", None, None, True),
        ("org/name", "model.pt", None, True),
    ]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda folder: find_file(f"{folder}/model.pt", sha256="0" * 64),
            ValueError,
            f"sha256 is {SHA256}, expected 0",
        ),
        (
            lambda _: find_file("org/name", filename="model.pt", sha256="1"),
            ValueError,
            f"is {SHA256}, expected 1. Fetch",
        ),
        (
            lambda folder: find_file(f"{folder}/no.pt"),
            FileNotFoundError,
            "no file .*/no.pt .*the hub is named org/name",
        ),
        (lambda folder: find_file(str(folder)), ValueError, "is a folder; name the file in it"),
        (lambda folder: find_file(str(folder), filename="x"), FileNotFoundError, "has no x; it holds model.pt"),
        (lambda _: find_file("org/name"), ValueError, "no file org/name .*needs the name of the file in it"),
        (lambda folder: find_file(f"{folder}/model.pt", revision="r"), ValueError, "has no revision 'r'"),
        (
            lambda _: find_file("org/name", filename="x.pt"),
            FileNotFoundError,
            "x.pt of org/name at revision main did not come from the hub: EntryNotFoundError: .*give its path",
        ),
        (lambda folder: find_folder(f"{folder}/model.pt"), ValueError, "model.pt is a file; a folder is needed"),
        (lambda folder: find_folder(str(folder), revision="r"), ValueError, "has no revision 'r'"),
        (lambda folder: find_folder(f"{folder}/no"), FileNotFoundError, "there is no folder .*/no "),
        (
            lambda _: find_folder("org/other", revision="r"),
            FileNotFoundError,
            "org/other at revision r.*OSError: offline",
        ),
        (
            lambda _: find_folder("org/other", download=False),
            FileNotFoundError,
            "org/other at revision main in the Hugging Face cache .*it is not downloaded here",
        ),
        (
            lambda _: find_file("org/name", filename="x.pt", download=False),
            FileNotFoundError,
            "nor is x.pt of org/name at revision main in the Hugging Face cache .*hf download org/name",
        ),
    ],
)
def test_what_cannot_be_found_is_told(
    folder: Path, hub: list[Any], call: Callable[[Path], Path], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(folder)


def test_hashes_follow_the_file(folder: Path) -> None:
    path, other = folder / "model.pt", folder / "other.pt"
    assert sha256_of_file(path) == SHA256
    path.write_bytes(b"altered")
    os.utime(path, (1, 1))
    assert sha256_of_file(path) == hashlib.sha256(b"altered").hexdigest()
    other.write_bytes(b"weights")
    assert fingerprint_of([other]) == SHA256[:16]
    assert len({fingerprint_of(paths) for paths in ([path], [other], [path, other], [other, path])}) == 4
