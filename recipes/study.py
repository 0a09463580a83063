"""Train an objective and its control over several seeds and judge them beside the base, on paired sampling seeds.

Every training run has its folder inside of the study's; results.jsonl, samples/ and report.html are the study's.
A study that was stopped goes on with resume=auto: finished runs are kept, the one cut short is resumed.
For example: align study experiment=mnist/cca output_dir=runs/demo
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from align.files import sha256_of_tensors
from align.generators import Generator
from align.types import SamplingConfig
from evaluation.arms import summarize, text_table
from evaluation.report import write_report
from evaluation.results import read_results
from recipes.choices import CONF, options
from recipes.config import compose, with_sections
from recipes.exports import find_export
from recipes.facts import generator_facts
from recipes.judge import Judge, aligned_settings, base_settings, refuse_the_seed_of_choice
from recipes.parts import make_generator
from recipes.reward_settings import make_rewards, optimised, optimised_in, reward_facts
from recipes.run import Run, refuse_many_processes, say
from recipes.supplies import check_recipe
from recipes.tasks import make_task
from recipes.train import align_generator, trained_at


def main(overrides: list[str]) -> None:
    refuse_many_processes("`align study`")
    config = compose("study", overrides)
    resume = config.resume == "auto"
    evaluation = config.evaluation
    refuse_the_seed_of_choice(evaluation, len(config.seeds))
    task = make_task(evaluation)
    objective = config.objective._target_.rsplit(".", 1)[-1]
    arms = {objective: config.objective} | _control(config.control)
    for section in arms.values():
        check_recipe(_arm(config, section))  # a mistake is answered before minutes of sampling
    base = make_generator(config.generator)
    task.check(base)
    run = Run(config, kind="study", overrides=overrides)
    run.update(runs=[f"{arm}-seed{seed}" for seed in config.seeds for arm in arms], evaluation=task.facts())
    (run.folder / "results.jsonl").unlink(missing_ok=True)
    judge = Judge(task, evaluation.batch_size, run.folder)
    rewards = reward_facts(make_rewards(config.reward))
    before = optimised_in(config.generator)
    after = before | optimised(rewards)
    judge = replace(judge, optimised=before, not_led_by=after)
    rewarded = replace(judge, optimised=after)
    hashes = {"base": sha256_of_tensors(base.state_dict())}

    guided = trained_at(config)
    settings = [*base_settings(judge, base, evaluation), *guided]
    aligned: list[SamplingConfig] = []  # chosen with the first seed's generator, for all seeds
    for order, seed in enumerate(config.seeds):
        sampling_seed = evaluation.seed + order
        for sampling in dict.fromkeys(replace(setting, seed=sampling_seed) for setting in settings):
            judge.score(base, "base", sampling, split="report", grid=order == 0)
        for arm, objective_config in arms.items():
            name = f"{arm}-seed{seed}"
            trained = _train(
                config, objective_config, seed, run.folder / name, run.record["command"], rewards, resume=resume
            )
            hashes[name] = sha256_of_tensors(trained.state_dict())
            label = "aligned" if arm == objective else arm
            own = rewarded if label == "aligned" else judge
            if label == "aligned" and order == 0:
                aligned = [*aligned_settings(own, trained, evaluation), *guided]
            for setting in aligned if label == "aligned" else [SamplingConfig()]:
                own.score(trained, label, replace(setting, seed=sampling_seed), split="report", grid=order == 0)
    run.update(
        status="finished", hashes=hashes, rewards=rewards, generator_facts={"tokens_per_image": base.layout.length}
    )
    rows = read_results(run.folder / "results.jsonl")
    print(text_table(summarize(row for row in rows if row.split == "report")))
    say(f"report: {write_report(run.folder)}")


def _control(name: str | None) -> dict[str, DictConfig]:
    """The control's own objective section; all else stays the study's."""
    if name is None:
        return {}
    if name not in (known := options("objective")):
        raise ValueError(f"unknown control {name!r}; known objectives: {', '.join(known)}, or null for none")
    return {name: OmegaConf.load(CONF / "objective" / f"{name}.yaml")}  # type: ignore[dict-item]


def _arm(config: DictConfig, objective: DictConfig, **sections: Any) -> DictConfig:
    """The study with this objective; a control is plain, without the penalties that the study puts on its own."""
    if objective is not config.objective:
        sections |= {name: with_sections(config[name], coefficient=0.0) for name in ("kl", "entropy")}
    return with_sections(config, objective=objective, **sections)


def _train(
    config: DictConfig,
    objective: DictConfig,
    seed: int,
    folder: Path,
    command: str,
    rewards: list[dict[str, Any]],
    *,
    resume: bool,
) -> Generator:
    settings = _arm(config, objective, seed=seed, output_dir=str(folder))
    if resume and find_export(folder) is not None:
        return make_generator(with_sections(config.generator, checkpoint=str(folder)))
    own = rewards if objective is config.objective else []  # a control reads none
    sub_run = Run(settings, kind="train", overrides=[], name=folder.name)
    sub_run.update(command=command)
    generator, found = align_generator(settings, folder, resume=resume, description=folder.name)
    sub_run.update(
        status="finished",
        preflight=found,
        hashes={"aligned": sha256_of_tensors(generator.state_dict())},
        generator_facts=generator_facts(generator, config.generator),
        rewards=own,
        optimised=sorted(optimised_in(config.generator) | optimised(own)),
    )
    return generator
