"""Images of prompts in folders as GenEval's own tools have them: written while they are drawn, or scored as they lie there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from align.types import SamplingConfig
from evaluation.geneval.folder import read_folder, read_rows, write_prompt
from evaluation.results import ResultRow
from recipes.judge import Judge
from recipes.tasks import PromptTask, Task

COLUMNS = ("prompt", "tag", "include", "exclude")  # of a row, that say what its images are judged by


class FolderWriter:
    """A judge's `keep`: writes every image to its prompt's folder. Raises ValueError if there is anything in it already."""

    def __init__(self, folder: Path, task: PromptTask) -> None:
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(
                f"{folder} holds images already, which would be mixed with new ones; set another output_dir="
            )
        self.folder, self.protocol = folder, task.protocol

    def __call__(self, images_BHW3: Tensor, index_B: Tensor) -> None:
        for image_HW3, index in zip(images_BHW3, index_B.tolist(), strict=True):
            number, first = divmod(index, self.protocol.images_per_prompt)
            write_prompt(self.folder, number, self.protocol.rows[number], image_HW3[None], first=first)


def score_folder(judge: Judge, source: Path, label: str, sampling: SamplingConfig) -> ResultRow:
    """The row of images that lie in `source`, which `check_folder` found to be the judge's; `sampling` says how they were drawn.

    Raises:
        ValueError: fewer images of a prompt than the task asks for, or an image that cannot be read; says which. Nothing
            is scored then.
    """
    task = judge.task
    assert isinstance(task, PromptTask)  # check_folder refuses others
    per_prompt = task.protocol.images_per_prompt
    marker = task.marker(task.protocol.rows)
    wanted, shown = set(task.shown()), dict[int, Tensor]()
    for start, images in _batches(source, per_prompt, judge.batch_size):
        index_B = torch.arange(start, start + len(images))
        marker.update(images, index_B)
        shown |= {index: image for index, image in zip(index_B.tolist(), images, strict=True) if index in wanted}
    if len({image.shape for image in shown.values()}) > 1:
        shown = {}  # images of several sizes make no grid
    identity = judge.identity(None, label, sampling, "report")
    return judge.record(identity, marker, shown, judge.file_name(f"{label}_images", sampling))


def check_folder(source: Path, task: Task) -> None:
    """Raises ValueError for a task of classes, and for a folder whose prompts are not the task's, in its order."""
    if not isinstance(task, PromptTask):
        raise ValueError(
            f"images= are of prompts, and protocol {task.protocol.name} judges images of classes; choose evaluation=geneval"
        )
    rows, asked = read_rows(source), task.protocol.rows
    hint = "choose them by evaluation.protocol.prompts, and their number by evaluation.max_prompts"
    for number, (row, expected) in enumerate(zip(rows, asked, strict=False)):
        for column in COLUMNS:
            found, wanted = (json.dumps(one.get(column)) for one in (row, expected))
            if found != wanted:
                raise ValueError(
                    f"{source} has at number {number} the {column} {found}, and protocol {task.protocol.name} asks for {wanted}; {hint}"
                )
    if len(rows) != len(asked):
        raise ValueError(
            f"{source} has {len(rows)} prompts, and protocol {task.protocol.name} asks for {len(asked)}; {hint}"
        )


def _batches(source: Path, per_prompt: int, batch_size: int) -> Iterator[tuple[int, Tensor]]:
    """Images in order, those of one size that follow each other at once, with the sample index of the first."""
    numbered = enumerate(read_folder(source, images_per_prompt=per_prompt))
    start = 0
    for _, group in groupby(numbered, key=lambda item: (item[1].image.shape, item[0] // batch_size)):
        images = torch.from_numpy(np.stack([found.image for _, found in group]))
        yield start, images
        start += len(images)
