"""Score generators over a grid of sampling settings; choose the best on one seed, and report them on others.

Rows of the grid go to output_dir/results.jsonl as split "select". Of every generator the best setting of each of four
cells, {no guidance, guidance} x {plain, a temperature or filter}, is then scored on report seeds. The report has the
frontiers (FID against IS, precision against recall, quality against its price) and the guidance that an aligned generator
is worth.
For example: align sweep checkpoints={aligned:runs/mnist/cca} guidance_scales=[1,1.25,1.5] top_ps=[1.0,0.95]
Settings of one generator with linear guidance or an interval: align sweep generator=mnist-var guidance_schedules=[constant,linear]
guided_blocks=[null,3]
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from omegaconf import DictConfig

from align.generators import Generator
from align.types import SamplingConfig
from evaluation.arms import Arm, summarize, text_table
from evaluation.cells import best_of_cells
from evaluation.equivalence import equivalent_scales
from evaluation.report import write_report
from evaluation.results import read_results
from recipes.config import compose, with_sections
from recipes.judge import Judge, refuse_the_seed_of_choice
from recipes.parts import make_generator
from recipes.reward_settings import optimised_in
from recipes.run import Run, is_first_process, say
from recipes.tasks import make_task


def main(overrides: list[str]) -> None:
    config = compose("sweep", overrides)
    settings = grid(config)
    refuse_the_seed_of_choice(config.evaluation, config.report_seeds)
    task = make_task(config.evaluation)
    generators = _generators(config)
    rewarded = {config.label: optimised_in(config.generator)}
    for label, checkpoint in (config.checkpoints or {}).items():
        rewarded[label] = optimised_in(with_sections(config.generator, checkpoint=checkpoint))
    for generator in generators.values():
        task.check(generator)
    run = Run(config, kind="sweep", overrides=overrides, name=f"sweep of {', '.join(generators)}")
    run.update(evaluation=task.facts())
    judge = Judge(
        task,
        config.evaluation.batch_size,
        run.folder,
        reuse=config.resume == "auto",
        not_led_by=frozenset().union(*rewarded.values()),
    )
    say(f"{len(settings)} settings of {len(generators)} generator(s), {task.n} images each")
    hashes = {}
    with run.watching():
        for label, generator in generators.items():
            own = replace(judge, optimised=rewarded[label])
            rows = [own.score(generator, label, setting, split="select") for setting in settings]
            hashes[label] = rows[0].checkpoint
            metric, _ = own.leading(rows[0])
            for arm in best_of_cells(summarize(rows), metric):
                for order in range(config.report_seeds):
                    sampling = replace(_sampling(arm), seed=config.evaluation.seed + order)
                    own.score(generator, label, sampling, split="report", grid=order == 0)
    run.update(status="finished", hashes=hashes)
    if is_first_process():
        print(text_table(summarize(read_results(run.folder / "results.jsonl"))))
        for one in _worth(summarize(read_results(run.folder / "results.jsonl"))):
            say(one)
        say(f"report: {write_report(run.folder)}")


def _worth(arms: Sequence[Arm]) -> Iterator[str]:
    """The base's guidance that each other generator without guidance is worth, by metrics."""
    found = equivalent_scales([arm for arm in arms if arm.split == "select"])
    for label in dict.fromkeys(one.label for one in found):
        own = [f"{one.words} by {one.metric.title}" for one in found if one.label == label]
        yield f"{label} without guidance equals the base at guidance {', '.join(own)}"


def grid(config: DictConfig) -> list[SamplingConfig]:
    """All combinations, each once. Raises ValueError for an empty list or values that cannot be."""
    names = ("guidance_scales", "guidance_schedules", "guided_blocks", "temperatures", "top_ks", "top_ps")
    for name in names:
        if not len(config[name]):
            raise ValueError(f"{name}=[] leaves nothing to sweep; give at least one value")
    settings = []
    for scale, schedule, blocks, temperature, top_k, top_p in itertools.product(*(config[name] for name in names)):
        guided = {"guidance_scale": scale, "guidance_schedule": schedule, "guided_blocks": blocks} if scale != 1 else {}
        settings.append(
            SamplingConfig(
                **guided, temperature=temperature, top_k=top_k, top_p=top_p, seed=config.evaluation.select_seed
            )
        )
    return list(dict.fromkeys(settings))


def _generators(config: DictConfig) -> dict[str, Generator]:
    found = {config.label: make_generator(config.generator)}
    for label, checkpoint in (config.checkpoints or {}).items():
        if label in found:
            raise ValueError(f"two generators are called {label!r}; set label= or another name in checkpoints=")
        found[label] = make_generator(with_sections(config.generator, checkpoint=checkpoint))
    return found


def _sampling(arm: Arm) -> SamplingConfig:
    names: Sequence[str] = ("guidance_scale", "guidance_schedule", "guided_blocks", "temperature", "top_k", "top_p")
    return SamplingConfig(**{name: getattr(arm, name) for name in names})
