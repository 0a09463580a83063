"""docs/add-a-reward.md, walked as a newcomer does: every file written, every command run, trainings cut short."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from command_line import run
from omegaconf import OmegaConf

from recipes.reward_settings import make_rewards

PAGE = (Path(__file__).parents[2] / "docs/add-a-reward.md").read_text()
PYTHON = "envs/ink/bin/python"  # of the page's own environment, made with a network


def write_files() -> None:
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        Path(name).write_text(code)


def commands() -> list[list[str]]:
    lines = [line.strip() for line in PAGE.splitlines() if line.startswith("    align ")]
    return [shlex.split(line.replace(PYTHON, sys.executable))[1:] for line in lines]


@pytest.mark.slow
def test_the_page_can_be_walked(capsys: pytest.CaptureFixture[str]) -> None:
    write_files()
    shorter = {"train": ["trainer.max_steps=2"], "eval": ["evaluation.num_images=70"]}
    done = [words[0] for words in commands() if run(*words, *shorter.get(words[0], [])) is None]
    assert done.count("train") == 5
    assert done.count("rewards") == 7
    said = capsys.readouterr().out
    assert "warning   blank images  black 0, white 1: above every picture" in said
    assert "more.py:FarFromMean, a reward of kind distribution" in said
    assert json.loads(Path("runs/bold/run.json").read_text())["rewards"][1]["weight"] == 0


def test_the_page_names_settings_that_there_are() -> None:
    write_files()
    block = re.search(r"```yaml\n(reward:.*?)```", PAGE, re.DOTALL)
    assert block is not None
    section = yaml.safe_load(block[1])["reward"]
    more = [{"name": "my_rewards.py:boldness", "label": name, "weight": 0} for name in ("a", "b")]
    rewards = make_rewards(OmegaConf.create({"rewards": [*section["rewards"], *more]}))
    assert [reward.name for reward in rewards.rewards] == ["bold", "class", "jpeg-compressibility", "a", "b"]
    assert rewards.rewards[0].gate is not None
    assert [part.members for part in rewards.ensembles] == [("a", "b")]
    known = OmegaConf.load(Path(__file__).parents[2] / "recipes/conf/reward/classifier.yaml")
    assert section.keys() <= set(known)


@pytest.mark.slow
def test_a_reward_in_a_file_drives_grpo() -> None:
    """The ink of what is drawn rises with nothing but the page's file and one command."""
    write_files()
    run(
        *("train", "experiment=mnist/grpo", 'reward.rewards=[{name: "my_rewards.py:boldness"}]', "evaluation=none"),
        *("trainer.max_steps=10", "trainer.logging_steps=1", "output_dir=run"),
    )
    logs = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    ink = [log["reward/my_rewards.py:boldness"] for log in logs]
    assert len(ink) == 10
    assert sum(ink[-3:]) / 3 > sum(ink[:2]) / 2 + 0.04
