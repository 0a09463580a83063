"""Look at this machine, what is installed, and the rewards; say what is wrong and what to do about each finding.

It takes seconds. The built-in rewards are run with tiny weights on two stored images, and compared with what they scored
when this version was made: a library that reads images or prompts in another way shows here. With the settings of a
training the rewards that it names are loaded and tried too, with their own weights, and its workers are asked how they are.
For example: align doctor experiment=mnist/grpo

record=FILE writes what the built-in rewards score here, for those who change one (rewards/stored_scores.json).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from recipes.config import compose
from recipes.doctor_machine import look_at_disks, look_at_machine
from recipes.doctor_packages import look_at_packages
from recipes.doctor_rewards import look_at_built_in, look_at_configured, look_at_zoo, record
from rewards.findings import Finding, line_of, summary

WIDTH = 28


def main(overrides: list[str]) -> None:
    files = [word.removeprefix("record=") for word in overrides if word.startswith("record=")]
    words = [word for word in overrides if not word.startswith("record=")]
    config = compose("train", words)
    if files:  # for those who change a built-in reward: the file that the next doctors compare with
        Path(files[0]).write_text(json.dumps(record(), indent=2) + "\n")
        return
    found = []
    for finding in _look(config, has_settings=bool(words)):
        print(line_of(finding, WIDTH), flush=True)
        found.append(finding)
    print(summary(found))
    if wrong := [finding.what for finding in found if finding.level == "error"]:
        raise ValueError(f"to be mended: {', '.join(wrong)}")


def _look(config: DictConfig, *, has_settings: bool) -> Iterator[Finding]:
    yield from look_at_machine()
    yield from look_at_packages()
    yield from look_at_disks(Path(config.output_dir))
    yield from look_at_zoo()
    with tempfile.TemporaryDirectory() as folder:
        yield from look_at_built_in(Path(folder))
    if has_settings:
        yield from look_at_configured(config)
