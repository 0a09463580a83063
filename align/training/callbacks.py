"""What watches a training run: the progress bar, the sample grids, and the ways to stop it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import reduce
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from align.generators.base import Generator
from align.images import save_grid
from align.progress import progress_bar
from align.sampling import sample
from align.training.contact import lost_contact
from align.types import SamplingConfig

if TYPE_CHECKING:
    from align.training.trainer import AlignTrainer

# shown beside the bar, in this order, where a run logs them
SHOWN = ("loss", "gap_positive", "gap_negative", "accuracy", "nll_per_token")


class ProgressBar(TrainerCallback):
    """One line: steps, time left and the numbers that tell whether it works."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self.bar = progress_bar(
                total=state.max_steps, initial=state.global_step, description=self.description, unit="step"
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            logs = kwargs["logs"]
            shown = {name: f"{logs[name]:.3g}" for name in SHOWN if name in logs}
            self.bar.set_postfix(shown, refresh=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class TensorBoard(TensorBoardCallback):
    """transformers' own, which hides what an earlier try logged after the checkpoint that this one goes on from."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.tb_writer = self._SummaryWriter(log_dir=self.logging_dir, purge_step=state.global_step + 1)
        super().on_train_begin(args, state, control, **kwargs)


class SampleGrid(TrainerCallback):
    """Guidance-free samples of the same seeds every so many steps, as samples/step-N.png: a column for each condition."""

    def __init__(
        self,
        trainer: AlignTrainer,
        every: int,
        folder: Path,
        *,
        conditions: Sequence[Any],
        rows: int = 4,
        seed: int = 0,
    ) -> None:
        self.trainer = trainer
        self.every = every
        self.folder = folder
        self.conditions = list(conditions) * rows
        self.columns = len(conditions)
        self.config = SamplingConfig(seed=seed)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self.every:
            return
        with self.trainer.whole() as generator:
            if state.is_world_process_zero:
                self._draw(generator, self.folder / f"step-{state.global_step:06d}.png")

    def _draw(self, generator: Generator, path: Path) -> None:
        rollout = sample(generator, generator.encode_condition(self.conditions), self.config)
        prompts = self.conditions if isinstance(self.conditions[0], str) else None
        save_grid(generator.decode(rollout.tokens_BL), path, columns=self.columns, captions=prompts)


class StopOnSignal(TrainerCallback):
    """Ctrl-C or SIGTERM: finish the step, save a checkpoint, stop. A second Ctrl-C stops at once.

    All processes stop after the same step, whichever of them got the signal, and when. `stopped` says that they did.

    A context manager around `trainer.train()`, so that the handlers never outlive the training. A launcher that lost one
    process ends the others by SIGTERM: those then end by it as soon as they have lost contact.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.stopped = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.received == signal.SIGTERM and error is not None and lost_contact(error):
            signal.raise_signal(signal.SIGTERM)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        tqdm.write("stopping after this step; press Ctrl-C again to stop without a checkpoint", file=sys.stderr)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        told = reduce(torch.tensor(float(self.received is not None), device=args.device))
        self.stopped = bool(told)
        if self.stopped:
            control.should_save = True
            control.should_training_stop = True
