"""Run all experiments of a domain on all shipped generators, over seeds, and tabulate what each gained without guidance.

align bench mnist: output_dir/GENERATOR/results.jsonl holds every row, summary.json the medians, and with results= and
readme= they are written where the repository shows them. An experiment that erases a class is judged on the classes
that it keeps, beside the accuracy on the erased one.
For example: align bench mnist seeds=[1] experiments=[cca,gft] generators=[mnist-llamagen]
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from align.files import write_text
from align.generators import Generator
from align.types import SamplingConfig
from evaluation.arms import Arm, Spread, summarize
from evaluation.results import CLASS_ACCURACY, read_results
from recipes.choices import options
from recipes.config import compose, with_sections
from recipes.evaluate import Judge, base_settings
from recipes.exports import find_export
from recipes.parts import make_generator, make_protocol, num_classes
from recipes.reward_settings import make_rewards
from recipes.run import Run, refuse_many_processes, say
from recipes.supplies import check_recipe
from recipes.train import align_generator

DOMAINS = ("mnist",)
MARKS = ("<!-- bench: written by `align bench` -->", "<!-- /bench -->")
# an arm's trainings, one after the other: {"gft": ..., "gft+ddo": ...}
Stages = dict[str, DictConfig]
SHOWN = {"fid": 2, "accuracy": 3, "recall": 3, "reward": 2}  # metrics, and the digits that they are shown with
RECORDED = (*SHOWN, "precision")
TIMES_FILE = "training_seconds.json"


def main(arguments: list[str]) -> None:
    refuse_many_processes("`align bench`")
    if not arguments or arguments[0] not in DOMAINS:
        raise ValueError(f"which domain? known: {', '.join(DOMAINS)}. For example: align bench mnist")
    domain, overrides = arguments[0], arguments[1:]
    config = compose("bench", overrides)
    plan = {
        generator: {name: _experiment(domain, name, generator, list(config.overrides)) for name in config.experiments}
        for generator in config.generators
    }
    run = Run(config, kind="bench", overrides=arguments, name=f"bench {domain}")
    benches = {
        generator: _Bench(run.folder / generator, list(config.seeds), resume=config.resume == "auto")
        for generator in plan
    }
    found = _run_all(benches, plan, config.processes)
    run.update(status="finished")
    facts = {name: run.record[name] for name in ("command", "device", "wall_seconds", "versions", "git")}
    summary = {**facts, "processes": config.processes, **found}
    write_text(run.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    table = make_table(found)
    print(table)
    if config.results:
        write_text(Path(config.results), json.dumps(summary, indent=2) + "\n")
    if config.readme:
        _put_into(Path(config.readme), table)
    say(f"summary: {run.folder / 'summary.json'}")


def _experiment(domain: str, name: str, generator: str, overrides: list[str]) -> Stages:
    """The composed configurations, refused here rather than an hour later. `gft+ddo` is DDO from where GFT ended."""
    stages: Stages = {}
    for stage in name.split("+"):
        known = [choice for choice in options("experiment") if choice.startswith(f"{domain}/")]
        if f"{domain}/{stage}" not in known:
            raise ValueError(f"unknown experiment {domain}/{stage}; known: {', '.join(known)}")
        config = compose("train", [f"experiment={domain}/{stage}", f"generator={generator}", *overrides])
        check_recipe(config)
        stages["+".join([*list(stages)[-1:], stage])] = config
    return stages


def _erased(stages: Stages) -> int | None:
    """The class that an arm erases."""
    last = list(stages.values())[-1]
    return last.data.negative_label if last.objective._target_.endswith(".erasure") else None


def _run_all(benches: dict[str, _Bench], plan: dict[str, dict[str, Stages]], processes: int) -> dict[str, Any]:
    """Each generator's result; several at once in processes of their own, which share the cores."""
    processes = min(processes, len(benches))
    if processes <= 1:
        return {generator: bench.run(plan[generator]) for generator, bench in benches.items()}
    threads = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        running = {generator: pool.submit(bench.run, plan[generator]) for generator, bench in benches.items()}
        return {generator: future.result() for generator, future in running.items()}


