"""Run a reward through its contract, and say what is wrong with it and what to do: align rewards check NAME [key=value ...]

For example: align rewards check my_rewards.py:boldness size=28

It is called on noise, smooth pictures and blank images, alone and in batches. Exit code 1 if it is not fit for training.

size=64             pixels of each side of the images
prompt=TEXT         what the images show; label=NUMBER likewise, of classes
row.COLUMN=VALUE    any other column of a dataset's rows
kwargs.KEY=VALUE    the reward's settings
worker.KEY=VALUE    the environment that it runs in, as worker.python=envs/ink/bin/python
timeout=60          seconds for a batch
"""

from __future__ import annotations

from omegaconf import OmegaConf

from recipes.reward_settings import make_rewards
from recipes.reward_words import entry_of, read_words
from rewards.check import check_reward
from rewards.findings import line_of, summary

SETTINGS = {"size": 64, "timeout": 60.0}


def main(arguments: list[str]) -> None:
    words = read_words(arguments, SETTINGS)
    if len(words.names) != 1:
        raise ValueError(
            f"which reward? align rewards check path/to/file.py:function, or a name of `align rewards list`; got {' '.join(words.names) or 'nothing'}"
        )
    name = words.names[0]
    (reward,) = make_rewards(OmegaConf.create({"rewards": [entry_of(name, words)]})).rewards
    print(f"{name}, a reward of kind {reward.kind}, on images of {words.settings['size']} pixels a side")
    findings = []
    for finding in check_reward(
        reward, size=int(words.settings["size"]), row=words.row, timeout=words.settings["timeout"]
    ):
        print(line_of(finding), flush=True)
        findings.append(finding)
    print(summary(findings))
    if wrong := [finding.what for finding in findings if finding.level == "error"]:
        raise ValueError(f"{name} is not ready for training: {', '.join(wrong)}")
