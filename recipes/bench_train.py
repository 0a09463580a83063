"""How fast and lean a training step is, beside others that compute the same loss and the same gradients.

step=cca: AlignTrainer's step with a cached and with a frozen reference, beside the plain step of two models.
step=grpo: rollouts, rewards and update of AlignTrainer, beside trl.GRPOTrainer on the same language model.
Losses and gradients are compared before any time is taken. The loops go on in turn, each its own; what is timed is from
the end of a step to the end of the next. See docs/speed.md.

For example: align bench train trainer.per_device_train_batch_size=4 micro_batch=1
    align bench train step=grpo model=janus size=S length=144 trainer.per_device_train_batch_size=8
    align bench train model=mnist-var size=null length=null
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from recipes.config import compose
from recipes.run import pick_device, refuse_many_processes, say
from recipes.speed.machine import median_ratio
from recipes.speed.models import make_model
from recipes.speed.table import facts, markdown, tell


def main(overrides: list[str]) -> None:
    refuse_many_processes("`align bench`")
    config = compose("bench_train", overrides)
    if config.step not in STEPS:
        raise ValueError(f"unknown step {config.step!r}; known: {', '.join(STEPS)}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    found = {**facts("train", overrides), **STEPS[config.step](config)}
    tell(found, table(found), config.results)


def _model(config: DictConfig) -> dict[str, Any]:
    """The arguments of make_model."""
    return {"model": config.model, "size": config.size, "length": config.length, "device": str(pick_device())}


def _trainer(config: DictConfig) -> dict[str, Any]:
    """The trainer section, for a few steps that leave nothing behind."""
    section: dict[str, Any] = OmegaConf.to_container(config.trainer)  # type: ignore[assignment]
    return {**section, "max_steps": config.steps + 1, "save_strategy": "no", "report_to": [], "seed": 0}


def _cca(config: DictConfig) -> dict[str, Any]:
    from recipes.speed import contrastive
    from recipes.speed.alone import peak_alone
    from recipes.speed.turns import in_turn

    model, trainer = _model(config), _trainer(config)
    micro_batch = config.micro_batch or config.trainer.per_device_train_batch_size
    task = contrastive.Task(lambda: make_model(**model), trainer, micro_batch)
    if task.make().num_classes is None:
        raise ValueError(
            f"step=cca trains on classes here, and a {config.model} reads prompts; choose model=llamagen or var"
        )
    with tempfile.TemporaryDirectory() as folder:
        say("comparing losses and gradients")
        equal = contrastive.check(task, Path(folder))
        say("in turn: " + "; ".join(contrastive.VARIANTS))
        loops = {name: partial(train, task, Path(folder) / name) for name, train in contrastive.VARIANTS.items()}
        seconds = in_turn(loops)
    peaks = {}
    for name in contrastive.VARIANTS if config.memory else ():
        say(f"memory: {name}")
        short = {**trainer, "max_steps": 2}
        settings = {"model": model, "trainer": short, "micro_batch": micro_batch, "variant": name}
        peaks[name] = peak_alone({**settings, "threads": torch.get_num_threads()})
    return {"step": "cca", "micro_batch": micro_batch, "variants": _variants(seconds, "plain", equal, peaks)}


def _grpo(config: DictConfig) -> dict[str, Any]:
    from align.generators import Janus
    from recipes.speed import group_relative
    from recipes.speed.turns import in_turn

    def make() -> Janus:
        found = make_model(**_model(config))
        if not isinstance(found, Janus):
            raise ValueError(
                f"step=grpo is of a language model, which a {config.model} is not; choose model=janus size=S"
            )
        return found

    task = group_relative.Task(make, _trainer(config), config.num_generations)
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in group_relative.VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        say("comparing losses and gradients")
        equal = group_relative.check(task, Path(folder))
        say("in turn: " + ", ".join(group_relative.VARIANTS))
        loops = {
            name: partial(train, task, Path(folder) / f"{name}-run", phases[name])
            for name, train in group_relative.VARIANTS.items()
        }
        seconds = in_turn(loops)
    found: dict[str, Any] = {"step": "grpo", "rows": task.rows, "variants": _variants(seconds, "trl", equal, {})}
    for name, by in found["variants"].items():
        by["phases"] = _phases(seconds[name], phases[name][1:])
    return found


def _phases(seconds: list[float], phases: list[dict[str, float]]) -> dict[str, float]:
    """Median seconds of each phase; the update is the rest of a step."""
    found = {name: statistics.median(step.get(name, 0.0) for step in phases) for name in ("generate", "score")}
    rest = [whole - sum(step.values()) for whole, step in zip(seconds, phases, strict=True)]
    return {**found, "update": statistics.median(rest)}


def _variants(
    seconds: dict[str, list[float]], baseline: str, equal: dict[str, dict[str, float]], peaks: dict[str, float]
) -> dict[str, Any]:
    """Of each, how many times as fast and as large as the baseline it is."""
    found: dict[str, Any] = {}
    for name, times in seconds.items():
        found[name] = {
            "seconds": times,
            "median_seconds": statistics.median(times),
            "times_faster": median_ratio(seconds[baseline], times),
        }
        if name in peaks:
            found[name] |= {"peak_bytes": peaks[name], "share_of_peak": peaks[name] / peaks[baseline]}
        if name in equal:
            found[name]["relative_difference"] = equal[name]
    return found


def table(found: dict[str, Any]) -> str:
    header = ["step", "seconds", "times as fast", "peak, GB", "share of the peak"]
    header += ["difference of the loss", "of the gradient"]
    rows = []
    for name, by in found["variants"].items():
        row = [f"{found['step']}, {name}", f"{by['median_seconds']:.3g}", f"{by['times_faster']:.2f}"]
        peak = by.get("peak_bytes")
        row += ["", ""] if peak is None else [f"{peak / 1e9:.2f}", f"{by['share_of_peak']:.0%}"]
        equal = by.get("relative_difference")
        row += ["", ""] if equal is None else [f"{equal['loss']:.1e}", f"{equal['gradient']:.1e}"]
        if phases := by.get("phases"):
            row.append(", ".join(f"{phase} {spent:.2f}" for phase, spent in phases.items()))
        rows.append(row)
    return markdown([*header, *(["seconds of"] if found["step"] == "grpo" else [])], rows)


STEPS: dict[str, Callable[[DictConfig], dict[str, Any]]] = {"cca": _cca, "grpo": _grpo}
