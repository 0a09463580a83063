"""Align a generator by an objective, score it beside its base, and write the report.

The run's folder holds run.json, metrics.jsonl, results.jsonl, samples/, checkpoints, generator.pt (the aligned weights
in the published format, or generator.safetensors or generator/, as the base came), adapter/ (with trainer.lora_rank, the
adapters by themselves) and report.html. Ctrl-C or SIGTERM saves a checkpoint; resume=auto goes on from it exactly.
For example: align train experiment=mnist/cca seed=2 objective.lambda_=4
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf

from align.files import alone_in, sha256_of_tensors
from align.generators import Generator
from align.generators.recompute import CHOICES
from align.training.adapters import add_adapters, merge_adapters, save_adapters
from align.training.checkpoints import is_complete, latest_checkpoint, rewind_logs
from align.training.inputs import Needs, Objective
from align.types import SamplingConfig
from evaluation.arms import summarize, text_table
from evaluation.report import write_report
from evaluation.results import read_results
from recipes.conditions import shown_conditions
from recipes.config import compose
from recipes.exports import export, find_export
from recipes.facts import generator_facts
from recipes.judge import Judge, aligned_settings, base_settings, refuse_the_seed_of_choice
from recipes.parts import make_generator, make_objective, tokenizer_hash, use_bf16
from recipes.reward_settings import make_rewards, optimised, optimised_in, reward_facts
from recipes.rounds import play
from recipes.rounds import wanted as rounds_wanted
from recipes.run import Run, is_first_process, refuse_many_processes, say, wait_for_all
from recipes.supplies import Supplies, check_recipe, make_supplies
from recipes.tasks import make_task

if TYPE_CHECKING:
    from transformers import TrainingArguments

ADAPTER_FOLDER = "adapter"
# settings of the trainer section that are ours; all others go to transformers.TrainingArguments
OURS = (
    "global_batch_size",
    "label_drop",
    "dropout",
    "precision",
    "sample_every",
    "gradient_checkpointing",
    "lora_rank",
    "lora_alpha",
)


def training_arguments(trainer_config: Mapping[str, Any], folder: Path) -> TrainingArguments:
    """Those of transformers, of a `trainer` section without what is ours. Raises ValueError for what is no field of theirs."""
    from transformers import TrainingArguments

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    values = {key: value for key, value in trainer_config.items() if key not in OURS}
    try:
        return TrainingArguments(
            output_dir=str(folder),
            bf16=use_bf16(trainer_config["precision"]),
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            **{"save_strategy": "steps", **values},
        )
    except TypeError as error:
        raise ValueError(f"trainer section: {error}; its fields are those of transformers.TrainingArguments") from error


def train_generator(
    generator: Generator,
    objective: Objective,
    supplies: Supplies,
    trainer_config: dict[str, Any],
    *,
    folder: Path,
    resume: bool,
    description: str,
    check_first: bool = False,
    alarms: Mapping[str, Any] | None = None,
    prompts: str | None = None,
) -> list[str]:
    """Train in place, leaving checkpoints, metrics.jsonl and sample grids in `folder`; what the preflight found.

    Args:
        prompts: a file of those that sample grids show; None: the training's own, or classes.

    Raises:
        KeyboardInterrupt: stopped by a signal, after a checkpoint was saved.
        PreflightError: `check_first`, and a check failed.
        FloatingPointError: an alarm stopped the run, after a checkpoint was saved.
    """
    # transformers takes seconds to import; a mistake in the configuration is answered before
    from transformers import TrainerCallback
    from transformers.integrations import TensorBoardCallback

    from align.training.alarms import Alarms
    from align.training.callbacks import ProgressBar, SampleGrid, StopOnSignal, TensorBoard
    from align.training.preflight import preflight
    from align.training.trainer import AlignTrainer
    from recipes.run_memory import look_at_memory

    args = training_arguments(trainer_config, folder)
    chosen = trainer_config["gradient_checkpointing"]
    if chosen not in CHOICES:
        raise ValueError(f"trainer.gradient_checkpointing is {chosen!r}; known: false, selective, true")
    generator.gradient_checkpointing = chosen
    stop, watch = StopOnSignal(), Alarms(folder, **(alarms or {}))
    callbacks: list[TrainerCallback] = [ProgressBar(description), stop, watch]
    trainer = AlignTrainer(
        generator,
        objective,
        supplies.stream,
        args,
        reference=supplies.reference,
        source=supplies.source,
        penalties=supplies.penalties,
        callbacks=callbacks,
    )
    if every := trainer_config["sample_every"]:
        conditions = shown_conditions(prompts, generator, supplies.stream)
        trainer.add_callback(SampleGrid(trainer, every, folder / "samples", conditions=conditions))
    if trainer.pop_callback(TensorBoardCallback) is not None:
        trainer.add_callback(TensorBoard)
    checkpoint = latest_checkpoint(folder) if resume else None
    if trainer.is_world_process_zero():
        for torso in folder.glob("checkpoint-*"):
            if not is_complete(torso):
                shutil.rmtree(torso)
        rewind_logs(folder, int(checkpoint.name.split("-")[1]) if checkpoint else 0)
    if resume:
        say(f"resuming from {checkpoint}" if checkpoint else "no whole checkpoint to resume from; starting at step 0")
    # a resumed policy has left its reference: what is checked is the start
    found = [*look_at_memory(trainer), *preflight(trainer)] if check_first and checkpoint is None else []
    with stop:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < trainer.state.max_steps:
        where = f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps} with a checkpoint"
        if stop.stopped:
            say(f"{where}; go on with resume=auto")
            raise KeyboardInterrupt
        raise FloatingPointError(
            f"{where} by an alarm: {'; '.join(watch.raised.values())}. Its reasons are in alarms.jsonl; alarms.stop=[] goes on regardless"
        )
    generator.eval()
    return found


def align_generator(config: DictConfig, folder: Path, *, resume: bool, description: str) -> tuple[Generator, list[str]]:
    """Load, train (in rounds, if so set) and export: the aligned generator, whose weights are then in the folder, too,
    and what the first preflight found. `check_recipe` must have passed the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder) if is_first_process() else nullcontext():
        if rounds_wanted(config):
            refuse_many_processes("self-play in rounds")
            return _align_in_rounds(config, folder, resume=resume, description=description)
        return _align_once(config, folder, resume=resume, description=description)


