"""The command `align` as tests call it, in this process."""

from __future__ import annotations

import pytest

from recipes.cli import main


def run(*arguments: str) -> None:
    assert main(list(arguments)) == 0


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What it says when it refuses."""
    assert main(list(arguments)) == 1
    return capsys.readouterr().err
