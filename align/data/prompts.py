"""Prompts: the files they come in, and the order in which they are asked for rollouts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

_PROMPTS = 4  # separates this random stream from others of the same seed
CAPTION_COLUMNS = ("text", "caption", "prompt")


def read_prompts(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a prompt file: each has a text `prompt`, and whatever other columns the file has.

    Args:
        path: a .txt with one prompt a line, or a .jsonl with an object a line; UTF-8, blank lines are skipped.

    Raises:
        FileNotFoundError, ValueError: no such file, or what in it is no prompt, by line.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path} is no prompt file; .txt (a prompt a line) and .jsonl (a column 'prompt') are read")
    rows = []
    for number, row in _rows(path):
        if not isinstance(row.get("prompt"), str):
            raise ValueError(
                f"{path}, line {number} has {_columns(row)}; every line needs a text in the column 'prompt'"
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} holds no prompts")
    return rows


def read_captions(path: Path | str) -> list[str]:
    """All captions of a file, in order: of a .txt, one a line, or of a .jsonl, in a column text, caption or prompt, each
    a text or a list of them. Of a folder that `align data encode` made, those of its images.

    Raises:
        FileNotFoundError, ValueError: no such file, or what in it is no caption, by line.
    """
    path = Path(path)
    files = sorted(path.glob("shard-*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ValueError(
            f"{path} holds no captions: there is no shard-*.jsonl in it, as `align data encode` makes of them"
        )
    captions: list[str] = []
    for file in files:
        if file.suffix not in (".txt", ".jsonl"):
            raise ValueError(f"{file} is no caption file; .txt (one a line) and .jsonl are read, and folders of shards")
        for number, row in _rows(file):
            found = next((row[name] for name in CAPTION_COLUMNS if row.get(name) is not None), None)
            texts: list[Any] = found if isinstance(found, list) else [found]
            if not texts or not all(isinstance(text, str) for text in texts):
                raise ValueError(
                    f"{file}, line {number} has {_columns(row)}; every line needs a text, or a list of texts, in a column {', '.join(CAPTION_COLUMNS)}"
                )
            captions += texts
    if not captions:
        raise ValueError(f"{path} holds no captions")
    return captions


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1, and each line that is not blank as a row."""
    if not path.is_file():
        raise FileNotFoundError(f"no file of prompts or captions at {path}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                yield number, {"prompt": line.strip()} if path.suffix == ".txt" else _object(path, number, line)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as that") from error


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number} is not JSON ({error}): {line.strip()[:60]!r}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number} is {line.strip()[:60]!r}; a .jsonl has an object {{...}} a line")
    return row


def _columns(row: Mapping[str, Any]) -> str:
    return f"the columns {', '.join(map(repr, row))}" if row else "no columns"


def as_row(condition: Any) -> dict[str, Any]:
    """A dataset row of a prompt, a class, or a row: what rewards see of an image.

    Raises:
        ValueError: a row with neither `prompt` nor `label`.
    """
    if not isinstance(condition, Mapping):
        return {"prompt": condition} if isinstance(condition, str) else {"label": condition}
    raw_condition(condition)
    return dict(condition)


def raw_condition(row: Mapping[str, Any]) -> Any:
    """What a generator is conditioned on: the row's prompt, or else its class.

    Raises:
        ValueError: it has neither.
    """
    for name in ("prompt", "label"):
        if name in row:
            return row[name]
    raise ValueError(f"a row has {_columns(row)}; it needs a 'prompt', or a class as 'label'")


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of a stream's items: tensors stacked, texts and rows listed."""
    rows = [item["row"] for item in items if "row" in item]
    batch = default_collate([{name: value for name, value in item.items() if name != "row"} for item in items])
    return {**batch, "row": rows} if rows else batch


class PromptStream(Dataset[dict[str, Any]]):
    """Conditions in consecutive groups of `num_generations` equal rows, reshuffled each pass.

    With `num_iterations` above 1 the rows of a step come that many times before the next ones, so that several updates
    see the same rollouts; `position` then names the rollout, not the row.

    Processes take micro-batches in turn, as accelerate deals them. Within a step rows are laid out so that each process
    still has consecutive ones: a group stays on one process wherever its rows of a step are whole groups.

    Each item: label (the raw condition: a class or a prompt), row (all columns, a dictionary), dropped [] bool (never),
    position [].

    Args:
        prompts: classes, prompts, or rows with a `prompt` or a `label`.
        processes, micro_batch: how many share a step, in micro-batches of so many rows.
    """

    def __init__(
        self,
        prompts: Sequence[Any],
        *,
        length: int,
        seed: int,
        num_generations: int,
        rows_per_step: int,
        num_iterations: int = 1,
        processes: int = 1,
        micro_batch: int | None = None,
    ) -> None:
        if not len(prompts):
            raise ValueError("there are no prompts to draw rollouts for; check data.prompts")
        if num_generations < 1 or num_iterations < 1:
            raise ValueError(
                f"num_generations is {num_generations} and num_iterations is {num_iterations}; both must be at least 1"
            )
        if rows_per_step % num_generations:
            raise ValueError(
                f"a step of {rows_per_step} rows does not divide into groups of num_generations={num_generations}; change "
                "per_device_train_batch_size or gradient_accumulation_steps, so that their product is a multiple of it"
            )
        self.processes = processes
        self.micro_batch = micro_batch or rows_per_step // processes
        if rows_per_step % (processes * self.micro_batch):
            raise ValueError(
                f"a step of {rows_per_step} rows does not divide into micro-batches of {self.micro_batch} on {processes} processes"
            )
        self.rows = [as_row(prompt) for prompt in prompts]
        self.length = length
        self.seed = seed
        self.num_generations = num_generations
        self.rows_per_step = rows_per_step
        self.num_iterations = num_iterations
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return self.length

    @property
    def fingerprint(self) -> str:
        """Identity of everything that the stream's items depend on."""
        recipe = (self.rows, self.seed, self.num_generations, self.rows_per_step, self.num_iterations, self.length)
        return hashlib.sha256(repr(recipe).encode()).hexdigest()

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([_PROMPTS, self.seed, epoch]).permutation(len(self.rows))

    def __getitem__(self, row: int) -> dict[str, Any]:
        step, offset = divmod(row, self.rows_per_step)
        position = step // self.num_iterations * self.rows_per_step + self._within_step(offset)
        epoch, order = divmod(position // self.num_generations, len(self.rows))
        found = self.rows[self._order(epoch)[order]]
        return {
            "label": raw_condition(found),
            "row": found,
            "dropped": torch.tensor(False),
            "position": torch.tensor(position),
        }

    def _within_step(self, offset: int) -> int:
        batch, row = divmod(offset, self.micro_batch)
        turn, process = divmod(batch, self.processes)
        return process * (self.rows_per_step // self.processes) + turn * self.micro_batch + row
