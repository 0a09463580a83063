"""Measure: what objectives gain, and how fast and lean the work is. Each word has a --help of its own.

What is gained. align bench mnist, align bench shapes: train every experiment of a domain on its shipped generators, over
seeds, and tabulate what each gained.
For example: align bench mnist seeds=[1] experiments=[cca,gft] generators=[mnist-llamagen]

What it costs. Each beside the plain way to do it, beside peers that are installed, and beside the authors' own code where
its path is given: all in one run, on the same weights, and only where both compute the same.
align bench rollout: drawing images.
align bench train: a training step, its time and its memory.
align bench eval: features and the Frechet distance.
For example: align bench rollout size=[B] batch=[4,8] guidance=[1,2] peer_path=../LlamaGen
"""

from __future__ import annotations

from recipes.kinds import module_of_kind

KINDS = {
    "mnist": "recipes.bench_objectives",
    "shapes": "recipes.bench_objectives",
    "rollout": "recipes.bench_rollout",
    "train": "recipes.bench_train",
    "eval": "recipes.bench_eval",
}


def main(words: list[str]) -> None:
    module = module_of_kind("bench", KINDS, words)
    # which domain it is, its module has to know
    module.main(words if module.__name__ == "recipes.bench_objectives" else words[1:])
