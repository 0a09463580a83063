"""Look at rewards, and try them before a training does.

align rewards list: every reward that this machine knows, its own and those of installed packages.

align rewards show NAME: what a reward does, its settings, and the line that trains on it.
For example: align rewards show jpeg-compressibility

align rewards score NAME IMAGES...: score images. IMAGES are files, folders, or the images.npz of `align sample`, which
holds their labels or prompts too. prompt=TEXT and label=NUMBER say what they show, row.COLUMN=VALUE any other column;
kwargs.KEY=VALUE are the reward's settings and worker.KEY=VALUE those of the environment it runs in, as in a recipe.
batch_size=32 and timeout=300 (seconds for a batch) can be set; --json prints JSON.
For example: align rewards score my_rewards.py:boldness runs/sample/images.npz

align rewards check NAME: run a reward through its contract, and say what is wrong with it and what to do. Takes prompt=,
label=, row., kwargs. and worker. as above, size=64 (pixels of each side) and timeout=60.
For example: align rewards check my_rewards.py:boldness size=28

align rewards env NAME: make the Python environment of a reward whose packages do not go with ours.

align rewards serve NAME: run a reward's worker for other machines.
"""

from __future__ import annotations

import difflib
import importlib

KINDS = {
    "list": "recipes.rewards_list",
    "show": "recipes.rewards_show",
    "score": "recipes.rewards_score",
    "check": "recipes.rewards_check",
    "env": "recipes.rewards_env",
    "serve": "recipes.rewards_serve",
}


def main(words: list[str]) -> None:
    if not words or words[0] not in KINDS:
        near = difflib.get_close_matches(words[0], KINDS, n=1) if words else []
        problem = f"unknown: align rewards {words[0]}" if words else "align rewards does several things"
        hint = f". Did you mean: align rewards {near[0]}?" if near else "; see align rewards --help"
        raise ValueError(f"{problem}; known: {', '.join(KINDS)}{hint}")
    importlib.import_module(KINDS[words[0]]).main(words[1:])
