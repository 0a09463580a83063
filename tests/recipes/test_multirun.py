"""Hydra's multirun over `align train`: one training for each combination, each in a folder of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from recipes import multirun, train
from recipes.config import compose


def test_each_combination_is_a_training_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(train, "main", lambda settings: trained.append(compose("train", settings)))
    words = ["-m", "experiment=mnist/cca", "seed=1,2", "objective.lambda_=3,5", f"hydra.sweep.dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["multirun", *words])
    multirun.main()
    assert [(c.seed, c.objective.lambda_) for c in trained] == [(1, 3), (1, 5), (2, 3), (2, 5)]
    assert [c.output_dir for c in trained] == [str(tmp_path / str(job) / "run") for job in range(4)]
