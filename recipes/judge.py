"""Score generators: draw what a task asks for under fixed seeds, mark it, and append the row to results.jsonl."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from omegaconf import DictConfig
from torch import Tensor

from align.data.prompts import raw_condition
from align.files import sha256_of_tensors
from align.generators import Generator
from align.images import save_grid
from align.progress import progress_bar
from align.sampling import generate
from align.types import Rollout, SamplingConfig
from evaluation.results import ResultRow, append_result, leading_metric, read_results
from recipes.tasks import Marker, Task
from rewards.combine import RewardSet
from rewards.scoring import score_rewards

NO_REWARDS = RewardSet(())


class Draw(Protocol):
    """Rollouts of all conditions in order, as `align.sampling.generate` gives them; a search may spend more on each."""

    def __call__(
        self, generator: Generator, raw_conditions: Sequence[Any], config: SamplingConfig, *, batch_size: int
    ) -> Iterator[Rollout]: ...


class Keep(Protocol):
    """Takes every image that is drawn, with its sample index, to wherever it is kept."""

    def __call__(self, images_BHW3: Tensor, index_B: Tensor) -> None: ...


@dataclass(frozen=True)
class Judge:
    """A task, and the folder that its rows, sample grids and verdicts are collected in.

    batch_size: images that are drawn at once.
    rewards: scored on the same images; their weighted sum is the row's metric `reward`.
    reuse: a row that `folder` holds already, of the same weights, setting, split and count, is not measured again.
    draw, search: how images are drawn, and in words what that spends beyond drawing each once; an arm of its own.
    keep: takes the images themselves.
    """

    task: Task
    batch_size: int
    folder: Path
    rewards: RewardSet = NO_REWARDS
    reuse: bool = False
    draw: Draw = generate
    search: str = ""
    keep: Keep | None = None

    def score(
        self, generator: Generator, label: str, sampling: SamplingConfig, *, split: str, grid: bool = False
    ) -> ResultRow:
        """Sample, score, append the row to results.jsonl.

        images_per_second counts sampling and decoding, not scoring.
        """
        checkpoint = sha256_of_tensors(generator.state_dict())[:16]
        identity = self.identity(checkpoint, label, sampling, split)
        measured = read_results(self.folder / "results.jsonl") if self.reuse else []
        for row in measured:
            if all(getattr(row, name) == value for name, value in identity.items()):
                return row
        rows = self.task.rows(generator)
        marker = self.task.marker(rows)
        seconds, forwards = 0.0, 0.0
        shown: dict[int, Tensor] = {}
        wanted = set(self.task.shown() if grid else ())
        rewards: list[float] = []
        bar = progress_bar(total=len(rows), description=f"{label} {self._setting(sampling)}", unit="img", leave=False)
        conditions = [raw_condition(row) for row in rows]
        batches = self.draw(generator, conditions, sampling, batch_size=self.batch_size)
        clock = time.monotonic()
        for rollout in batches:
            images = generator.decode(rollout.tokens_BL)
            seconds += time.monotonic() - clock
            images, indices = images.cpu(), rollout.index_B.tolist()
            marker.update(images, rollout.index_B)
            if self.keep is not None:
                self.keep(images, rollout.index_B)
            if self.rewards.rewards:
                scores = score_rewards(self.rewards.rewards, images, [rows[i] for i in indices], timeout=None).checked()
                combined = self.rewards.combine(scores.values_NR, scores.valid_NR)
                weighed_NK = combined.columns_NK * torch.tensor(combined.weights)
                rewards += weighed_NK[~weighed_NK.isnan().all(1)].nansum(1).tolist()
            forwards = rollout.forwards_per_image
            shown |= {index: image for index, image in zip(indices, images, strict=True) if index in wanted}
            bar.update(len(images))
            clock = time.monotonic()
        bar.close()
        return self.record(
            identity,
            marker,
            shown,
            self.file_name(label, sampling),
            more={"reward": statistics.fmean(rewards)} if rewards else {},
            forwards_per_image=forwards,
            images_per_second=round(len(rows) / seconds, 1),
        )

    def record(
        self,
        identity: Mapping[str, Any],
        marker: Marker,
        shown: Mapping[int, Tensor],
        name: str,
        *,
        more: Mapping[str, float] | None = None,
        **costs: float,
    ) -> ResultRow:
        """Sum up what was marked, and append it as a row; with a grid of the shown images and the verdicts, by `name`.

        Args:
            shown: images uint8 [H, W, 3] of one size, by their sample indices; no grid where there are none.
            more: metrics beside the protocol's own.
        """
        result = marker.compute()
        samples, verdicts = f"samples/{name}.png", f"verdicts/{name}.jsonl"
        if shown:
            grid = torch.stack(list(shown.values()))
            captions = self.task.captions(list(shown))
            save_grid(grid, self.folder / samples, columns=self.task.grid_columns, captions=captions)
        row = ResultRow(
            **identity,
            metrics=result.metrics | dict(more or {}),
            stderr=result.stderr,
            intervals=result.intervals,
            reference_n=result.reference_n,
            samples=samples if shown else None,
            verdicts=verdicts if marker.write(self.folder / verdicts) else None,
            **costs,  # type: ignore[arg-type]
        )
        append_result(self.folder / "results.jsonl", row)
        return row

    def file_name(self, label: str, sampling: SamplingConfig) -> str:
        """Of an arm's grid and verdicts, which may share their folder with those of other protocols."""
        setting = self._setting(sampling).replace(" ", "_")
        return f"{label}_{self.task.protocol.name}_{setting}_seed{sampling.seed}"

    def _setting(self, sampling: SamplingConfig) -> str:
        searched = re.sub(r"\W+", "-", self.search)
        return f"{describe(sampling)} {searched}".rstrip()

    def identity(self, checkpoint: str | None, label: str, sampling: SamplingConfig, split: str) -> dict[str, Any]:
        """The fields of a row that say what it measures."""
        guided = sampling.guidance_scale != 1.0  # a schedule of nothing makes no arm of its own
        return {
            "label": label,
            "split": split,
            "n": self.task.n,
            "protocol": self.task.protocol.name,
            "checkpoint": checkpoint,
            "seed": sampling.seed,
            "guidance_scale": sampling.guidance_scale,
            "guidance_schedule": sampling.guidance_schedule if guided else "constant",
            "guided_blocks": sampling.guided_blocks if guided else None,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "search": self.search,
            "extractor_fingerprint": self.task.fingerprint,
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

    Best by the protocol's leading metric on one seed. It is another seed than those that claims are made on, so that the
    best of a grid is not also its luckiest draw.
    """
    plain = SamplingConfig(seed=evaluation.select_seed)
    tempered = [plain, *(replace(plain, temperature=t) for t in evaluation.temperatures)]
    guided = [
        replace(plain, guidance_scale=scale, guidance_schedule=schedule)
        for schedule in evaluation.guidance_schedules
        for scale in evaluation.guidance_scales
    ]
    ranks = {}
    for setting in [*tempered, *guided]:
        metric, value = leading_metric(judge.score(generator, "base", setting, split="select").metrics)
        ranks[setting] = metric.rank(value)
    best = [min(tried, key=lambda setting: ranks[setting], default=plain) for tried in (tempered[1:], guided)]
    return list(dict.fromkeys([plain, *best]))
