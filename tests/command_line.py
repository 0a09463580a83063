"""The command `align` as tests call it, in this process."""

from __future__ import annotations

import pytest

from recipes.cli import main

# the shortest training, of any kind
SHORT = [
    "trainer.max_steps=2",
    "trainer.per_device_train_batch_size=2",
    "trainer.logging_steps=1",
    "trainer.sample_every=2",
    "rollout.num_generations=2",
    "actions.num_generations=2",
    "pairs.num_prompts=10",
    "pairs.num_generations=4",
    "pairs.margin=0",
]


def run(*arguments: str) -> None:
    assert main(list(arguments)) == 0


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What it says when it refuses."""
    assert main(list(arguments)) == 1
    return capsys.readouterr().err