class _Bench:
    """One generator's base and all its aligned versions, paired by sampling seed; what is in `folder` is not made again."""

    def __init__(self, folder: Path, seeds: list[int], *, resume: bool) -> None:
        self.folder, self.seeds, self.resume = folder, seeds, resume
        times = folder / TIMES_FILE
        self.seconds: dict[str, dict[str, float]] = json.loads(times.read_text()) if times.exists() else {}

    def run(self, experiments: Mapping[str, Stages]) -> dict[str, Any]:
        first = next(iter(next(iter(experiments.values())).values()))
        evaluation = first.evaluation
        base = make_generator(first.generator)
        judge = Judge(
            make_protocol(evaluation.protocol),
            evaluation.num_images,
            evaluation.batch_size,
            self.folder,
            make_rewards(compose("train", ["reward=classifier"]).reward),
            reuse=True,
        )
        gains = {name: stages for name, stages in experiments.items() if _erased(stages) is None}
        settings = base_settings(judge, base, evaluation) if gains else []
        for order, seed in enumerate(self.seeds):
            sampling = SamplingConfig(seed=evaluation.seed + order)
            for setting in settings:
                judge.score(base, "base", replace(setting, seed=sampling.seed), split="report", grid=order == 0)
            for name, stages in gains.items():
                judge.score(self._train(stages, seed), name, sampling, split="report", grid=order == 0)
        result: dict[str, Any] = {"seeds": self.seeds, "arms": [self._arm(arm) for arm in _arms(self.folder)]}
        for name, stages in experiments.items():
            if (erased := _erased(stages)) is not None:
                result["erasure"] = self._erasure(judge, base, name, stages, erased, evaluation)
        return result

    def _erasure(
        self, judge: Judge, base: Generator, name: str, stages: Stages, erased: int, evaluation: DictConfig
    ) -> dict[str, Any]:
        """Base and erased generator on all classes, for what each is recognised as, and on the kept ones, for quality."""
        total = num_classes(base)
        whole = replace(judge, folder=self.folder / name / "all")
        kept = replace(
            judge,
            classes=[label for label in range(total) if label != erased],
            num_images=evaluation.num_images * (total - 1) // total,
            folder=self.folder / name / "kept",
        )
        for order, seed in enumerate(self.seeds):
            sampling = SamplingConfig(seed=evaluation.seed + order)
            trained = self._train(stages, seed)
            for part in (whole, kept):
                part.score(base, "base", sampling, split="report", grid=order == 0)
                part.score(trained, name, sampling, split="report", grid=order == 0)
        arms: dict[str, Any] = {}
        for arm, kept_arm in zip(_arms(whole.folder), _arms(kept.folder), strict=True):
            gone = arm.metric(f"{CLASS_ACCURACY}{erased}")
            assert gone is not None
            arms[arm.label] = {"accuracy_erased": _figure(gone), "kept": self._arm(kept_arm)}
        return {"class": erased, "arms": arms}

    def _train(self, stages: Stages, seed: int) -> Generator:
        """Each stage starts from the weights that the one before it exported; what another arm has trained is used."""
        checkpoint: Path | None = None
        for name, config in stages.items():
            where = self.folder / f"{name}-seed{seed}"
            section = with_sections(config.generator, checkpoint=str(checkpoint) if checkpoint else None)
            own = with_sections(config, seed=seed, output_dir=str(where), generator=section)
            checkpoint = where
            if find_export(where) is not None:
                continue
            where.mkdir(parents=True, exist_ok=True)
            clock = time.monotonic()
            align_generator(own, where, resume=self.resume, description=f"{name} {seed}")
            self.seconds.setdefault(name, {})[str(seed)] = round(time.monotonic() - clock, 1)
            write_text(self.folder / TIMES_FILE, json.dumps(self.seconds, indent=2) + "\n")
        last = list(stages.values())[-1]
        return make_generator(with_sections(last.generator, checkpoint=str(checkpoint)))

    def _arm(self, arm: Arm) -> dict[str, Any]:
        """Median, lowest and highest over the seeds of each figure."""
        spreads = {name: arm.metric(name) for name in RECORDED}
        seconds = self.seconds.get(arm.label)
        return {
            "label": arm.label,
            "guidance": arm.guidance,
            "temperature": arm.temperature,
            "plain": arm.plain,
            "forwards_per_image": arm.forwards_per_image,
            "protocol": arm.rows[0].protocol,
            "n": arm.rows[0].n,
            "training_seconds": None if seconds is None else Spread({int(k): v for k, v in seconds.items()}).median,
            **{name: _figure(spread) for name, spread in spreads.items() if spread is not None},
        }