def _align_in_rounds(
    config: DictConfig, folder: Path, *, resume: bool, description: str
) -> tuple[Generator, list[str]]:
    found: list[str] = []

    def train_one(candidate: DictConfig, where: Path) -> Generator:
        generator, checks = _align_once(
            candidate, where, resume=resume, description=f"{description} {where.parent.name}"
        )
        found.extend(checks if not found else [])
        return generator

    return play(config, folder, train_one, resume=resume), found


def _align_once(config: DictConfig, folder: Path, *, resume: bool, description: str) -> tuple[Generator, list[str]]:
    trainer_config: dict[str, Any] = OmegaConf.to_container(config.trainer)  # type: ignore[assignment]
    alarms: dict[str, Any] = OmegaConf.to_container(config.alarms)  # type: ignore[assignment]
    rewards = make_rewards(config.reward)
    held_out = rewards.names(trained=False)
    alarms |= {"trained": [r.name for r in rewards.rewards if r.name not in held_out], "held_out": held_out}
    generator = make_generator(config.generator, dropout=config.trainer.dropout)
    if trainer_config["sample_every"] and tokenizer_hash(generator) is None:
        raise ValueError(
            "sample grids show images, and this generator has no tokenizer to make them with; set "
            "generator.tokenizer_checkpoint, or trainer.sample_every=0"
        )
    if "beta_B" in Needs.of(make_objective(config.objective)).names:
        generator.add_beta_embedding(config.sampling_beta)
    if rank := trainer_config["lora_rank"]:
        add_adapters(generator, rank=rank, alpha=trainer_config["lora_alpha"], seed=config.seed)
    supplies = make_supplies(config, generator, folder)
    torch.manual_seed(config.seed)
    found = train_generator(
        generator,
        make_objective(config.objective),
        supplies,
        {**trainer_config, "seed": config.seed},
        folder=folder,
        resume=resume,
        description=description,
        check_first=config.preflight,
        alarms=alarms,
        prompts=config.data.get("prompts"),
    )
    if rank and is_first_process():
        save_adapters(generator, folder / ADAPTER_FOLDER)
    if rank:
        merge_adapters(generator)
    if is_first_process():
        export(generator, folder)
    return generator, found


