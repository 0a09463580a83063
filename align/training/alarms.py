"""What goes wrong while the loss looks fine: drift, collapse, copies, no signal, a reward that is being gamed."""

from __future__ import annotations

import json
import statistics
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.training.checkpoints import ALARMS_FILE, METRICS_FILE, logged_until

WINDOW = 5  # logged steps that a trend is read from


class Alarms(TrainerCallback):
    """Says once what passed its limit, to the terminal and to alarms.jsonl; stops the run for those named in `stop`.

    Args:
        kl: nats per token from the reference.
        entropy: share of the entropy first logged, below which the policy has collapsed.
        duplicates: share of rollouts that are copies of others.
        zero_variance: share of groups whose rewards are all equal.
        trained, held_out: names of rewards; one of the latter falling while the former rise is an alarm, `gamed`.
        stop: names of alarms.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kl: float | None = None,
        entropy: float | None = None,
        duplicates: float | None = None,
        zero_variance: float | None = None,
        trained: Sequence[str] = (),
        held_out: Sequence[str] = (),
        stop: Sequence[str] = (),
    ) -> None:
        self.limits = {"kl": kl, "entropy": entropy, "duplicates": duplicates, "zero_variance": zero_variance}
        if unknown := [name for name in stop if name not in (*self.limits, "gamed")]:
            raise ValueError(f"alarms.stop names {', '.join(unknown)}; known: {', '.join(self.limits)}, gamed")
        self.folder = folder
        self.trained, self.held_out = list(trained), list(held_out)
        self.stop = set(stop)
        self.first_entropy: float | None = None
        self.history: dict[str, _History] = {}
        self.raised: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A resumed run goes on from what was logged and said before."""
        for record in logged_until(self.folder / METRICS_FILE, state.global_step):
            self.check(record)
        for record in logged_until(self.folder / ALARMS_FILE, state.global_step):
            self.raised[record["alarm"]] = record["message"]

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # averages are the same on all processes, so that all stop or none
        for name, message in self.check(kwargs["logs"]).items():
            if name in self.raised:
                continue
            self.raised[name] = message
            if not state.is_world_process_zero:
                continue
            tqdm.write(f"alarm at step {state.global_step}: {message}", file=sys.stderr)
            with (self.folder / ALARMS_FILE).open("a") as file:
                file.write(json.dumps({"step": state.global_step, "alarm": name, "message": message}) + "\n")
        if self.stop & self.raised.keys():
            control.should_save = True
            control.should_training_stop = True

    def check(self, logs: Mapping[str, float]) -> dict[str, str]:
        """Alarms that these averages raise, by name."""
        found = {}
        for name, meaning in (
            ("kl", "the policy is {value:.3g} nats a token from the reference, limit {limit:g}; raise kl.coefficient"),
            ("duplicates", "{value:.0%} of the rollouts are copies, limit {limit:.0%}; the policy collapses"),
            ("zero_variance", "{value:.0%} of the groups have equal rewards, limit {limit:.0%}; little is learnt"),
        ):
            limit = self.limits[name]
            if limit is not None and name in logs and logs[name] > limit:
                found[name] = meaning.format(value=logs[name], limit=limit)
        if (share := self.limits["entropy"]) is not None and "entropy" in logs:
            self.first_entropy = self.first_entropy or logs["entropy"]
            if logs["entropy"] < share * self.first_entropy:
                found["entropy"] = (
                    f"the entropy fell from {self.first_entropy:.3g} to {logs['entropy']:.3g} nats a token; the policy collapses"
                )
        for name in (*self.trained, *self.held_out):
            if f"reward/{name}" in logs:
                self.history.setdefault(name, _History()).add(logs[f"reward/{name}"])
        for name in self.held_out:
            if self._change(name) < 0 and any(self._change(other) > 0 for other in self.trained):
                found["gamed"] = (
                    f"the held-out reward {name} falls while the trained one rises; the reward is being gamed"
                )
        return found

    def _change(self, name: str) -> float:
        return self.history[name].change() if name in self.history else 0.0


class _History:
    """The first and the last window of a reward, however long a run is."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.last: deque[float] = deque(maxlen=WINDOW)

    def add(self, value: float) -> None:
        (self.first if len(self.first) < WINDOW else self.last).append(value)

    def change(self) -> float:
        """From the first to the last window, or 0 where it is within twice its noise."""
        if len(self.last) < WINDOW:
            return 0.0
        noise = ((statistics.variance(self.first) + statistics.variance(self.last)) / WINDOW) ** 0.5
        change = statistics.mean(self.last) - statistics.mean(self.first)
        return change if abs(change) > 2 * noise else 0.0