def _arms(folder: Path) -> list[Arm]:
    return summarize(row for row in read_results(folder / "results.jsonl") if row.split == "report")


def _figure(spread: Spread) -> dict[str, Any]:
    return {
        "median": spread.median,
        "low": spread.min,
        "high": spread.max,
        "by_seed": {str(seed): value for seed, value in spread.values.items()},
    }


def make_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: one table per generator, FID also as the median ratio to the plain base on the same seeds."""
    parts = []
    for generator, result in summary.items():
        if result["arms"]:
            parts.append(_gains_table(generator, result["arms"]))
        if "erasure" in result:
            parts.append(_erasure_table(generator, result["erasure"]))
    return "\n\n".join(parts)


def _gains_table(generator: str, arms: Sequence[Mapping[str, Any]]) -> str:
    plain = next(arm for arm in arms if arm["label"] == "base" and arm["plain"])
    lines = [
        f"`{generator}`, medians [range] of {len(plain['fid']['by_seed'])} paired seeds, {plain['n']} images each:",
        "",
        "| arm | FID | ratio to base | accuracy | recall | reward | forwards per image | training, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        base = plain["fid"]["by_seed"]
        ratios = Spread({int(seed): fid / base[seed] for seed, fid in arm["fid"]["by_seed"].items()})
        seconds = "" if arm["training_seconds"] is None else f"{arm['training_seconds']:.0f}"
        cells = [
            _name(arm),
            _spread(arm["fid"], 2),
            f"{ratios.median:.2f}",
            *(_spread(arm[name], digits) for name, digits in SHOWN.items() if name != "fid"),
            f"{arm['forwards_per_image']:g}",
            seconds,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _erasure_table(generator: str, result: Mapping[str, Any]) -> str:
    lines = [
        f"`{generator}`, class {result['class']} erased:",
        "",
        f"| arm | accuracy on class {result['class']} | accuracy on the others | FID of the others | their recall |",
        "|---|---|---|---|---|",
    ]
    for label, arm in result["arms"].items():
        cells = [
            label,
            _spread(arm["accuracy_erased"], 3),
            *(_spread(arm["kept"][name], SHOWN[name]) for name in ("accuracy", "fid", "recall")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _name(arm: Mapping[str, Any]) -> str:
    name = str(arm["label"])
    if arm["guidance"] != "off":
        name += f", guidance {arm['guidance']}"
    if arm["temperature"] != 1.0:
        name += f", T={arm['temperature']:g}"
    return name


def _spread(figure: Mapping[str, float], digits: int) -> str:
    low, high = (f"{figure[end]:.{digits}f}" for end in ("low", "high"))
    return f"{figure['median']:.{digits}f}" + (f" [{low}, {high}]" if low != high else "")


def _put_into(path: Path, table: str) -> None:
    """Replace what stands between the marks. Raises ValueError where they are missing."""
    text = path.read_text()
    if not all(mark in text for mark in MARKS):
        raise ValueError(f"{path} has no place for the table; it goes between the lines {MARKS[0]} and {MARKS[1]}")
    before, rest = text.split(MARKS[0], 1)
    _, after = rest.split(MARKS[1], 1)
    write_text(path, f"{before}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{after}")
