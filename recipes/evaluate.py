"""Score a generator under one sampling setting: class-balanced images of fixed seeds, through a protocol.

The row is appended to output_dir/results.jsonl, the first images go to output_dir/samples/, and report.html is
written anew. For example: align eval generator.checkpoint=runs/mnist/cca label=aligned
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from align.files import sha256_of_tensors
from align.generators import Generator
from align.images import save_grid
from align.progress import progress_bar
from align.sampling import balanced_labels, generate
from align.types import SamplingConfig
from evaluation.arms import summarize, text_table
from evaluation.protocol import Evaluator, Protocol
from evaluation.report import write_report
from evaluation.results import CLASS_ACCURACY, ResultRow, append_result, read_results
from recipes.config import compose
from recipes.parts import make_generator, make_protocol, make_sampling, num_classes
from recipes.run import Run, say
from rewards.combine import RewardSet
from rewards.scoring import score_rewards

GRID_COLUMNS = 10
GRID_IMAGES = 60
NO_REWARDS = RewardSet(())


@dataclass(frozen=True)
class Judge:
    """A protocol with the number of images it is applied to; `folder` collects rows and sample grids.

    rewards: scored on the same images; their weighted sum is the row's metric `reward`.
    classes: that images are drawn for, evenly; all of them if None.
    reuse: a row that `folder` holds already, of the same weights, setting, split and count, is not measured again.
    """

    protocol: Protocol
    num_images: int
    batch_size: int
    folder: Path
    rewards: RewardSet = NO_REWARDS
    classes: Sequence[int] | None = None
    reuse: bool = False

    def score(
        self, generator: Generator, label: str, sampling: SamplingConfig, *, split: str, grid: bool = False
    ) -> ResultRow:
        """Sample, score, append the row to results.jsonl.

        images_per_second counts sampling and decoding, not scoring.
        """
        identity = self._identity(generator, label, sampling, split)
        rows = read_results(self.folder / "results.jsonl") if self.reuse else []
        for row in rows:
            if all(getattr(row, name) == value for name, value in identity.items()):
                return row
        classes = self.classes or range(num_classes(generator))
        labels = [classes[index] for index in balanced_labels(self.num_images, len(classes))]
        evaluator = Evaluator(self.protocol)
        seconds, forwards = 0.0, 0.0
        shown: list[torch.Tensor] = []
        rewards: list[float] = []
        bar = progress_bar(total=self.num_images, description=f"{label} {describe(sampling)}", unit="img", leave=False)
        batches = generate(generator, labels, sampling, batch_size=self.batch_size)
        clock = time.monotonic()
        for rollout in batches:
            images = generator.decode(rollout.tokens_BL)
            seconds += time.monotonic() - clock
            evaluator.update(images.cpu(), torch.tensor(labels)[rollout.index_B])
            if self.rewards.rewards:
                described = [{"label": labels[index]} for index in rollout.index_B.tolist()]
                scores = score_rewards(self.rewards.rewards, images, described, timeout=None).checked()
                combined = self.rewards.combine(scores.values_NR, scores.valid_NR)
                rewards += (combined.columns_NK * torch.tensor(combined.weights)).nansum(1).tolist()
            forwards = rollout.forwards_per_image
            if sum(len(images) for images in shown) < GRID_IMAGES:
                shown.append(images.cpu())
            bar.update(len(images))
            clock = time.monotonic()
        bar.close()
        result = evaluator.compute()
        samples = None
        if grid:
            samples = f"samples/{label}_{describe(sampling).replace(' ', '_')}_seed{sampling.seed}.png"
            save_grid(torch.cat(shown)[:GRID_IMAGES], self.folder / samples, columns=GRID_COLUMNS)
        row = ResultRow(
            **identity,
            metrics=result.metrics
            | {f"{CLASS_ACCURACY}{label}": value for label, value in evaluator.accuracy_by_class().items()}
            | ({"reward": statistics.fmean(rewards)} if rewards else {}),
            stderr=result.stderr,
            reference_n=result.reference_n,
            extractor_fingerprint=result.extractor_fingerprint,
            forwards_per_image=forwards,
            images_per_second=round(self.num_images / seconds, 1),
            samples=samples,
        )
        append_result(self.folder / "results.jsonl", row)
        return row

    def _identity(self, generator: Generator, label: str, sampling: SamplingConfig, split: str) -> dict[str, Any]:
        """The fields of a row that say what it measures."""
        guided = sampling.guidance_scale != 1.0  # a schedule of nothing makes no arm of its own
        return {
            "label": label,
            "split": split,
            "n": self.num_images,
            "protocol": self.protocol.name,
            "checkpoint": sha256_of_tensors(generator.state_dict())[:16],
            "seed": sampling.seed,
            "guidance_scale": sampling.guidance_scale,
            "guidance_schedule": sampling.guidance_schedule if guided else "constant",
            "guided_blocks": sampling.guided_blocks if guided else None,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        }


def describe(sampling: SamplingConfig) -> str:
    """A short name of a sampling setting: `g2 t0.9`."""
    schedule = "" if sampling.guidance_schedule == "constant" else f"-{sampling.guidance_schedule}"
    interval = "" if sampling.guided_blocks is None else f"-first{sampling.guided_blocks}"
    parts = [f"g{sampling.guidance_scale:g}{schedule}{interval}", f"t{sampling.temperature:g}"]
    parts += [f"k{sampling.top_k}"] if sampling.top_k else []
    parts += [f"p{sampling.top_p:g}"] if sampling.top_p < 1 else []
    return " ".join(parts)


def fid(row: ResultRow) -> float:
    return next(value for key, value in row.metrics.items() if key.startswith("fid_"))


def base_settings(judge: Judge, generator: Generator, evaluation: DictConfig) -> list[SamplingConfig]:
    """How the base is shown: plain, at its best temperature without guidance, and at its best guidance scale.

    `evaluation` is a configuration's section of that name: select_seed, guidance_scales, guidance_schedules,
    temperatures.

    Best by FID on one seed. It is another seed than those that claims are made on, so that the best of a grid is not
    also its luckiest draw.
    """
    plain = SamplingConfig(seed=evaluation.select_seed)
    tempered = [plain, *(replace(plain, temperature=t) for t in evaluation.temperatures)]
    guided = [
        replace(plain, guidance_scale=scale, guidance_schedule=schedule)
        for schedule in evaluation.guidance_schedules
        for scale in evaluation.guidance_scales
    ]
    scores = {setting: fid(judge.score(generator, "base", setting, split="select")) for setting in [*tempered, *guided]}
    best = [min(tried, key=lambda setting: scores[setting], default=plain) for tried in (tempered[1:], guided)]
    return list(dict.fromkeys([plain, *best]))


def main(overrides: list[str]) -> None:
    config = compose("eval", overrides)
    run = Run(config, kind="eval", overrides=overrides, name=config.label, append=True)
    generator = make_generator(config.generator)
    evaluation = config.evaluation
    judge = Judge(
        make_protocol(evaluation.protocol),
        evaluation.num_images,
        evaluation.batch_size,
        run.folder,
        classes=None if config.classes is None else list(config.classes),
    )
    row = judge.score(generator, config.label, make_sampling(config.sampling), split="report", grid=True)
    run.update(status="finished", hashes={"generator": row.checkpoint})
    print(text_table(summarize([row])))
    say(f"report: {write_report(run.folder)}")
