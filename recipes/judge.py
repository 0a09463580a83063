"""Score generators: draw what a task asks for under fixed seeds, mark it, and append the row to results.jsonl."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from align.data.prompts import raw_condition
from align.files import sha256_of_tensors
from align.generators import Generator
from align.images import save_grid
from align.progress import progress_bar
from align.sampling import generate
from align.types import Rollout, SamplingConfig
from evaluation.metric_names import Metric, leading_metric
from evaluation.results import ResultRow, append_result, read_results
from recipes.run import is_first_process, num_processes, process_index, say, wait_for_all
from recipes.shards import Shards
from recipes.tasks import Marker, Task
from rewards.combine import RewardSet
from rewards.scoring import score_rewards

NO_REWARDS = RewardSet(())


class Draw(Protocol):
    """Rollouts of all conditions in order, as `align.sampling.generate` gives them; a search may spend more on each."""

    def __call__(
        self,
        generator: Generator,
        raw_conditions: Sequence[Any],
        config: SamplingConfig,
        *,
        batch_size: int,
        first: int = 0,
    ) -> Iterator[Rollout]: ...


class Keep(Protocol):
    """Takes every image that is drawn, with its sample index, to wherever it is kept."""

    def begin(self, own: Path, *, resumed: bool) -> None:
        """Before the first image. Raises ValueError if there are images that these would be mixed with.

        own: a folder that this evaluation alone has, until its row is written.
        """

    def __call__(self, images_BHW3: Tensor, index_B: Tensor) -> None: ...

    def finish(self) -> None:
        """After the last image; by one process."""


class Source(Protocol):
    """Where images come from."""

    def __call__(self, indices: range) -> tuple[Tensor, dict[str, float]]:
        """Those of the sample indices, uint8 [B, H, W, 3] on the CPU; and `seconds` and `forwards` that drawing them took."""
        ...


@dataclass(frozen=True)
class Judge:
    """A task, and the folder that its rows, sample grids and verdicts are collected in.

    Images are drawn and measured in shards, which torchrun's processes share. A shard is on disk when it is done, so that
    who is stopped and asks for the same row again goes on there, and gets the same numbers to the last digit.

    batch_size: images that are drawn at once, and those of a shard.
    rewards: scored on the same images; their weighted sum is the row's metric `reward`.
    reuse: a row that `folder` holds already, of the same weights, setting, split and count, is not measured again.
    draw, search: how images are drawn, and in words what that spends beyond drawing each once; an arm of its own.
    images: where images come from that are not drawn here; an arm of its own, too.
    keep: takes the images themselves.
    optimised: fingerprints of what the generators that are scored were rewarded by; metrics of the same are contaminated.
    not_led_by: fingerprints of what any generator beside them was; settings are chosen by other metrics, if there are any.
    """

    task: Task
    batch_size: int
    folder: Path
    rewards: RewardSet = NO_REWARDS
    reuse: bool = False
    draw: Draw = generate
    search: str = ""
    images: str = ""
    keep: Keep | None = None
    optimised: frozenset[str] = frozenset()
    not_led_by: frozenset[str] = frozenset()

    def leading(self, row: ResultRow) -> tuple[Metric, float]:
        """The metric that settings are chosen by, the same for all that are compared, and its value."""
        return leading_metric(row.metrics, self.task.contaminated(self.optimised | self.not_led_by))

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
        conditions = [raw_condition(row) for row in rows]

        def source(indices: range) -> tuple[Tensor, dict[str, float]]:
            clock = time.monotonic()
            part = conditions[indices.start : indices.stop]
            images, forwards = [], 0.0
            drawn = self.draw(generator, part, sampling, batch_size=self.batch_size, first=indices.start)
            for rollout in drawn:
                images.append(generator.decode(rollout.tokens_BL).cpu())
                forwards = rollout.forwards_per_image
            seconds = (time.monotonic() - clock) / num_processes()  # as much of it passed, with all at work
            return torch.cat(images), {"seconds": seconds, "forwards": forwards}

        return self.measure(source, rows, identity, self.file_name(label, sampling), grid=grid)

    def measure(
        self,
        source: Source,
        rows: Sequence[Mapping[str, Any]],
        identity: Mapping[str, Any],
        name: str,
        *,
        grid: bool,
        files: str = "",
        remarks: Sequence[str] = (),
    ) -> ResultRow:
        """The row of a source's images, one for each of `rows`; appended to results.jsonl.

        Args:
            identity: the fields that say what is measured. The shards of another identity are left alone.
            name: of the files with the grid and the verdicts.
            files: identity of the files that images come from; what else changes the numbers is in `identity`.
            remarks: on the images, beside the protocol's own.
        """
        kept = {"grid": grid, "keep": self.keep is not None, "rewards": [one.name for one in self.rewards.rewards]}
        asked = {"rows": list(rows), "task": self.task.facts(), "files": files}
        shards = Shards(self.folder, {**identity, **kept, **asked}, total=len(rows), size=self.batch_size)
        done, resumed = sum(map(shards.has, range(len(shards)))), shards.folder.exists()
        if resumed:
            say(f"going on with {identity['label']}: {done} of {len(shards)} shards were there")
        wait_for_all()  # all have looked before one writes
        if self.keep is not None:
            self.keep.begin(shards.folder, resumed=resumed)
        shards.folder.mkdir(parents=True, exist_ok=True)  # not where keeping was refused: it would pass for a start
        wanted = set(self.task.shown() if grid else ())
        marker = self.task.marker(rows, shards.folder / "columns") if is_first_process() else None
        spent = Spent()
        alone = num_processes() == 1
        with _progress(shards, done, f"{identity['label']} {name}") as bar:
            for shard in range(process_index(), len(shards), num_processes()):
                if not shards.has(shard):
                    shards.write(shard, self._describe(source, rows, shards.indices(shard), wanted))
                    bar.update(min(len(shards.indices(shard)) * num_processes(), bar.total - bar.n))
                if alone and marker is not None:  # a judge that fails is known at once
                    spent.take(marker, shards, shard)
        wait_for_all()
        if marker is not None:
            for shard in range(len(shards)) if not alone else ():
                spent.take(marker, shards, shard)
            self.record(identity, marker, spent, name, remarks)
            shards.remove()
        wait_for_all()
        return read_results(self.folder / "results.jsonl")[-1]

    def _describe(
        self, source: Source, rows: Sequence[Mapping[str, Any]], indices: range, wanted: set[int]
    ) -> dict[str, NDArray[Any]]:
        """All that is kept of a shard."""
        images_BHW3, spent = source(indices)
        images_BHW3 = self.task.prepare(images_BHW3)
        arrays = {f"marker/{key}": array for key, array in self.task.describe(images_BHW3).items()}
        if self.keep is not None:
            self.keep(images_BHW3, torch.tensor(indices))
        if self.rewards.rewards:
            own = [dict(rows[index]) for index in indices]
            scores = score_rewards(self.rewards.rewards, images_BHW3, own, timeout=None).checked()
            combined = self.rewards.combine(scores.values_NR, scores.valid_NR)
            weighed_NK = combined.columns_NK * torch.tensor(combined.weights)
            arrays["rewards"] = weighed_NK[~weighed_NK.isnan().all(1)].nansum(1).double().numpy()
        shown = [index for index in indices if index in wanted]
        arrays["shown"] = np.array(shown, np.int64)
        if shown:
            arrays["shown_images"] = images_BHW3[[index - indices.start for index in shown]].numpy()
        return arrays | {name: np.array(value) for name, value in spent.items()}

    def record(
        self, identity: Mapping[str, Any], marker: Marker, spent: Spent, name: str, remarks: Sequence[str] = ()
    ) -> ResultRow:
        """Sum up what was marked, and append it as a row; with a grid of the shown images and the verdicts, by `name`."""
        told = [*remarks, *marker.check()]
        for remark in told:  # rather now than after minutes of metrics
            say(f"note: {remark}")
        result = marker.compute()
        samples, verdicts = f"samples/{name}.png", f"verdicts/{name}.jsonl"
        if spent.shown:
            grid = torch.from_numpy(np.stack(list(spent.shown.values())))
            captions = self.task.captions(list(spent.shown))
            save_grid(grid, self.folder / samples, columns=self.task.grid_columns, captions=captions)
        remarks = tuple(dict.fromkeys([*told, *result.remarks]))
        for remark in remarks[len(told) :]:
            say(f"note: {remark}")
        row = ResultRow(
            **identity,
            metrics=result.metrics | ({"reward": statistics.fmean(spent.rewards)} if spent.rewards else {}),
            stderr=result.stderr,
            intervals=result.intervals,
            reference_n=result.reference_n,
            remarks=remarks,
            contaminated=tuple(self.task.contaminated(self.optimised)),
            samples=samples if spent.shown else None,
            verdicts=verdicts if marker.write(self.folder / verdicts) else None,
            forwards_per_image=spent.forwards or None,
            images_per_second=round(result.n / spent.seconds, 1) if spent.seconds else None,
        )
        if self.keep is not None:
            self.keep.finish()
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
            "images": self.images,
            "reference_hash": self.task.reference_hash,
            "extractor_fingerprint": self.task.fingerprint,
        }


@dataclass
class Spent:
    """What the shards brought beside their marks."""

    seconds: float = 0.0
    forwards: float = 0.0
    rewards: list[float] = field(default_factory=list)
    shown: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def take(self, marker: Marker, shards: Shards, shard: int) -> None:
        arrays = shards.read(shard)
        marks = {key.removeprefix("marker/"): array for key, array in arrays.items() if key.startswith("marker/")}
        marker.add(marks, shards.indices(shard))
        self.seconds += float(arrays.get("seconds", 0.0))
        self.forwards = float(arrays.get("forwards", 0.0))
        self.rewards += arrays["rewards"].tolist() if "rewards" in arrays else []
        self.shown |= dict(zip(arrays["shown"].tolist(), arrays.get("shown_images", ()), strict=True))


def _progress(shards: Shards, done: int, description: str) -> Any:
    """Images done, how many come a second, and how long the rest will take; the first process counts for all."""
    return progress_bar(
        total=shards.total,
        initial=min(done * shards.size, shards.total),
        description=description,
        unit="img",
        leave=False,
        disable=not is_first_process(),
    )


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


def refuse_the_seed_of_choice(evaluation: DictConfig, report_seeds: int) -> None:
    """Raises ValueError where what is chosen on a seed would be reported on it, too, where it looks better than it is."""
    chosen, first = evaluation.select_seed, evaluation.seed
    if first <= chosen < first + report_seeds:
        raise ValueError(
            f"evaluation.select_seed={chosen} is among the report seeds, {report_seeds} from evaluation.seed={first}; what is chosen on a seed "
            "looks better there than it is. Set another one"
        )


def base_settings(judge: Judge, generator: Generator, evaluation: DictConfig) -> list[SamplingConfig]:
    """How the base is shown: the four cells of {no guidance, its best} x {plain, its best temperature or filter}.

    `evaluation` is a configuration's section of that name: select_seed, guidance_scales, guidance_schedules,
    temperatures, filters.
    """
    return tuned_settings(judge, generator, "base", evaluation, evaluation.guidance_scales)


def aligned_settings(judge: Judge, generator: Generator, evaluation: DictConfig) -> list[SamplingConfig]:
    """The same of an aligned generator, guided by `aligned_guidance_scales`."""
    return tuned_settings(judge, generator, "aligned", evaluation, evaluation.aligned_guidance_scales)


def unguided_settings(judge: Judge, generator: Generator, label: str, evaluation: DictConfig) -> list[SamplingConfig]:
    """Plain, and at the best temperature or filter: the two columns that every guidance-free figure has."""
    return tuned_settings(judge, generator, label, evaluation, [])


def tuned_settings(
    judge: Judge, generator: Generator, label: str, evaluation: DictConfig, scales: Sequence[float]
) -> list[SamplingConfig]:
    """Plain; without guidance at the best of the temperatures and filters; at the best guidance, without and with those.

    Best by the protocol's leading metric on one seed. It is another seed than those that claims are made on, so that the
    best of a grid is not also its luckiest draw.
    """
    plain = SamplingConfig(seed=evaluation.select_seed)

    def best(tried: Sequence[SamplingConfig]) -> SamplingConfig | None:
        ranks = {}
        for setting in tried:
            metric, value = judge.leading(judge.score(generator, label, setting, split="select"))
            ranks[setting] = metric.rank(value)
        return min(ranks, key=lambda setting: ranks[setting], default=None)

    def guided_from(start: SamplingConfig, schedules: Sequence[str]) -> SamplingConfig | None:
        pairs = [(scale, schedule) for schedule in schedules for scale in scales if scale != 1.0]
        return best([replace(start, guidance_scale=scale, guidance_schedule=schedule) for scale, schedule in pairs])

    judge.score(generator, label, plain, split="select")
    tempered = [replace(plain, temperature=temperature) for temperature in evaluation.temperatures]
    tuned = best([*tempered, *(replace(plain, **filters) for filters in evaluation.filters)])
    guided = guided_from(plain, evaluation.guidance_schedules)
    both = None
    if tuned is not None and guided is not None:
        both = guided_from(tuned, [guided.guidance_schedule])
    return [setting for setting in (plain, tuned, guided, both) if setting is not None]
