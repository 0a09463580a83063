"""What `align doctor` sees of rewards and of the shipped generators: what they give, against what they gave."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from transformers.utils import logging

from align import load_generator
from align.data.prompts import read_prompts
from align.files import sha256_of_tensors
from align.zoo_entries import zoo_entries
from evaluation.results import read_results
from recipes.conditions import prompt_file, read_class_names
from recipes.reward_settings import make_rewards
from rewards.base import Reward
from rewards.catalog import catalog
from rewards.findings import Finding, error, ok, warning
from rewards.probes import IMAGES, NOT_PROBED, PROBES, is_near, probe, scores_of, stored_images, stored_scores

FITS = (
    "install the versions that this one was tested with, or find what changed: its figures do not compare with others'"
)


def look_at_zoo() -> Iterator[Finding]:
    """The shipped generators: files there, and weights of the hash that their results are recorded under."""
    logging.disable_progress_bar()
    for name, folder in zoo_entries().items():
        try:
            recorded = read_results(folder / "results.jsonl")[0].checkpoint
            found = sha256_of_tensors(load_generator(name).state_dict())[:16]
        except (OSError, ValueError) as problem:
            yield error(name, str(problem), "install ar-align anew")
            continue
        if found == recorded:
            yield ok(name, f"weights {found}, as its results were recorded with")
        else:
            yield error(name, f"weights {found}, and its results are of {recorded}", "install ar-align anew")


def look_at_built_in(folder: Path) -> Iterator[Finding]:
    """Each built-in reward with tiny weights on the stored images; `folder` takes the weights."""
    logging.disable_progress_bar()
    missing = {entry.name: entry.missing for entry in catalog() if entry.home == "built in"}
    stored = stored_scores()
    for name in sorted(PROBES):
        clock = time.monotonic()
        try:
            scores = probe(name, folder)
        except Exception as problem:
            yield _untried(name, problem, missing[name])
            continue
        shown = f"{_shown(scores)} in {time.monotonic() - clock:.1f} s"
        if is_near(scores, stored[name], PROBES[name].tolerance):
            yield ok(name, f"{shown}, as stored")
        else:
            yield error(name, f"{shown}, stored is {_shown(stored[name])}", FITS)
    for name, why in NOT_PROBED.items():
        yield ok(name, f"not tried: {why}")


def _untried(name: str, problem: Exception, missing: Mapping[str, str]) -> Finding:
    if missing:
        return warning(
            name, f"not tried without {', '.join(missing)}", f"if you want it: {'; '.join(missing.values())}"
        )
    return error(name, f"{type(problem).__name__}: {problem}", FITS)


def record() -> dict[str, list[float]]:
    """What the built-in rewards score now."""
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        return {name: probe(name, Path(folder)) for name in sorted(PROBES)}


def look_at_configured(config: DictConfig) -> Iterator[Finding]:
    """The rewards that a training names, with their own weights and workers, twice on the stored images."""
    size, num_classes = 64, 1000
    try:
        if config.generator.name in zoo_entries():
            generator = load_generator(config.generator.name)
            size = generator.decode(torch.zeros(1, generator.layout.length, dtype=torch.long)).shape[1]
            num_classes = generator.num_classes or 0
        rewards = make_rewards(config.reward).rewards
        rows = _rows(config, num_classes=num_classes)
    except (ValueError, OSError) as problem:
        advice = "mend the settings under reward or data; align rewards show NAME tells a reward's"
        yield error("reward", str(problem), advice)
        return
    for reward in rewards:
        yield from _workers(reward)
        yield _tried(reward, rows, size)


def _rows(config: DictConfig, *, num_classes: int) -> list[dict[str, Any]]:
    """The first prompts, or classes, with the columns that a training gives them."""
    if (prompts := config.data.get("prompts")) is not None:
        return (read_prompts(prompt_file(prompts)) * len(IMAGES))[: len(IMAGES)]
    rows: list[dict[str, Any]] = [{"label": label} for label in range(len(IMAGES))]
    if (source := config.reward.class_names) is not None:
        for row, name in zip(rows, read_class_names(source, number=num_classes), strict=False):
            row["class_name"] = name
    return rows


def _workers(reward: Reward) -> Iterator[Finding]:
    health = getattr(reward.function, "health", None)
    for where, state in health() if health is not None else ():
        if state == "ready":
            yield ok(f"worker of {reward.name}", f"{where}: {state}")
        elif state == "loading":
            yield warning(f"worker of {reward.name}", f"{where}: {state}", "wait; it reads its weights")
        else:
            yield error(f"worker of {reward.name}", f"{where}: {state}", "see its own output; start it anew")


def _tried(reward: Reward, rows: list[dict[str, Any]], size: int) -> Finding:
    what, images = f"your {reward.name}", stored_images(size)
    clock = time.monotonic()
    try:
        first, second = (scores_of(reward, images, rows).tolist() for _ in range(2))
    except ValueError as problem:
        return error(what, str(problem), f"align rewards check {reward.name} tells more")
    shown = f"{_shown(first)} in {(time.monotonic() - clock) / 2:.1f} s"
    if not is_near(first, second, 1e-3):
        return warning(what, f"{shown}, and {_shown(second)} the second time", "draw no random numbers in it")
    if all(score != score for score in first):
        return warning(
            what, "does not apply to either stored image", "see that the rows hold the columns that it needs"
        )
    return ok(what, f"{shown} on the stored images, twice the same")


def _shown(scores: list[float]) -> str:
    return ", ".join(f"{score:.4g}" for score in scores)