def main(overrides: list[str]) -> None:
    config = compose("train", overrides)
    if config.resume not in (None, "auto"):
        raise ValueError(f"resume is {config.resume!r}; known: auto (the newest whole checkpoint), or null")
    resume = config.resume == "auto"
    check_recipe(config)
    task = make_task(config.evaluation) if config.evaluation.protocol else None
    if task is not None:
        task.check(make_generator(config.generator))  # rather now than after hours of training
        refuse_the_seed_of_choice(config.evaluation, 1)
    run = Run(config, kind="train", overrides=overrides)
    with run.watching():
        aligned, found = align_generator(config, run.folder, resume=resume, description=config.name)
    base = make_generator(config.generator)
    hashes = {label: sha256_of_tensors(g.state_dict()) for label, g in (("base", base), ("aligned", aligned))}
    facts = generator_facts(base, config.generator)
    rewards = reward_facts(make_rewards(config.reward))
    before = optimised_in(config.generator)
    run.update(status="trained", preflight=found, hashes=hashes, generator_facts=facts, rewards=rewards)
    run.update(optimised=sorted(before | optimised(rewards)))
    results = run.folder / "results.jsonl"
    if task is not None:
        run.update(evaluation=task.facts())
        if is_first_process():
            results.unlink(missing_ok=True)
        wait_for_all()
        judge = Judge(
            task,
            config.evaluation.batch_size,
            run.folder,
            optimised=before,
            not_led_by=before | optimised(rewards),
        )
        compare(judge, base, aligned, config.evaluation, trained_at(config))
    run.update(status="finished")
    if is_first_process():
        if task is not None:
            print(text_table(summarize(row for row in read_results(results) if row.split == "report")))
        say(f"aligned weights: {find_export(run.folder)}\nreport: {write_report(run.folder)}")


def trained_at(config: DictConfig) -> list[SamplingConfig]:
    """The guidance that rollouts were drawn with, none where they were drawn without."""
    drawn = config.rollout.sampling
    if Needs.of(make_objective(config.objective)).source != "rollouts" or drawn.guidance_scale == 1.0:
        return []
    names = ("guidance_scale", "guidance_schedule", "guided_blocks")
    return [SamplingConfig(**{name: drawn[name] for name in names})]


def compare(
    judge: Judge, base: Generator, aligned: Generator, evaluation: DictConfig, guided: list[SamplingConfig]
) -> None:
    """The rows of one training, in four cells each for base and aligned generator (`tuned_settings`); and both `guided`
    as the rollouts were, since training under guidance moves what stands without it, too."""
    other = replace(judge, optimised=judge.not_led_by)
    shown = [
        (judge, base, "base", base_settings(judge, base, evaluation)),
        (other, aligned, "aligned", aligned_settings(other, aligned, evaluation)),
    ]
    for own, generator, label, settings in shown:
        for sampling in dict.fromkeys(replace(setting, seed=evaluation.seed) for setting in [*settings, *guided]):
            own.score(generator, label, sampling, split="report", grid=True)
