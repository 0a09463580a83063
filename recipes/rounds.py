"""Self-play: train against a reference, keep the best candidate by a held-out metric, make it the reference, again.

Each round tries every combination of `rounds.search` from the best weights so far, as its own run in
round-R/candidate-K, and judges it without guidance on evaluation.select_seed: a seed that claims are not made on.
rounds.jsonl holds what each candidate scored. A round in which nothing beats the best so far leaves it as it is.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from align.generators import Generator
from align.types import SamplingConfig
from evaluation.metric_names import leading_metric
from recipes.config import with_sections
from recipes.exports import copy_export, export
from recipes.judge import Judge
from recipes.parts import make_generator
from recipes.reward_settings import make_rewards, optimised, optimised_in, reward_facts
from recipes.run import say
from recipes.tasks import make_task

ROUNDS_FILE = "rounds.jsonl"
METRICS_FILE = "metrics.jsonl"
# trains one run in its folder and leaves its export there
TrainOne = Callable[[DictConfig, Path], Generator]


def wanted(config: DictConfig) -> bool:
    """Whether a run is more than one training."""
    return config.rounds.number > 1 or bool(config.rounds.search)


def check_rounds(config: DictConfig) -> None:
    """Raises ValueError for settings that cannot be carried out."""
    if config.rounds.number < 1:
        raise ValueError(f"rounds.number is {config.rounds.number}; it must be at least 1")
    if wanted(config) and not config.evaluation.protocol:
        raise ValueError(
            "rounds keep the best by a held-out metric: evaluation=none cannot tell; choose evaluation=mnist-cnn, geneval, ..."
        )
    for key in parse_search(config):
        if OmegaConf.select(config, key) is None:
            raise ValueError(
                f"rounds.search names {key!r}, which is no setting; give its full key, as objective.alpha=1,3"
            )


def parse_search(config: DictConfig) -> dict[str, list[Any]]:
    """{"objective.alpha": [1, 3]} from ["objective.alpha=1,3"].

    Raises:
        ValueError: an entry that is not KEY=VALUE,VALUE,...
    """
    found: dict[str, list[Any]] = {}
    for entry in config.rounds.search:
        key, equals, values = str(entry).partition("=")
        if not equals or not values:
            raise ValueError(f"rounds.search holds {entry!r}; each entry is KEY=VALUE,VALUE, as objective.alpha=1,3")
        found[key] = [yaml.safe_load(value) for value in values.split(",")]
    return found


def play(config: DictConfig, folder: Path, train_one: TrainOne, *, resume: bool) -> Generator:
    """All rounds; the best generator, exported to the folder."""
    task = make_task(config.evaluation, num_images=config.rounds.num_images)
    rewarded = optimised_in(config.generator) | optimised(reward_facts(make_rewards(config.reward)))
    judge = Judge(task, config.evaluation.batch_size, folder, not_led_by=rewarded)
    records = _read(folder / ROUNDS_FILE) if resume else []
    best = config.generator.checkpoint
    start = next((record for record in records if record["round"] == 0), None)
    if start is None:
        start = _judge(judge, make_generator(config.generator), config, {"round": 0})
        _append(folder / ROUNDS_FILE, start)
    contaminated = task.contaminated(rewarded)
    metric, score = leading_metric(start["metrics"], contaminated)
    chosen: Path | None = None
    for number in range(1, config.rounds.number + 1):
        round_best: tuple[float, Path] | None = None
        for index, setting in enumerate(_combinations(config)):
            where = folder / f"round-{number}" / f"candidate-{index}"
            record = next((r for r in records if r["round"] == number and r["candidate"] == index), None)
            if record is None:
                trained = train_one(_candidate(config, setting, best, number, where), where)
                facts = {"round": number, "candidate": index, "setting": setting}
                record = _judge(judge, trained, config, facts)
                _append(folder / ROUNDS_FILE, record)
            found = leading_metric(record["metrics"], contaminated)[1]
            digits = metric.digits
            say(
                f"round {number}: {setting or 'as set'}: {metric.title} {found:.{digits}f} (best so far {score:.{digits}f})"
            )
            if round_best is None or metric.rank(found) < metric.rank(round_best[0]):
                round_best = (found, where)
        assert round_best is not None
        if metric.rank(round_best[0]) < metric.rank(score):
            score, chosen = round_best
            best = str(chosen)
    if chosen is not None:
        copy_export(chosen, folder)
        if (chosen / METRICS_FILE).exists():  # a training of fewer steps than logging_steps has none
            shutil.copyfile(chosen / METRICS_FILE, folder / METRICS_FILE)
        if (chosen / "samples").exists():
            shutil.copytree(chosen / "samples", folder / "samples", dirs_exist_ok=True)
    generator = make_generator(with_sections(config.generator, checkpoint=best))
    if chosen is None:
        say("no candidate beat the generator it started from; that one is kept")
        export(generator, folder)
    return generator


def _combinations(config: DictConfig) -> list[dict[str, Any]]:
    search = parse_search(config)
    return [dict(zip(search, values, strict=True)) for values in itertools.product(*search.values())]


def _candidate(
    config: DictConfig, setting: dict[str, Any], checkpoint: str | None, number: int, folder: Path
) -> DictConfig:
    """One training's configuration: another data order in each round, the same for its candidates."""
    candidate = with_sections(
        config,
        generator=with_sections(config.generator, checkpoint=checkpoint),
        seed=config.seed + 1000 * number,
        output_dir=str(folder),
        rounds=with_sections(config.rounds, number=1, search=[]),
    )
    for key, value in setting.items():
        OmegaConf.update(candidate, key, value)
    folder.mkdir(parents=True, exist_ok=True)
    return candidate


def _judge(judge: Judge, generator: Generator, config: DictConfig, facts: dict[str, Any]) -> dict[str, Any]:
    label = "base" if facts["round"] == 0 else f"round{facts['round']}-{facts['candidate']}"
    row = judge.score(generator, label, SamplingConfig(seed=config.evaluation.select_seed), split="select")
    metric, value = judge.leading(row)
    return {**facts, metric.name: value, "n": row.n, "metrics": row.metrics}


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
