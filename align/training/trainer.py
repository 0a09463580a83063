"""AlignTrainer: transformers.Trainer with our objectives, exact accumulation and exact resuming."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import rotate_checkpoints

from align.data import PromptStream, Stream
from align.data.prompts import collate
from align.files import write_text
from align.generators.base import Generator
from align.sampling.graphs import release_recordings
from align.tensor_files import read_tensors, save_tensors
from align.training.checkpoints import METRICS_FILE, is_complete, mark_complete
from align.training.contact import lost_contact
from align.training.inputs import Objective, Term, conditions, field_inputs, model_inputs
from align.training.memory import PhasePeaks
from align.training.mismatch import mismatch
from align.training.penalties import Penalty
from align.training.reference import AdapterOffReference, FrozenReference, Reference
from align.training.rollouts import Rollouts
from align.training.sharding import Shards
from align.training.sources import RealData, Source, Step, check_supplies
from align.types import Average

STATE_FILE = "align_state.json"  # averages not yet logged, adapted coefficients
REFERENCE_FILE = "reference.safetensors"  # a reference that moves
SOURCE_FILE = "source-rank{rank}.safetensors"  # rollouts that further updates will use


class AlignTrainer(Trainer):
    """Trains a generator by an objective over a stream.

    What comes from transformers: accelerate (DDP, FSDP, DeepSpeed), mixed precision, optimisers and schedules,
    clipping, callbacks, trackers. What is ours: the loss is normalised by the rows of the whole optimiser step, so k
    micro-batches equal one batch; the data order is a function of the position alone; what a step needs beyond its
    data (rollouts, fakes) is made for all its micro-batches at once; metrics average exactly over micro-batches, steps
    and ranks; and a checkpoint counts only once it is whole.

    Args:
        objective: a function whose parameters name its inputs, see `align.training.inputs`.
        stream: as many items as all steps have rows.
        source: completes the batches; plain real data if not given.
        penalties: terms added to the loss, on the view that the objective scores the policy in.

    Raises:
        ValueError: the objective needs what source, reference or stream cannot supply.
    """

    # our losses are already divided by the rows of the whole step
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        generator: Generator,
        objective: Objective,
        stream: Stream | PromptStream,
        args: TrainingArguments,
        *,
        reference: Reference | None = None,
        source: Source | None = None,
        penalties: Sequence[Penalty] = (),
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self.objective: Term = Term.of(objective)
        self.source: Source = source or RealData()
        self.penalties = list(penalties)
        self.view = self.objective.needs.primary
        self.needs = self.objective.needs | self.source.needs
        for term in self._penalty_terms():
            self.needs |= term.needs
        check_supplies(self.objective.needs, self.source.supplies)
        if self.needs.reference and reference is None:
            raise ValueError(
                "this objective compares the policy with a reference; set reference.kind=frozen, cached or adapter_off"
            )
        self.stream = stream
        self.reference = reference
        self.pending: dict[str, Average] = {}
        self.step_averages: dict[str, Average] = {}
        self.peaks = PhasePeaks(self._collect)
        args.remove_unused_columns = False
        callbacks = [_EndOfStep(self), *(callbacks or [])]
        # transformers' own collator renames the key "label", and stacks no rows
        super().__init__(generator, args, data_collator=collate, train_dataset=stream, callbacks=callbacks)
        for noisy in (PrinterCallback, ProgressCallback):
            self.remove_callback(noisy)
        self._plan_sharding(generator)
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

    # --- sharding

    def _plan_sharding(self, generator: Generator) -> None:
        """Before anything is cut up: what is to be, while the caller's generator stays plain."""
        self.shards = Shards(self.accelerator)
        self.is_fsdp_enabled = self.shards.fsdp is not None
        if self.is_fsdp_enabled:
            # gradients of micro-batches are summed up cut, not whole on every process
            self.accelerator.gradient_state.plugin_kwargs["sync_each_batch"] = True
        self.model = self.model_wrapped = self.shards.part(generator)
        if isinstance(self.reference, FrozenReference) and self.is_fsdp_enabled:
            self.reference.generator = self.shards.part(self.reference.generator)
        if isinstance(self.reference, AdapterOffReference):
            self.reference.policy = self.model

    def shard_reference(self) -> None:
        """Once the policy is cut up, and a reference that moves has been resumed whole."""
        if isinstance(self.reference, FrozenReference):
            self.shards.shard(self.reference.generator)
        self.shards.empty_twins()

    def whole(self) -> AbstractContextManager[Generator]:
        """The policy for anything but its update; entered and left by all processes together."""
        return self.shards.whole(self.generator)

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, ignore_keys_for_eval: Any = None) -> Any:
        """As transformers', from a folder or the start, and leaves the generator that it was given whole and trained."""
        if resume_from_checkpoint is not None:
            self._resume(Path(resume_from_checkpoint))
        result = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self.shards.fill_twin(self.generator)
        return result

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.stream)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All matrices, but not biases, norms, and what the generator's authors exempt."""
        exempt = self.generator.undecayed
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.dim() >= 2 and not any(part in name for part in exempt)
        ]

    def raw_condition(self, row: int) -> Any:
        """What a row of the stream is generated from: a class, or a caption."""
        label = self.stream[row]["label"]
        return label.item() if isinstance(label, Tensor) else label

    def _penalty_terms(self) -> list[Term]:
        return [penalty.term(self.view) for penalty in self.penalties]

    # --- one step

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """All micro-batches of the next optimiser step, completed by the source."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self.prepare([self._prepare_inputs(batch) for batch in batches], self.state.global_step), None

    def prepare(self, batches: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
        if not batches:
            return batches
        step = Step(
            index=index,
            rows=self.rows_per_step,
            policy=self.generator,
            reference=self.reference,
            needs=self.needs,
            accelerator=self.accelerator,
            log=self._collect,
            phase=self.peaks.phase,
            whole=self.shards.whole,
        )
        with self.peaks.phase("collect"):
            prepared = self.source.prepare([self._encoded(batch) for batch in batches], step)
        release_recordings()  # the update needs the memory
        return prepared

    def _encoded(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Images that come as pixels become the generator's tokens."""
        if "pixels" not in batch:
            return batch
        # rows that stand in for an image that cannot be read; logged as their share
        self._collect({"unreadable": Average.of(batch["replaced"])})
        rest = {name: value for name, value in batch.items() if name not in ("pixels", "replaced")}
        return {**rest, "tokens": self.generator.encode(batch["pixels"])}

    def training_step(self, *inputs: Any, **settings: Any) -> Tensor:
        with self.peaks.phase("update"):
            return super().training_step(*inputs, **settings)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        known = self.inputs(model, inputs)
        outputs = [self.objective(known, float(self.rows_per_step))]
        metrics = dict(outputs[0].metrics)
        for penalty, term in zip(self.penalties, self._penalty_terms(), strict=True):
            outputs.append(term(known, float(self.rows_per_step)))
            metrics |= outputs[-1].metrics
            metrics[f"{penalty.name}_coefficient"] = Average.of(torch.tensor(penalty.coefficient))
        loss = torch.stack([output.loss for output in outputs]).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step}; nothing was updated. "
                "Lower learning_rate, or look at the data and at mixed precision"
            )
        rows = torch.tensor(float(len(inputs["dropped"])), device=loss.device)
        metrics |= {
            "loss": Average(loss.detach() * self.rows_per_step, rows),
            "entropy": Average.of(known["watched_entropy_BL"]),
            **self._mismatch(known, inputs),
        }
        self._collect(metrics)
        # ranks' gradients are averaged, and the loss is a share of the sum
        return loss * self.accelerator.num_processes

    def inputs(self, model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that the objective and the penalties ask for, by name."""
        given, collision_B = conditions(self.generator, batch)
        scoring, reference = self.source.scoring, self.reference
        null_source = reference.generator if reference is not None else None
        # also what does not pass through the prepared model: the reference, and its null branch
        with self.accelerator.autocast():
            found: dict[str, Any] = model_inputs(
                model,
                self.generator,
                batch,
                given,
                self.needs.of_model("policy"),
                scoring,
                null_source,
                watch=self.view,
            )
            if (wanted := self.needs.of_model("reference")) and reference is not None:
                with self.peaks.phase("reference"):
                    found |= reference.inputs(batch, given, wanted, scoring)
        fields = {"collision": collision_B, "num_tokens": self.generator.layout.length, **batch}
        for old, policy in (("old_rollout_BL", "policy_rollout_BL"), ("old_actions_BGL", "policy_actions_BGL")):
            if old in self.needs.names and "old" not in batch:
                fields["old"] = found[policy].detach()  # one update per rollout: the ratio is exactly 1
        fields |= self.source.derive(batch, found, self.generator)
        return found | field_inputs(self.needs.names, fields)

    def _mismatch(self, known: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Average]:
        """Only while the log-probs of training and of sampling should be the same."""
        if not isinstance(self.source, Rollouts) or "policy_rollout_BL" not in known:
            return {}
        settings = self.source.settings
        if not settings.on_policy or self.state.global_step % settings.num_iterations:
            return {}
        epsilon = getattr(self.objective.function, "keywords", {}).get("epsilon")
        policy_BL, spans = known["policy_rollout_BL"].detach(), list(self.generator.layout.spans())
        return mismatch(policy_BL, batch["behaviour"], spans, epsilon if settings.num_iterations > 1 else None)

    # --- metrics

    def _collect(self, metrics: Mapping[str, Average]) -> None:
        for averages in (self.pending, self.step_averages):
            for name, new in metrics.items():
                old = averages.get(name)
                averages[name] = new if old is None else _merge(old, new)

    def _means(self, averages: Mapping[str, Average]) -> dict[str, float]:
        """Exact means over ranks; a mean over nothing (no label was dropped, say) is left out."""
        names = sorted(averages)
        device = self.args.device
        sums = torch.stack(
            [torch.stack([averages[n].total.float().to(device), averages[n].count.float().to(device)]) for n in names]
        )
        total, count = self.accelerator.reduce(sums).unbind(dim=1)
        means = (total / count).tolist()
        return {name: mean for name, mean, n in zip(names, means, count.tolist(), strict=True) if n > 0}

    def end_step(self) -> None:
        """After an update: adapt coefficients, move the reference."""
        if any(getattr(penalty, "target", None) is not None for penalty in self.penalties):
            means = self._means(self.step_averages)
            for penalty in self.penalties:
                penalty.update(means)
        self.step_averages = {}
        if isinstance(self.reference, FrozenReference):
            self.reference.sync(self.generator, self.state.global_step)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the exact averages since the last log, and append the record to metrics.jsonl."""
        if self.pending and "loss" in logs:
            logs |= self._means(self.pending)
            self.pending = {}
            if self.is_world_process_zero():
                record = {"step": self.state.global_step, **logs}
                with (self.folder / METRICS_FILE).open("a") as file:
                    file.write(json.dumps(record) + "\n")
        super().log(logs, start_time)
        # metrics.jsonl keeps them; here each would be held, and written at each checkpoint
        del self.state.log_history[:-1]

    # --- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir) if output_dir else self.folder
            save_tensors(folder / "model.safetensors", state_dict or self.generator.state_dict())

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save everything that resuming needs, then mark it as whole; until then the older checkpoint is the one to use."""
        run = self._get_output_dir(trial)
        folder = Path(run) / f"checkpoint-{self.state.global_step}"
        kept, self.args.save_total_limit = self.args.save_total_limit, None  # older ones go once this one is whole
        try:
            super()._save_checkpoint(model, trial)
            if state := self.source.state_dict():
                save_tensors(folder / SOURCE_FILE.format(rank=self.accelerator.process_index), state)
            reference: dict[str, Tensor] = {}
            if isinstance(self.reference, FrozenReference) and self.reference.sync_steps is not None:
                reference = self.shards.state(self.reference.generator)
            own = {name: [average.total.item(), average.count.item()] for name, average in self.pending.items()}
            pending = gather_object([own])  # of each process, and waits for all
            if self.is_world_process_zero():
                if reference:
                    save_tensors(folder / REFERENCE_FILE, reference)
                coefficients = {penalty.name: penalty.coefficient for penalty in self.penalties}
                write_text(folder / STATE_FILE, json.dumps({"pending": pending, "coefficients": coefficients}))
                mark_complete(folder)
                rotate_checkpoints(run, kept)
        except (OSError, RuntimeError, SafetensorError) as error:
            if lost_contact(error):
                raise
            if not is_complete(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise OSError(
                f"could not save {folder} ({error}); earlier checkpoints are untouched. Free some space and run again with resume=auto"
            ) from error
        finally:
            self.args.save_total_limit = kept

    def _resume(self, folder: Path) -> None:
        """What transformers does not load."""
        state = json.loads((folder / STATE_FILE).read_text())
        self.pending = {name: Average(torch.zeros(()), torch.zeros(())) for part in state["pending"] for name in part}
        # another number of processes than at saving is one more way to share the same sums
        for part in state["pending"][self.accelerator.process_index :: self.accelerator.num_processes]:
            for name, (total, count) in part.items():
                self.pending[name] = _merge(self.pending[name], Average(torch.tensor(total), torch.tensor(count)))
        for penalty in self.penalties:
            penalty.coefficient = state["coefficients"][penalty.name]
        source = folder / SOURCE_FILE.format(rank=self.accelerator.process_index)
        if source.exists():
            self.source.load_state_dict(read_tensors(source).tensors)
        if isinstance(self.reference, FrozenReference) and self.reference.sync_steps is not None:
            self.reference.generator.load_state_dict(read_tensors(folder / REFERENCE_FILE).tensors)


class _EndOfStep(TrainerCallback):
    """transformers says when all is prepared, and when an update is made; before a checkpoint of it is saved."""

    def __init__(self, trainer: AlignTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.shard_reference()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.end_step()


def _merge(old: Average, new: Average) -> Average:
    return Average(old.total + new.total.to(old.total.device), old.count + new.count.to(old.count.device))
