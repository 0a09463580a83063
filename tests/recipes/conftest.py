"""What the tests of commands share: each has a working folder of its own; a run to push, and a Hub that records."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hub import SHORT, Hub

from recipes.cli import main


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with adapters, which was not evaluated."""
    folder = tmp_path_factory.mktemp("push") / "run"
    assert main(["train", "experiment=mnist/cca", "trainer.lora_rank=2", f"output_dir={folder}", *SHORT]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)
