"""Run all experiments of a domain on all shipped generators, over seeds, and tabulate what each gained without guidance.

align bench mnist: output_dir/GENERATOR/results.jsonl holds every row, summary.json the medians, and with results= and
readme= they are written where the repository shows them. An experiment that erases a class is judged on the classes
that it keeps, beside the accuracy on the erased one. Generators of prompts are judged by GenEval, overall and by tag.
For example: align bench mnist seeds=[1] experiments=[cca,gft] generators=[mnist-llamagen]
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from align.files import write_text
from align.generators import Generator
from align.types import SamplingConfig
from evaluation.arms import Arm, Spread, other_metrics, summarize
from evaluation.metric_names import CLASS_ACCURACY
from evaluation.results import read_results
from recipes.bench_tables import COLUMNS, DETAILS, make_table
from recipes.choices import options
from recipes.config import compose, with_sections
from recipes.exports import find_export
from recipes.judge import Judge, base_settings, refuse_the_seed_of_choice, unguided_settings
from recipes.parts import make_generator, num_classes
from recipes.reward_settings import make_rewards, optimised, reward_facts
from recipes.run import Run, refuse_many_processes, say
from recipes.supplies import check_recipe
from recipes.tasks import make_task
from recipes.train import align_generator

DIGITS = ["sft", "cca", "gft", "gft_sampled", "ddo", "gft+ddo", "gft+sft", "dpo", "best_of_n", "grpo", "va_pi", "erase"]


@dataclass(frozen=True)
class _Domain:
    """generators, experiments: what is run where nothing is named; no experiments: all that there are.
    reward: an option of `reward`, that all arms are scored by beside the protocol."""

    generators: list[str]
    experiments: list[str] = field(default_factory=list)
    reward: str = "none"


DOMAINS = {
    "mnist": _Domain(["mnist-llamagen", "mnist-var"], DIGITS, reward="classifier"),
    "shapes": _Domain(["shapes-t2i"]),
}
END_MARK = "<!-- /bench -->"
# an arm's trainings, one after the other: {"gft": ..., "gft+ddo": ...}
Stages = dict[str, DictConfig]
RECORDED = (*COLUMNS, "precision")
TIMES_FILE = "training_seconds.json"


def main(arguments: list[str]) -> None:
    refuse_many_processes("`align bench`")
    domain, overrides = arguments[0], arguments[1:]
    config = compose("bench_objectives", overrides)
    usual = DOMAINS[domain]
    config.experiments = config.experiments or usual.experiments or _experiments(domain)
    config.generators = config.generators or usual.generators
    plan = {
        generator: {name: _experiment(domain, name, generator, list(config.overrides)) for name in config.experiments}
        for generator in config.generators
    }
    if config.readme:
        _around_table(Path(config.readme), domain)  # a mistake is answered before an hour of training
    run = Run(config, kind="bench", overrides=arguments, name=f"bench {domain}")
    benches = {
        generator: _Bench(run.folder / generator, list(config.seeds), resume=config.resume == "auto")
        for generator in plan
    }
    rewards = compose("train", [f"reward={usual.reward}"]).reward
    found = _run_all(benches, plan, rewards, config.processes)
    run.update(status="finished")
    facts = {name: run.record[name] for name in ("command", "device", "wall_seconds", "versions", "git")}
    summary = {**facts, "processes": config.processes, **found}
    write_text(run.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    table = make_table(found)
    print(table)
    if config.results:
        write_text(Path(config.results), json.dumps(summary, indent=2) + "\n")
    if config.readme:
        above, below = _around_table(Path(config.readme), domain)
        write_text(Path(config.readme), f"{above}\n\n{table}\n\n{below}")
    say(f"summary: {run.folder / 'summary.json'}")


def _experiment(domain: str, name: str, generator: str, overrides: list[str]) -> Stages:
    """The composed configurations, refused here rather than an hour later. `gft+ddo` is DDO from where GFT ended."""
    stages: Stages = {}
    for stage in name.split("+"):
        if stage not in (known := _experiments(domain)):
            raise ValueError(f"unknown experiment {domain}/{stage}; known: {', '.join(f'{domain}/{k}' for k in known)}")
        config = compose("train", [f"experiment={domain}/{stage}", f"generator={generator}", *overrides])
        check_recipe(config)
        stages["+".join([*list(stages)[-1:], stage])] = config
    return stages


def _experiments(domain: str) -> list[str]:
    return [name.removeprefix(f"{domain}/") for name in options("experiment") if name.startswith(f"{domain}/")]


def _erased(stages: Stages) -> int | None:
    """The class that an arm erases."""
    last = list(stages.values())[-1]
    return last.data.negative_label if last.objective._target_.endswith(".erasure") else None


def _rewarded(stages: Stages) -> frozenset[str]:
    """Fingerprints of what an arm's stages are rewarded by."""
    sections = [config.reward for config in stages.values()]
    return frozenset().union(*(optimised(reward_facts(make_rewards(section))) for section in sections))


