"""Score a generator over a grid of guidance scales and temperatures.

Rows go to output_dir/results.jsonl as split "select": they choose settings, and claims belong on another seed.
For example: align sweep generator.checkpoint=runs/mnist/cca label=aligned guidance_scales=[1,1.25,1.5]
"""

from __future__ import annotations

from align.types import SamplingConfig
from evaluation.arms import summarize, text_table
from evaluation.report import write_report
from recipes.config import compose
from recipes.judge import Judge
from recipes.parts import make_generator
from recipes.run import Run, say
from recipes.tasks import make_task


def main(overrides: list[str]) -> None:
    config = compose("sweep", overrides)
    settings = [
        SamplingConfig(guidance_scale=scale, temperature=temperature, seed=config.evaluation.select_seed)
        for scale in config.guidance_scales
        for temperature in config.temperatures
    ]
    task = make_task(config.evaluation)
    generator = make_generator(config.generator)
    task.check(generator)
    run = Run(config, kind="sweep", overrides=overrides, name=config.label)
    run.update(evaluation=task.facts())
    judge = Judge(task, config.evaluation.batch_size, run.folder)
    rows = [judge.score(generator, config.label, setting, split="select") for setting in settings]
    run.update(status="finished", hashes={"generator": rows[0].checkpoint})
    print(text_table(summarize(rows)))
    say(f"report: {write_report(run.folder)}")
