"""Run all experiments of a domain on all shipped generators, over seeds, and tabulate what each gained without guidance.

align bench mnist: output_dir/GENERATOR/results.jsonl holds every row, summary.json the medians, and with results= and
readme= they are written where the repository shows them.
For example: align bench mnist seeds=[1] experiments=[cca,gft] generators=[mnist-llamagen]
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from align.files import write_text
from align.generators import Generator
from align.types import SamplingConfig
from evaluation.results import ResultRow, read_results
from recipes.config import compose, options
from recipes.evaluate import Judge, base_settings
from recipes.parts import EXPORT_FILE, make_generator, make_protocol, make_rewards
from recipes.run import Run, say
from recipes.supplies import check_recipe
from recipes.train import align_generator

DOMAINS = ("mnist",)
MARKS = ("<!-- bench: written by `align bench` -->", "<!-- /bench -->")
# an arm's trainings, one after the other: {"gft": ..., "gft+ddo": ...}
Stages = dict[str, DictConfig]
SHOWN = ("fid", "accuracy", "recall", "reward")


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in DOMAINS:
        raise ValueError(f"which domain? known: {', '.join(DOMAINS)}. For example: align bench mnist")
    domain, overrides = arguments[0], arguments[1:]
    config = compose("bench", overrides)
    plan = {
        generator: {name: _experiment(domain, name, generator, list(config.overrides)) for name in config.experiments}
        for generator in config.generators
    }
    run = Run(config, kind="bench", overrides=arguments, name=f"bench {domain}")
    summary: dict[str, Any] = {"command": f"align bench {' '.join(arguments)}", "device": run.record["device"]}
    for generator, experiments in plan.items():
        summary[generator] = _bench(experiments, list(config.seeds), run.folder / generator, config.resume == "auto")
        write_text(run.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        run.update()
    run.update(status="finished")
    summary["wall_seconds"] = run.record["wall_seconds"]
    write_text(run.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    table = make_table({name: summary[name] for name in plan})
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
        if f"{domain}/{stage}" not in (known := options("experiment")):
            raise ValueError(f"unknown experiment {domain}/{stage}; known: {', '.join(known)}")
        config = compose("train", [f"experiment={domain}/{stage}", f"generator={generator}", *overrides])
        check_recipe(config)
        stages["+".join([*list(stages)[-1:], stage])] = config
    return stages


def _bench(experiments: dict[str, Stages], seeds: Sequence[int], folder: Path, resume: bool) -> dict[str, Any]:
    """One generator's base and all its aligned versions, paired by sampling seed."""
    first = next(iter(next(iter(experiments.values())).values()))
    evaluation = first.evaluation
    rewards = make_rewards(compose("train", ["reward=classifier"]).reward)
    folder.mkdir(parents=True, exist_ok=True)
    rows_file = folder / "results.jsonl"
    if not resume:
        rows_file.unlink(missing_ok=True)
    done = {(row.label, row.seed, row.guidance_scale, row.temperature): row for row in _rows(rows_file)}
    judge = Judge(make_protocol(evaluation.protocol), evaluation.num_images, evaluation.batch_size, folder, rewards)
    base = make_generator(first.generator)
    settings = base_settings(judge, base, evaluation)
    seconds: dict[str, list[float]] = {}
    for order, seed in enumerate(seeds):
        sampling = SamplingConfig(seed=evaluation.seed + order)
        for setting in settings:
            key = ("base", sampling.seed, setting.guidance_scale, setting.temperature)
            if key not in done:
                judge.score(base, "base", replace(setting, seed=sampling.seed), split="report", grid=order == 0)
        for name, stages in experiments.items():
            clock = time.monotonic()
            if (name, sampling.seed, 1.0, 1.0) in done:
                continue
            trained = _train(stages, seed, folder, resume=resume)
            seconds.setdefault(name, []).append(time.monotonic() - clock)
            judge.score(trained, name, sampling, split="report", grid=order == 0)
    rows = [row for row in _rows(rows_file) if row.split == "report"]
    return {"seeds": list(seeds), "arms": [_arm(arm, seconds) for arm in _arms(rows)]}


