"""Images in files: written while they are drawn, or scored as they lie there, whoever made them.

Those of prompts are in folders as GenEval's own tools have them, those of classes in an npz file or any folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from align.files import write_atomically
from align.types import SamplingConfig
from evaluation.geneval.folder import read_folder, read_rows, write_prompt
from evaluation.image_files import ImageFiles
from evaluation.results import ResultRow
from recipes.judge import Judge, Spent
from recipes.tasks import PromptTask

COLUMNS = ("prompt", "tag", "include", "exclude")  # of a row, that say what its images are judged by


class FolderWriter:
    """A judge's `keep`: writes every image to its prompt's folder."""

    def __init__(self, folder: Path, task: PromptTask) -> None:
        self.folder, self.protocol = folder, task.protocol
        self._resumed = False

    def begin(self, own: Path, *, resumed: bool) -> None:
        """Raises ValueError if there is anything in the folder already, unless it is what is gone on with."""
        if not resumed and self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(
                f"{self.folder} holds images already, which would be mixed with new ones; set another output_dir="
            )
        self._resumed = resumed

    def finish(self) -> None:
        pass

    def __call__(self, images_BHW3: Tensor, index_B: Tensor) -> None:
        for image_HW3, index in zip(images_BHW3, index_B.tolist(), strict=True):
            number, first = divmod(index, self.protocol.images_per_prompt)
            if self._resumed:  # of a shard that was not finished
                (self.folder / f"{number:05}" / "samples" / f"{first:04}.png").unlink(missing_ok=True)
            write_prompt(self.folder, number, self.protocol.rows[number], image_HW3[None], first=first)


class NpzWriter:
    """A judge's `keep` for images of classes: one npz file as ADM's evaluator takes it, `arr_0` and the classes `arr_1`.

    The order is that of the sample indices, in which classes take turns: any part of it holds all of them.
    """

    def __init__(self, path: Path, labels: Sequence[int]) -> None:
        self.path, self.labels = path, np.asarray(labels, np.int64)
        self._own = path.parent  # until `begin` tells

    def begin(self, own: Path, *, resumed: bool) -> None:
        """Raises ValueError if the file is there already, unless this evaluation wrote it."""
        self._own = own
        if self.path.exists() and not self._written.exists():
            raise ValueError(f"{self.path} is there already; take it away, or set another output_dir=")

    @property
    def _written(self) -> Path:
        return self._own / "images.written"

    def __call__(self, images_BHW3: Tensor, index_B: Tensor) -> None:
        pixels = images_BHW3.numpy()
        height, width = pixels.shape[1:3]
        raw = self._own / f"images-{height}-{width}.raw"
        handle = os.open(raw, os.O_RDWR | os.O_CREAT, 0o644)  # whichever process comes first
        with os.fdopen(handle, "r+b") as file:
            for image_HW3, index in zip(pixels, index_B.tolist(), strict=True):
                file.seek(index * image_HW3.size)
                file.write(image_HW3.tobytes())

    def finish(self) -> None:
        if self._written.exists():  # a process was killed right after it
            return
        (raw,) = self._own.glob("images-*.raw")
        height, width = map(int, raw.stem.split("-")[1:])
        pixels = np.memmap(raw, np.uint8, "r", shape=(len(self.labels), height, width, 3))

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, arr_0=pixels, arr_1=self.labels)

        write_atomically(self.path, write)
        self._written.touch()


def score_files(judge: Judge, files: ImageFiles, label: str, sampling: SamplingConfig) -> ResultRow:
    """The row of anybody's images, for a judge whose task is of classes and asks for so many images."""

    def source(indices: range) -> tuple[Tensor, dict[str, float]]:
        return files.read(indices.start, indices.stop), {}

    labels = [None] * len(files) if files.labels is None else files.labels.tolist()
    return judge.measure(
        source,
        [{"label": one} for one in labels],
        judge.identity(None, label, sampling, "report"),
        judge.file_name(f"{label}_images", sampling),
        grid=True,
        files=files.identity,
        remarks=files.remarks,
    )


def score_folder(judge: Judge, source: Path, label: str, sampling: SamplingConfig) -> ResultRow:
    """The row of images that lie in `source`, which `check_folder` found to be the judge's; `sampling` says how they were drawn.

    Raises:
        ValueError: fewer images of a prompt than the task asks for, or an image that cannot be read; says which. Nothing
            is scored then.
    """
    task = judge.task
    assert isinstance(task, PromptTask)  # check_folder refuses others
    per_prompt = task.protocol.images_per_prompt
    marker = task.marker(task.protocol.rows, judge.folder)
    wanted, spent = set(task.shown()), Spent()
    for start, images in _batches(source, per_prompt, judge.batch_size):
        indices = range(start, start + len(images))
        marker.add(task.describe(images), indices)
        spent.shown |= {i: image.numpy() for i, image in zip(indices, images, strict=True) if i in wanted}
    if len({image.shape for image in spent.shown.values()}) > 1:
        spent.shown = {}  # images of several sizes make no grid
    identity = judge.identity(None, label, sampling, "report")
    return judge.record(identity, marker, spent, judge.file_name(f"{label}_images", sampling))


def check_folder(source: Path, task: PromptTask) -> None:
    """Raises ValueError for a folder whose prompts are not the task's, in its order."""
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
