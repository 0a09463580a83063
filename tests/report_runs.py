"""A study of text to image as a run would leave it, without a generator: scenes of the shapes world, some of them spoilt.

To look at the page: python tests/report_runs.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from align.images import save_grid
from evaluation.geneval import TAGS, Detection
from evaluation.geneval.protocol import GenEvalProtocol
from evaluation.results import ResultRow, append_result
from evaluation.shapes_world import COLORS, SIDE, Shape, ShapeColors, ShapeDetector, lay_out, prompt_rows, render

SEEDS = (1001, 1002, 1003)
# label, guidance, chance that a scene is left as asked for, split, search
ARMS = (
    ("base", 1.0, 0.30, "select", ""),
    ("base", 2.0, 0.52, "select", ""),
    ("base", 4.0, 0.44, "select", ""),
    ("base", 1.0, 0.30, "report", ""),
    ("base", 2.0, 0.52, "report", ""),
    ("base", 1.0, 0.60, "report", "best of 4 by geneval"),
    ("sft", 1.0, 0.33, "report", ""),
    ("aligned", 1.0, 0.72, "report", ""),
)


def spoil(scene: list[Shape], rng: np.random.Generator) -> list[Shape]:
    """A shape less, one of them in another colour, or all of them mirrored or turned."""
    kind = rng.integers(3)
    if kind == 0:
        return scene[1:]
    if kind == 1:
        return [replace(scene[0], color=str(rng.choice(list(COLORS)))), *scene[1:]]
    return [replace(shape, left=shape.top, top=SIDE - shape.size - shape.left) for shape in scene]


class ShyDetector:
    """The second judge: blind to shapes at an image's border."""

    name = "shy"
    labels = ShapeDetector.labels

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        found = ShapeDetector()(images)
        return [[seen for seen in of_image if min(seen.box) > 0 and max(seen.box) < SIDE] for of_image in found]


def write_run(
    folder: Path,
    *,
    per_tag: int = 24,
    seeds: Sequence[int] = SEEDS,
    arms: Sequence[tuple[str, float, float, str, str]] = ARMS,
) -> Path:
    """Fill `folder` with run.json, results.jsonl, verdicts and grids with captions, the same on every call.

    per_tag: prompts of each tag, with one image each.
    """
    every = prompt_rows("test")
    rows = [row for tag in TAGS for row in [row for row in every if row["tag"] == tag][:per_tag]]
    judges = (ShapeDetector(), ShapeColors()), (ShyDetector(), ShapeColors())
    protocol = GenEvalProtocol("geneval-shapes", rows, *judges[0], images_per_prompt=1, held_out=judges[1])
    for part in ("verdicts", "samples"):
        (folder / part).mkdir(parents=True)
    run = {
        "name": "shapes/grpo",
        "kind": "study",
        "status": "finished",
        "command": "align study experiment=shapes/grpo",
    }
    (folder / "run.json").write_text(json.dumps(run))
    for number, (label, guidance, skill, split, search) in enumerate(arms):
        for seed in seeds if split == "report" else (1,):
            rng = np.random.default_rng([number, seed])
            scenes = [lay_out(row, rng) for row in rows]
            scenes = [scene if rng.random() < skill else spoil(scene, rng) for scene in scenes]
            evaluator = protocol.evaluator()
            evaluator.update(torch.from_numpy(np.stack([render(scene) for scene in scenes])), range(len(rows)))
            result = evaluator.compute()
            stem = f"{label}_g{guidance:g}_{number}_seed{seed}"
            samples = f"samples/{stem}.png" if split == "report" and seed == seeds[0] else None
            if samples:
                shown = list(range(0, len(rows), max(1, len(rows) // 14)))[:14]
                images = torch.from_numpy(np.stack([render(scenes[index]) for index in shown]))
                captions = [rows[index]["prompt"] for index in shown]
                save_grid(images, folder / samples, columns=7, captions=captions)
            if split == "report":
                evaluator.write(folder / f"verdicts/{stem}.jsonl")
            row = ResultRow(
                label=label,
                seed=seed,
                n=result.n,
                protocol=result.protocol,
                metrics=result.metrics,
                stderr=result.stderr,
                intervals=result.intervals,
                reference_n=result.reference_n,
                extractor_fingerprint=result.extractor_fingerprint,
                guidance_scale=guidance,
                search=search,
                split=split,
                forwards_per_image=64.0 * (1 if guidance == 1 else 2) * (4 if search else 1),
                images_per_second=120.0,
                samples=samples,
                verdicts=f"verdicts/{stem}.jsonl" if split == "report" else None,
            )
            append_result(folder / "results.jsonl", row)
    return folder


if __name__ == "__main__":
    from evaluation.report import write_report

    print(write_report(write_run(Path(sys.argv[1]))))
