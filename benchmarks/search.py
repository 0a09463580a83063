"""Compute at test time on the shipped generators: guidance, best of n and guided search beside plain sampling.

    python benchmarks/search.py mnist-llamagen mnist-var      (two minutes on one core, 1,000 images for each arm)
    python benchmarks/search.py mnist-llamagen mnist-var --images 2000 --results benchmarks/results/search-mnist.json
    python benchmarks/search.py shapes-t2i --images 1728 --aligned shapes-t2i=runs/bench/shapes-t2i/grpo-seed1 --results benchmarks/results/search-shapes.json

--aligned adds a run's generator as an arm, drawn once. Searches select by a judge that is not the one that reports: the
digits' reward classifier, or the learnt judge of the shapes, which looks at the same things as the exact detector. Costs are
network evaluations for each image that is kept, of all its candidates and of both branches under guidance; all of
mnist-var's scales count alike here, though the last one is 49 tokens and the first one 1. Plans are made so that a search
costs about what four drawn alone do.
What searches cost beside, decoding and scoring their candidates, is in the images per second that are printed; they are not
recorded, since they say more about what else a machine does.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from align.files import write_text
from evaluation.arms import Arm, summarize, text_table
from recipes.config import compose
from recipes.judge import Judge
from recipes.parts import make_generator, make_sampling
from recipes.run import describe_device
from recipes.search_settings import make_draw
from recipes.tasks import make_task

SEED = 1001
CLASSIFIER = "{name: classifier-log-prob, label: classifier, kwargs: {weights: 'zoo:mnist-llamagen'}}"
LEARNT = "{name: geneval, label: learnt, kwargs: {detector: shapes-neural, detector_kwargs: {path: 'zoo:shapes-t2i'}, credit: strict}}"


def best_of(n: int, reward: str) -> list[str]:
    return ["search=best_of_n", f"search.n={n}", f"search.reward.rewards=[{reward}]"]


def guided(n: int, *steps: tuple[int, int, str], lambda_: float = 10.0) -> list[str]:
    told = ", ".join(f"{{after: {after}, keep: {keep}, by: {by}}}" for after, keep, by in steps)
    rewards = f"search.reward.rewards=[{CLASSIFIER}]"
    return ["search=tts", f"search.n={n}", f"search.steps=[{told}]", f"search.lambda_={lambda_}", rewards]


ARMS = {
    "mnist-llamagen": [
        [],
        ["sampling.guidance_scale=1.5"],
        best_of(2, CLASSIFIER),
        best_of(4, CLASSIFIER),
        # 3 for 35 tokens, a look ahead of 14 for each, and 3 for these 14
        guided(3, (35, 3, "potential"), lambda_=1.0),
    ],
    "mnist-var": [
        [],
        ["sampling.guidance_scale=1.5", "sampling.guidance_schedule=linear"],
        best_of(2, CLASSIFIER),
        best_of(4, CLASSIFIER),
        guided(6, (2, 3, "diversity"), (4, 2, "potential")),
        guided(6, (2, 3, "potential"), (4, 2, "potential")),
    ],
    "shapes-t2i": [
        [],
        ["sampling.guidance_scale=2.0"],
        best_of(2, LEARNT),
        best_of(4, LEARNT),
        [*best_of(2, LEARNT), "sampling.guidance_scale=2.0"],
    ],
}
METRICS = ("fid", "accuracy", "recall", "geneval")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("entries", nargs="+", choices=list(ARMS), metavar="ENTRY", help=", ".join(ARMS))
    parser.add_argument("--images", type=int, default=1000, help="images of each arm; of prompts, about as many")
    parser.add_argument("--aligned", nargs="*", default=[], metavar="ENTRY=CHECKPOINT", help="a run, or its weights")
    parser.add_argument("--results", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    aligned = {entry: checkpoint for entry, _, checkpoint in (word.partition("=") for word in arguments.aligned)}
    if not all(aligned.values()):
        parser.error("--aligned takes ENTRY=CHECKPOINT, such as shapes-t2i=runs/shapes/grpo")
    if unknown := aligned.keys() - set(arguments.entries):
        parser.error(f"--aligned names {min(unknown)!r}, which is not among the entries {', '.join(arguments.entries)}")
    found: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/search.py", *sys.argv[1:]]),
        "device": describe_device(),
        "seed": SEED,
    }
    with tempfile.TemporaryDirectory() as name:
        for entry in arguments.entries:
            arms = measure(Path(name) / entry, entry, arguments.images, aligned.get(entry))
            print(f"--- {entry}\n{text_table(arms)}", flush=True)
            found[entry] = [summary(arm) for arm in arms]
            if arguments.results:
                write_text(arguments.results, json.dumps(found, indent=2) + "\n")


def measure(folder: Path, entry: str, images: int, aligned: str | None) -> list[Arm]:
    given = [f"generator={entry}", f"sampling.seed={SEED}", *protocol(entry, images)]
    config = compose("eval", given)
    task, generator = make_task(config.evaluation), make_generator(config.generator)
    judge = Judge(task, config.evaluation.batch_size, folder)
    rows = []
    for overrides in ARMS[entry]:
        config = compose("eval", [*given, *overrides])
        draw, search = make_draw(config.search, generator, task.rows(generator))
        arm = replace(judge, draw=draw, search=search)
        rows.append(arm.score(generator, "base", make_sampling(config.sampling), split="report"))
    if aligned is not None:
        config = compose("eval", [*given, f"generator.checkpoint={aligned}"])
        rows.append(
            judge.score(make_generator(config.generator), "aligned", make_sampling(config.sampling), split="report")
        )
    return summarize(rows)


def protocol(entry: str, images: int) -> list[str]:
    if entry != "shapes-t2i":
        return [f"evaluation.num_images={images}"]
    config = compose("eval", [f"generator={entry}", "evaluation=geneval-shapes", "evaluation.images_per_prompt=1"])
    prompts = make_task(config.evaluation).n
    return ["evaluation=geneval-shapes", f"evaluation.images_per_prompt={max(1, images // prompts)}"]


def summary(arm: Arm) -> dict[str, Any]:
    (row,) = arm.rows
    figures = {name: spread.values[SEED] for name in METRICS if (spread := arm.metric(name))}
    return {
        "label": arm.label,
        "settings": arm.settings,
        "images": row.n,
        "forwards_per_image": row.forwards_per_image,
        **{name: round(value, 3) for name, value in figures.items()},
    }


if __name__ == "__main__":
    main()
