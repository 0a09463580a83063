"""A wheel holds everything that the packages read at run time."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from align.zoo_entries import zoo_entries
from recipes.parts import zoo_file

ROOT = Path(__file__).parent.parent


def packaged(package: str) -> set[Path]:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][package]
    return {path for pattern in patterns for path in (ROOT / package).glob(pattern)}


def test_the_zoo_is_packaged() -> None:
    for folder in zoo_entries().values():
        entry = json.loads((folder / "config.json").read_text())
        # what an entry names lies in it, or is another entry's that it is judged and rewarded by
        names = [path.name for path in folder.iterdir() if path.is_file()]
        told = [value for key, value in entry.items() if key not in ("family", "config", "protocol")]
        assert all(value.startswith("zoo:") or (folder / value).exists() for value in told)
        if isinstance(entry["protocol"], str):
            assert zoo_file(entry["protocol"], "reward").exists()
            assert zoo_file(entry["protocol"], "reward_reference").exists()
        if "text_encoder" in entry:
            names += [f"{entry['text_encoder']}/{path.name}" for path in (folder / entry["text_encoder"]).iterdir()]
        assert {folder / name for name in (*names, "config.json", "card.md")} <= packaged("align")


def test_configuration_and_templates_are_packaged() -> None:
    assert set((ROOT / "recipes").rglob("*.yaml")) <= packaged("recipes")
    assert set((ROOT / "evaluation").glob("*.j2")) <= packaged("evaluation")