def _run_all(
    benches: dict[str, _Bench], plan: dict[str, dict[str, Stages]], rewards: DictConfig, processes: int
) -> dict[str, Any]:
    """Each generator's result; several at once in processes of their own, which share the cores."""
    processes = min(processes, len(benches))
    if processes <= 1:
        return {generator: bench.run(plan[generator], rewards) for generator, bench in benches.items()}
    threads = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        running = {generator: pool.submit(bench.run, plan[generator], rewards) for generator, bench in benches.items()}
        return {generator: future.result() for generator, future in running.items()}


class _Bench:
    """One generator's base and all its aligned versions, paired by sampling seed; what is in `folder` is not made again."""

    def __init__(self, folder: Path, seeds: list[int], *, resume: bool) -> None:
        self.folder, self.seeds, self.resume = folder, seeds, resume
        times = folder / TIMES_FILE
        self.seconds: dict[str, dict[str, float]] = json.loads(times.read_text()) if times.exists() else {}

    def run(self, experiments: Mapping[str, Stages], rewards: DictConfig) -> dict[str, Any]:
        first = next(iter(next(iter(experiments.values())).values()))
        evaluation = first.evaluation
        base = make_generator(first.generator)
        refuse_the_seed_of_choice(evaluation, len(self.seeds))
        task = make_task(evaluation)
        task.check(base)
        judge = Judge(task, evaluation.batch_size, self.folder, make_rewards(rewards), reuse=True)
        gains = {name: stages for name, stages in experiments.items() if _erased(stages) is None}
        settings = base_settings(judge, base, evaluation) if gains else []
        tuned: dict[str, list[SamplingConfig]] = {}
        for order, seed in enumerate(self.seeds):
            sampling = SamplingConfig(seed=evaluation.seed + order)
            for setting in settings:
                judge.score(base, "base", replace(setting, seed=sampling.seed), split="report", grid=order == 0)
            for name, stages in gains.items():
                trained = self._train(stages, seed)
                own = replace(judge, optimised=_rewarded(stages))
                if name not in tuned:  # with the first seed's generator, for all seeds
                    tuned[name] = unguided_settings(own, trained, name, evaluation)
                for setting in tuned[name]:
                    own.score(trained, name, replace(setting, seed=sampling.seed), split="report", grid=order == 0)
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
        others = [label for label in range(total) if label != erased]
        fewer = make_task(evaluation, num_images=evaluation.num_images * (total - 1) // total, classes=others)
        whole = replace(judge, folder=self.folder / name / "all")
        kept = replace(judge, task=fewer, folder=self.folder / name / "kept")
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
            whole = not list(where.glob("checkpoint-*"))
            clock = time.monotonic()
            align_generator(own, where, resume=self.resume, description=f"{name} {seed}")
            if whole:  # of one that was resumed only the rest is known
                self.seconds.setdefault(name, {})[str(seed)] = round(time.monotonic() - clock, 1)
            write_text(self.folder / TIMES_FILE, json.dumps(self.seconds, indent=2) + "\n")
        last = list(stages.values())[-1]
        return make_generator(with_sections(last.generator, checkpoint=str(checkpoint)))

    def _arm(self, arm: Arm) -> dict[str, Any]:
        """Median, lowest and highest over the seeds of each figure."""
        spreads = {name: arm.metric(name) for name in RECORDED}
        seconds = self.training_seconds(arm.label)
        return {
            "label": arm.label,
            "guidance": arm.guidance,
            "temperature": arm.temperature,
            "filters": arm.filters,
            "plain": arm.plain,
            "forwards_per_image": arm.forwards_per_image,
            "protocol": arm.rows[0].protocol,
            "n": arm.rows[0].n,
            "training_seconds": Spread(seconds).median if seconds else None,
            **{name: _figure(spread) for name, spread in spreads.items() if spread is not None},
            **({DETAILS: details} if (details := _details(arm)) else {}),
        }

    def training_seconds(self, label: str) -> dict[int, float]:
        """By seed, of all stages together, where all are known."""
        stages = label.split("+")
        names = ["+".join(stages[: number + 1]) for number in range(len(stages))]
        known = [self.seconds.get(name, {}) for name in names]
        return {
            seed: sum(one[str(seed)] for one in known) for seed in self.seeds if all(str(seed) in one for one in known)
        }


def _arms(folder: Path) -> list[Arm]:
    return summarize(row for row in read_results(folder / "results.jsonl") if row.split == "report")


def _details(arm: Arm) -> dict[str, Any]:
    """Figures of the metrics that are a protocol's own, such as GenEval's tags."""
    spreads = {name: arm.metric(name) for name in other_metrics([arm]) if name not in RECORDED}
    return {name: _figure(spread) for name, spread in spreads.items() if spread is not None}


def _figure(spread: Spread) -> dict[str, Any]:
    return {
        "median": spread.median,
        "low": spread.min,
        "high": spread.max,
        "by_seed": {str(seed): value for seed, value in spread.values.items()},
    }


def start_mark(domain: str) -> str:
    return f"<!-- written by `align bench {domain}` -->"


def _around_table(path: Path, domain: str) -> tuple[str, str]:
    """What stands above and below the domain's table, marks included. Raises ValueError where a mark is missing."""
    start = start_mark(domain)
    before, found, rest = path.read_text().partition(start)
    _, ended, after = rest.partition(END_MARK)
    if not (found and ended):
        raise ValueError(f"{path} has no place for the table; it goes between the lines {start} and {END_MARK}")
    return before + start, END_MARK + after
