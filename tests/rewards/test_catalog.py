"""What is told of a registered reward without running its code."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rewards.base import kind_of
from rewards.catalog import catalog, installs
from rewards.registry import BUILT_IN, find_reward

MODULE = '''
raise SystemExit("never run")

import torch
from rewards.base import groupwise

def sharp(images, conditions):
    """How sharp it is,
    in bits.

    More of it.
    """
    import json, paddle_of_nowhere.deep

@groupwise
def ranked(images, conditions):
    from pytest import approx

class Distance:
    """Far."""
    def describe(self): ...
    def score(self): ...
    def advance(self): ...

class Judge:
    kind = "group"
    def __call__(self, images, conditions): ...
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "strange_rewards"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('never run')\n")
    (folder / "sight.py").write_text(MODULE)
    info = tmp_path / "strange_rewards-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-rewards\nVersion: 2.5\n")
    points = """\
        [align.rewards]
        sharp = strange_rewards.sight:sharp
        ranked = strange_rewards.sight:ranked
        distance = strange_rewards.sight:Distance
        judge = strange_rewards.sight:Judge
        elsewhere = strange_rewards.sight:imported
        gone = strange_rewards.lost:gone
        """
    (info / "entry_points.txt").write_text(textwrap.dedent(points))
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("package")
def test_source_is_read_and_not_run() -> None:
    found = {entry.name: entry for entry in catalog()}
    sharp = found["sharp"]
    assert (sharp.kind, sharp.summary, sharp.home) == ("image", "How sharp it is, in bits.", "strange-rewards 2.5")
    assert {name: found[name].kind for name in ("ranked", "distance", "judge", "elsewhere")} == {
        "ranked": "group",
        "distance": "distribution",
        "judge": "group",
        "elsewhere": "",
    }
    assert sharp.uses == ("paddle_of_nowhere", "pytest")
    assert sharp.missing == {"paddle_of_nowhere": "pip install paddle_of_nowhere"}
    assert found["gone"].summary == "its module strange_rewards.lost is not installed"


def test_what_installs_a_module_is_the_extra_that_holds_it() -> None:
    assert installs("lpips") == "pip install 'ar-align[lpips]'"
    assert installs("peft") == "pip install 'ar-align[lora]'"  # dev holds it too
    assert installs("ImageReward") == "align rewards env image-reward, and worker: {environment: image-reward}"


def test_what_is_told_of_the_built_in_ones_is_so() -> None:
    found = {entry.name: entry for entry in catalog() if entry.home == "built in"}
    assert found.keys() == {point.name for point in BUILT_IN}
    for name, entry in found.items():
        assert entry.summary, f"{name} has no docstring, and `align rewards list` shows its first paragraph"
        assert entry.kind == ("distribution" if hasattr(find_reward(name), "describe") else kind_of(find_reward(name)))


def test_the_list_does_not_import_torch() -> None:
    check = "import sys; from recipes.cli import main; main(['rewards', 'list']); sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, check=False).returncode == 0