def _train(stages: Stages, seed: int, folder: Path, *, resume: bool) -> Generator:
    """Each stage starts from the weights that the one before it exported; a stage that another arm has run is used."""
    checkpoint: Path | None = None
    trained: Generator | None = None
    for name, config in stages.items():
        own: DictConfig = OmegaConf.create(OmegaConf.to_container(config))  # type: ignore[assignment]
        where = folder / f"{name}-seed{seed}"
        own.seed, own.output_dir = seed, str(where)
        own.generator.checkpoint = str(checkpoint) if checkpoint else None
        checkpoint = where / EXPORT_FILE
        if name != list(stages)[-1] and checkpoint.exists():
            continue
        where.mkdir(parents=True, exist_ok=True)
        trained, _ = align_generator(own, where, resume=resume, description=f"{name} {seed}")
    assert trained is not None
    return trained


def _rows(path: Path) -> list[ResultRow]:
    return read_results(path) if path.exists() else []


def _arms(rows: list[ResultRow]) -> list[list[ResultRow]]:
    arms: dict[tuple[Any, ...], list[ResultRow]] = {}
    for row in rows:
        arms.setdefault((row.label, row.guidance_scale, row.temperature), []).append(row)
    return list(arms.values())


def _arm(rows: list[ResultRow], seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Median, lowest and highest over the seeds of each figure."""
    first = rows[0]
    figures = {}
    for name in SHOWN:
        values = [value for row in rows for key, value in row.metrics.items() if key.split("_")[0] == name]
        figures[name] = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {
        "label": first.label,
        "guidance_scale": first.guidance_scale,
        "temperature": first.temperature,
        "forwards_per_image": first.forwards_per_image,
        "protocol": first.protocol,
        "n": first.n,
        "training_seconds": round(statistics.median(seconds[first.label]), 1) if first.label in seconds else None,
        **figures,
    }


def make_table(summary: dict[str, dict[str, Any]]) -> str:
    """Markdown: one table per generator, FID also as a ratio to the plain base of the same seeds."""
    parts = []
    for generator, result in summary.items():
        arms = result["arms"]
        plain = next(
            arm for arm in arms if arm["label"] == "base" and arm["guidance_scale"] == arm["temperature"] == 1.0
        )
        lines = [
            f"`{generator}`, medians [range] of {len(result['seeds'])} paired seeds, {plain['n']} images each:",
            "",
            "| arm | FID | ratio to base | accuracy | recall | reward | forwards per image |",
            "|---|---|---|---|---|---|---|",
        ]
        for arm in arms:
            ratio = arm["fid"]["median"] / plain["fid"]["median"]
            cells = [
                _name(arm),
                _spread(arm["fid"], 2),
                f"{ratio:.2f}",
                _spread(arm["accuracy"], 3),
                _spread(arm["recall"], 3),
                _spread(arm["reward"], 2),
                f"{arm['forwards_per_image']:g}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _name(arm: dict[str, Any]) -> str:
    name = arm["label"]
    if arm["guidance_scale"] != 1.0:
        name += f", guidance {arm['guidance_scale']:g}"
    if arm["temperature"] != 1.0:
        name += f", T={arm['temperature']:g}"
    return name


def _spread(figure: dict[str, float], digits: int) -> str:
    return f"{figure['median']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def _put_into(path: Path, table: str) -> None:
    """Replace what stands between the marks. Raises ValueError where they are missing."""
    text = path.read_text()
    if not all(mark in text for mark in MARKS):
        raise ValueError(f"{path} has no place for the table; it goes between the lines {MARKS[0]} and {MARKS[1]}")
    before, rest = text.split(MARKS[0], 1)
    _, after = rest.split(MARKS[1], 1)
    write_text(path, f"{before}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{after}")
