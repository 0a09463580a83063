"""Look at rewards, and try them before a training does. Each word has a --help of its own.

align rewards list: every reward that this machine knows, its own and those of installed packages.

align rewards show NAME: what a reward does, its settings, and the line that trains on it.
For example: align rewards show jpeg-compressibility

align rewards score NAME IMAGES...: score images.
For example: align rewards score my_rewards.py:boldness runs/sample/images.npz

align rewards check NAME: run a reward through its contract, and say what is wrong with it and what to do.
For example: align rewards check my_rewards.py:boldness size=28

align rewards env NAME: make the Python environment of a reward whose packages do not go with ours.
For example: align rewards env image-reward

align rewards serve NAME: run a reward's worker for other processes and machines.
For example: align rewards serve pickscore listen=http://127.0.0.1:8400 token_file=~/.align-token
"""

from __future__ import annotations

from recipes.kinds import module_of_kind

KINDS = {
    "list": "recipes.rewards_list",
    "show": "recipes.rewards_show",
    "score": "recipes.rewards_score",
    "check": "recipes.rewards_check",
    "env": "recipes.rewards_env",
    "serve": "recipes.rewards_serve",
}


def main(words: list[str]) -> None:
    module_of_kind("rewards", KINDS, words).main(words[1:])
