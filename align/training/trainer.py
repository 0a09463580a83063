"""AlignTrainer: transformers.Trainer with our objectives, exact accumulation and exact resuming."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import SequentialSampler, default_collate
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from align.data.stream import TrainingStream
from align.files import save_tensors, write_text
from align.generators.base import Generator
from align.training.checkpoints import METRICS_FILE, mark_complete
from align.training.contrast import Needs, Objective, conditions, gather_inputs, score_images
from align.training.reference import Reference
from align.types import Average

PENDING_FILE = "pending_averages.json"


class AlignTrainer(Trainer):
    """Trains a generator by an objective over a stream of real images.

    What comes from transformers: accelerate (DDP, FSDP, DeepSpeed), mixed precision, optimisers and schedules,
    clipping, callbacks, trackers. What is ours: the loss is normalised by the rows of the whole optimiser step, so k
    micro-batches equal one batch; the data order is a function of the position alone; metrics average exactly over
    micro-batches, steps and ranks; and a checkpoint counts only once it is whole.
    """

    # our losses are already divided by the rows of the whole step
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        generator: Generator,
        objective: Objective,
        stream: TrainingStream,
        args: TrainingArguments,
        *,
        reference: Reference | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.objective: Objective = objective
        self.needs = Needs.of(objective)
        if self.needs.reference and reference is None:
            raise ValueError(
                "this objective compares the policy with a reference; set reference=frozen or reference=cached"
            )
        self.stream = stream
        self.reference = reference
        self.pending: dict[str, Average] = {}
        args.remove_unused_columns = False
        # transformers' own collator renames the key "label"
        super().__init__(generator, args, data_collator=default_collate, train_dataset=stream, callbacks=callbacks)
        for noisy in (PrinterCallback, ProgressCallback):
            self.remove_callback(noisy)
        world = self.accelerator.num_processes
        self.rows_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * world
        if len(stream) != self.rows_per_step * args.max_steps:
            raise ValueError(
                f"the stream has {len(stream)} samples; {args.max_steps} steps of {self.rows_per_step} rows need {self.rows_per_step * args.max_steps}"
            )

    @property
    def folder(self) -> Path:
        return Path(str(self.args.output_dir))

    @property
    def generator(self) -> Generator:
        return self.accelerator.unwrap_model(self.model)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.stream)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        own, negative, collision_B = conditions(self.generator, inputs)
        given = [own, negative] if self.needs.negative else [own]
        policy = score_images(model, inputs["tokens"], given)
        reference_KB = None
        if self.needs.reference and self.reference is not None:
            with self.accelerator.autocast():
                reference_KB = self.reference.score(inputs, given)
        arguments = gather_inputs(
            self.needs,
            policy,
            reference_KB,
            dropped_B=inputs["dropped"],
            collision_B=collision_B,
            num_tokens=self.generator.layout.length,
        )
        output = self.objective(**arguments, normalizer=float(self.rows_per_step))
        if not torch.isfinite(output.loss):
            raise FloatingPointError(
                f"the loss is {output.loss.item()} at step {self.state.global_step}; nothing was updated. "
                "Lower learning_rate, or look at the data and at mixed precision"
            )
        rows = torch.tensor(float(len(inputs["tokens"])), device=output.loss.device)
        loss = Average(output.loss.detach() * self.rows_per_step, rows)
        self._collect({**output.metrics, "entropy": Average.of(policy.entropy_B), "loss": loss})
        # ranks' gradients are averaged, and the loss is a share of the sum
        return output.loss * self.accelerator.num_processes

    # --- metrics

    def _collect(self, metrics: Mapping[str, Average]) -> None:
        for name, new in metrics.items():
            old = self.pending.get(name)
            self.pending[name] = new if old is None else Average(old.total + new.total, old.count + new.count)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the exact averages since the last log, and append the record to metrics.jsonl."""
        if self.pending and "loss" in logs:
            names = sorted(self.pending)
            sums = torch.stack(
                [torch.stack([self.pending[n].total.float(), self.pending[n].count.float()]) for n in names]
            )
            total, count = self.accelerator.reduce(sums.to(self.args.device)).unbind(dim=1)
            means = (total / count).tolist()
            # a mean over nothing (no label was dropped, say) is left out, not logged as a number
            logs |= {name: mean for name, mean, n in zip(names, means, count.tolist(), strict=True) if n > 0}
            self.pending = {}
            if self.is_world_process_zero():
                record = {"step": self.state.global_step, **logs}
                with (self.folder / METRICS_FILE).open("a") as file:
                    file.write(json.dumps(record) + "\n")
        super().log(logs, start_time)

    # --- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir) if output_dir else self.folder
        save_tensors(folder / "model.safetensors", state_dict or self.generator.state_dict())

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save everything that resuming needs, then mark it as whole; until then the older checkpoint is the one to use."""
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            if self.is_world_process_zero():
                pending = {name: [average.total.item(), average.count.item()] for name, average in self.pending.items()}
                write_text(folder / PENDING_FILE, json.dumps(pending))
                mark_complete(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise OSError(
                f"could not save {folder} ({error}); earlier checkpoints are untouched. Free some space and run again with resume=auto"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        pending = json.loads((Path(resume_from_checkpoint) / PENDING_FILE).read_text())
        self.pending = {
            name: Average(torch.tensor(total), torch.tensor(count)) for name, (total, count) in pending.items()
        }
