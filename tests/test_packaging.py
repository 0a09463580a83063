"""A wheel holds everything that the packages read at run time."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from align.checkpoints import zoo_entries
from recipes.parts import zoo_file

ROOT = Path(__file__).parent.parent


def packaged(package: str) -> set[Path]:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][package]
    return {path for pattern in patterns for path in (ROOT / package).glob(pattern)}


def test_the_zoo_is_packaged() -> None:
    for folder in zoo_entries().values():
        entry = json.loads((folder / "config.json").read_text())
        names = [entry[name] for name in ("generator", "tokenizer", "codes")]
        # an entry may name another one that it is judged and rewarded by
        names += [entry[key] for key in ("reward", "reward_reference") if not entry[key].startswith("zoo:")]
        if isinstance(entry["protocol"], dict):
            names += [entry["protocol"][name] for name in ("extractor", "reference")]
        else:
            assert zoo_file(entry["protocol"], "reward").exists()
            assert zoo_file(entry["protocol"], "reward_reference").exists()
        assert {folder / name for name in (*names, "config.json", "card.md")} <= packaged("align")


def test_configuration_and_templates_are_packaged() -> None:
    assert set((ROOT / "recipes").rglob("*.yaml")) <= packaged("recipes")
    assert set((ROOT / "evaluation").glob("*.j2")) <= packaged("evaluation")
