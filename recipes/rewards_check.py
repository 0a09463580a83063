"""Run a reward through its contract: align rewards check NAME [size=64] [prompt=TEXT] [label=NUMBER] [kwargs.KEY=VALUE]"""

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
