"""Align a generator by an objective, score it beside its base, and write the report.

The run's folder holds run.json, metrics.jsonl, results.jsonl, samples/, checkpoints, generator.pt (the aligned weights
in the published format) and report.html. Ctrl-C or SIGTERM saves a checkpoint; resume=auto goes on from it exactly.
For example: align train experiment=mnist/cca seed=2 objective.lambda_=4
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from align.data import TrainingStream
from align.files import sha256_of_tensors
from align.generators import Generator
from align.training.checkpoints import is_complete, latest_checkpoint, rewind_metrics
from align.training.contrast import Needs, Objective
from align.training.reference import CachedReference, FrozenReference, Reference
from align.types import SamplingConfig
from evaluation.report import write_report
from evaluation.results import read_results, summarize, text_table
from recipes.config import compose
from recipes.evaluate import Judge, base_settings
from recipes.parts import EXPORT_FILE, make_codes, make_generator, make_objective, make_protocol, num_classes
from recipes.run import Run, say

# settings of the trainer section that are ours; all others go to transformers.TrainingArguments
OURS = ("label_drop", "dropout", "precision", "sample_every", "gradient_checkpointing")
REFERENCE_FILE = "reference_logprobs.safetensors"


def train_generator(
    generator: Generator,
    objective: Objective,
    stream: TrainingStream,
    trainer_config: dict[str, Any],
    *,
    folder: Path,
    reference: str,
    resume: bool,
    description: str,
) -> None:
    """Train in place, leaving checkpoints, metrics.jsonl and sample grids in `folder`.

    Raises:
        KeyboardInterrupt: stopped by a signal, after a checkpoint was saved.
    """
    # transformers takes seconds to import; a mistake in the configuration is answered before
    from transformers import TrainerCallback, TrainingArguments

    from align.training.callbacks import ProgressBar, SampleGrid, StopOnSignal
    from align.training.trainer import AlignTrainer

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")
    values = {key: value for key, value in trainer_config.items() if key not in OURS}
    bf16 = _use_bf16(trainer_config["precision"])
    try:
        args = TrainingArguments(
            output_dir=str(folder),
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="steps",
            disable_tqdm=True,
            **values,
        )
    except TypeError as error:
        raise ValueError(f"trainer section: {error}; its fields are those of transformers.TrainingArguments") from error
    generator.gradient_checkpointing = trainer_config["gradient_checkpointing"]
    needs = Needs.of(objective)
    stop = StopOnSignal()
    callbacks: list[TrainerCallback] = [ProgressBar(description), stop]
    if every := trainer_config["sample_every"]:
        callbacks.append(SampleGrid(every, folder / "samples", num_classes=num_classes(generator)))
    trainer = AlignTrainer(
        generator,
        objective,
        stream,
        args,
        reference=_make_reference(reference, generator, stream, folder, args.per_device_train_batch_size)
        if needs.reference
        else None,
        callbacks=callbacks,
    )
    checkpoint = latest_checkpoint(folder) if resume else None
    if trainer.is_world_process_zero():
        for torso in folder.glob("checkpoint-*"):
            if not is_complete(torso):
                shutil.rmtree(torso)
        rewind_metrics(folder, int(checkpoint.name.split("-")[1]) if checkpoint else 0)
    if resume:
        say(f"resuming from {checkpoint}" if checkpoint else "no whole checkpoint to resume from; starting at step 0")
    with stop:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.received is not None and trainer.state.global_step < trainer.state.max_steps:
        say(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps} with a checkpoint; go on with resume=auto"
        )
        raise KeyboardInterrupt
    generator.eval()


def _use_bf16(precision: str) -> bool:
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"trainer.precision is {precision!r}; known: auto, bf16, fp32")
    available = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return available if precision == "auto" else precision == "bf16"


def _make_reference(
    kind: str, generator: Generator, stream: TrainingStream, folder: Path, batch_size: int
) -> Reference:
    if kind == "frozen":
        return FrozenReference(generator)
    if kind == "cached":
        path = folder / REFERENCE_FILE
        if path.exists():
            return CachedReference.load(path, generator, stream)
        cached = CachedReference.compute(generator, stream, batch_size=batch_size)
        cached.save(path, stream)
        return cached
    raise ValueError(f"unknown reference {kind!r}; known: frozen, cached")


def align_generator(config: DictConfig, folder: Path, *, resume: bool, description: str) -> Generator:
    """Load, train and export: the aligned generator, whose weights are then in folder/generator.pt."""
    trainer_config: dict[str, Any] = OmegaConf.to_container(config.trainer)  # type: ignore[assignment]
    objective = make_objective(config.objective)
    Needs.of(objective)
    generator = make_generator(config.generator, dropout=config.trainer.dropout)
    rows = trainer_config["per_device_train_batch_size"] * trainer_config["gradient_accumulation_steps"]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    stream = TrainingStream(
        make_codes(config.data.codes, generator),
        length=trainer_config["max_steps"] * rows * world,
        seed=config.seed,
        label_drop=trainer_config["label_drop"],
    )
    torch.manual_seed(config.seed)
    train_generator(
        generator,
        objective,
        stream,
        {**trainer_config, "seed": config.seed},
        folder=folder,
        reference=config.reference,
        resume=resume,
        description=description,
    )
    generator.save_published(folder / EXPORT_FILE)
    return generator


def main(overrides: list[str]) -> None:
    config = compose("train", overrides)
    if config.resume not in (None, "auto"):
        raise ValueError(f"resume is {config.resume!r}; known: auto (the newest whole checkpoint), or null")
    resume = config.resume == "auto"
    protocol = make_protocol(config.evaluation.protocol) if config.evaluation.protocol else None
    run = Run(config, kind="train", overrides=overrides)
    try:
        aligned = align_generator(config, run.folder, resume=resume, description=config.name)
    except KeyboardInterrupt:
        run.update(status="interrupted")
        raise
    except Exception as error:
        run.update(status=f"failed: {error}")
        raise
    base = make_generator(config.generator)
    hashes = {label: sha256_of_tensors(g.state_dict()) for label, g in (("base", base), ("aligned", aligned))}
    run.update(status="trained", hashes=hashes, generator_facts={"tokens_per_image": base.layout.length})
    if protocol is not None:
        (run.folder / "results.jsonl").unlink(missing_ok=True)
        evaluation = config.evaluation
        judge = Judge(protocol, evaluation.num_images, evaluation.batch_size, run.folder)
        compare(judge, base, {"aligned": aligned}, evaluation, seed=evaluation.seed)
        print(text_table(summarize(row for row in read_results(run.folder / "results.jsonl") if row.split == "report")))
    run.update(status="finished")
    say(f"aligned weights: {run.folder / EXPORT_FILE}\nreport: {write_report(run.folder)}")


def compare(judge: Judge, base: Generator, others: dict[str, Generator], evaluation: DictConfig, *, seed: int) -> None:
    """One training run's rows: the base plain, at its best temperature and at its best guidance, then the trained ones."""
    settings = base_settings(judge, base, evaluation)
    for scale in evaluation.aligned_guidance_scales:
        sampling = SamplingConfig(guidance_scale=scale, seed=evaluation.select_seed)
        judge.score(others["aligned"], "aligned", sampling, split="select")
    for sampling in settings:
        judge.score(base, "base", replace(sampling, seed=seed), split="report", grid=True)
    for label, generator in others.items():
        judge.score(generator, label, SamplingConfig(seed=seed), split="report", grid=True)
