"""What a generator is asked to draw when it is judged, and who judges: images of classes, or of prompts.

Rows are one for each image, in the order of the sample indices: index i gives the same image whatever the batch size.
Shapes: B batch, H height, W width.
"""

from __future__ import annotations

import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from align.generators import Generator
from align.sampling import balanced_labels
from evaluation.evaluator import Evaluator, describe_images
from evaluation.geneval.protocol import GenEvalProtocol
from evaluation.metric_names import CLASS_ACCURACY
from evaluation.prompted import PromptProtocol
from evaluation.protocol import EvaluationResult, Protocol
from recipes.parts import num_classes, tokenizer_hash
from recipes.protocols import make_protocol
from recipes.reward_settings import reward_fingerprint
from recipes.run import pick_device

Row = dict[str, Any]
SHOWN_CLASSES, SHOWN_PROMPTS = 60, 24  # images of a sample grid
READ_AT_ONCE = 32  # prompts, where a text encoder reads them


Arrays = dict[str, NDArray[Any]]


class Marker(typing.Protocol):
    """Collects verdicts on images by their sample indices."""

    def add(self, arrays: Mapping[str, NDArray[Any]], indices: Sequence[int]) -> None:
        """Take in what the task's `describe` told of these sample indices; ascending, and by one process alone."""

    def check(self) -> list[str]:
        """What there is to remark on the images themselves, at once."""

    def compute(self) -> EvaluationResult:
        """The metrics; its remarks hold those of `check`, too."""

    def write(self, path: Path) -> bool:
        """Verdicts on single images as JSON lines; False where there are none to write."""


@dataclass(frozen=True)
class ClassTask:
    """`num_images` images of all classes, or of the given ones, evenly, against a reference."""

    protocol: Protocol
    num_images: int
    classes: Sequence[int] | None = None
    grid_columns = 10

    @property
    def n(self) -> int:
        return self.num_images

    @property
    def fingerprint(self) -> str:
        """The protocol's, and the classes where they are not all: other images make other numbers."""
        chosen = "" if self.classes is None else f"+classes-{'-'.join(map(str, self.classes))}"
        return self.protocol.fingerprint + chosen

    @property
    def reference_hash(self) -> str | None:
        return self.protocol.reference_hash

    def contaminated(self, optimised: Collection[str]) -> list[str]:
        """Names of metrics whose features are among those that were optimised, by fingerprints."""
        return self.protocol.contaminated(optimised)

    def check(self, generator: Generator) -> None:
        """Raises ValueError for a generator whose images this protocol cannot judge."""
        if generator.num_classes is None:
            raise ValueError(
                f"protocol {self.protocol.name} judges images of classes, and a {generator.family} generator draws images of "
                "prompts; choose evaluation=geneval or another protocol of prompts, or evaluation=none"
            )
        _check_pixels(generator)

    def rows(self, generator: Generator) -> list[Row]:
        classes = self.classes or range(num_classes(generator))
        return [{"label": classes[index]} for index in balanced_labels(self.num_images, len(classes))]

    def shown(self) -> list[int]:
        """Sample indices of the images in a grid."""
        return list(range(min(SHOWN_CLASSES, self.num_images)))

    def captions(self, indices: Sequence[int]) -> list[str] | None:
        """What stands under images in a grid; None: nothing."""
        return None

    def prepare(self, images_BHW3: Tensor) -> Tensor:
        """Images of the size that the protocol scores; raises ValueError where it has no rule for others."""
        return self.protocol.prepare(images_BHW3)

    def describe(self, images_BHW3: Tensor) -> Arrays:
        """What there is to keep of images until all are drawn, each array with a row an image; by any process."""
        return describe_images(self.protocol, images_BHW3)

    def marker(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> Marker:
        """An empty one, for one process. Its own files lie in `folder`, for whoever made that to take away."""
        labels = [row["label"] for row in rows]
        return ClassMarker(Evaluator(self.protocol, folder), None if None in labels else labels)

    def facts(self) -> dict[str, Any]:
        """What a run's record says of it."""
        return self.protocol.facts()


@dataclass(frozen=True)
class PromptTask:
    """`images_per_prompt` images of every row of a protocol of prompts, row after row."""

    protocol: PromptProtocol
    grid_columns = 6  # wide enough for a prompt under each image

    @property
    def n(self) -> int:
        return len(self.protocol.rows) * self.protocol.images_per_prompt

    @property
    def fingerprint(self) -> str:
        return self.protocol.fingerprint

    @property
    def reference_hash(self) -> str | None:
        return None

    def contaminated(self, optimised: Collection[str]) -> list[str]:
        """As above: rewards that judge, and GenEval by the detector that was rewarded, unless a held-out judge tells of that."""
        protocol = self.protocol
        if isinstance(protocol, GenEvalProtocol):
            judges = [_identity(part) for part in (protocol.detector, protocol.judges[0].scorer.colors)]
            own = "-".join(dict.fromkeys(one["fingerprint"] for one in judges if one and one["fingerprint"]))
            return ["geneval"] if own in optimised and own and protocol.held_out is None else []
        rewards = getattr(protocol, "rewards", None)
        known = rewards.rewards if rewards is not None else ()
        return [one.name for one in known if reward_fingerprint(one.function) in optimised]

    def check(self, generator: Generator) -> None:
        """Raises ValueError for a generator that cannot draw what is asked for: of classes, or one that does not know a word."""
        if generator.num_classes is not None:
            raise ValueError(
                f"protocol {self.protocol.name} judges images of prompts, and a {generator.family} generator draws images of "
                "classes; choose evaluation=mnist-cnn or another protocol of classes, or evaluation=none"
            )
        _check_pixels(generator)
        prompts = [row["prompt"] for row in self.protocol.rows]
        distinct = list(dict.fromkeys(prompts))
        for start in range(0, len(distinct), READ_AT_ONCE):
            chunk = distinct[start : start + READ_AT_ONCE]
            try:
                generator.encode_condition(chunk)
            except ValueError:
                self._name_unreadable(generator, chunk, prompts)
                raise

    def _name_unreadable(self, generator: Generator, some: Sequence[str], prompts: Sequence[str]) -> None:
        for prompt in some:
            try:
                generator.encode_condition([prompt])
            except ValueError as error:
                raise ValueError(
                    f"protocol {self.protocol.name}, row {prompts.index(prompt)} ({prompt!r}) is no prompt for this generator: {error}"
                ) from error

    def rows(self, generator: Generator) -> list[Row]:
        return [dict(row) for row in self.protocol.rows for _ in range(self.protocol.images_per_prompt)]

    def shown(self) -> list[int]:
        """Sample indices of the images in a grid: one each of different prompts that are spread over all."""
        first: dict[str, int] = {}
        for number, row in enumerate(self.protocol.rows):
            first.setdefault(row["prompt"], number)
        rows = list(first.values())
        number = min(SHOWN_PROMPTS, len(rows))
        return [rows[order * len(rows) // number] * self.protocol.images_per_prompt for order in range(number)]

    def captions(self, indices: Sequence[int]) -> list[str] | None:
        """What stands under images in a grid: their prompts."""
        return [self.protocol.rows[index // self.protocol.images_per_prompt]["prompt"] for index in indices]

    def prepare(self, images_BHW3: Tensor) -> Tensor:
        """As they are."""
        return images_BHW3

    def describe(self, images_BHW3: Tensor) -> Arrays:
        """As above; the images themselves, since one process judges all."""
        return {"images": images_BHW3.numpy()}

    def marker(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> Marker:
        """An empty one."""
        return _PromptMarker(self.protocol)

    def facts(self) -> dict[str, Any]:
        """What a run's record says of it: the prompts as they are sent, and the judges with their weights."""
        facts: dict[str, Any] = {
            "protocol": self.protocol.name,
            "fingerprint": self.fingerprint,
            "images_per_prompt": self.protocol.images_per_prompt,
            "prompts": [row["prompt"] for row in self.protocol.rows],
        }
        if isinstance(self.protocol, GenEvalProtocol):
            facts["judges"] = [
                {"detector": _identity(judge.detector), "colors": _identity(judge.scorer.colors)}
                for judge in self.protocol.judges
            ]
        return facts


Task = ClassTask | PromptTask


class ClassMarker:
    """labels: of all images by sample index, or None where nobody knows."""

    def __init__(self, evaluator: Evaluator, labels: Sequence[int] | None) -> None:
        self.evaluator = evaluator
        self.labels_N = None if labels is None else np.asarray(labels, np.int64)

    def add(self, arrays: Mapping[str, NDArray[Any]], indices: Sequence[int]) -> None:
        labels = {} if self.labels_N is None else {"labels": self.labels_N[list(indices)]}
        self.evaluator.add({**arrays, **labels})

    def check(self) -> list[str]:
        return self.evaluator.check()

    def compute(self) -> EvaluationResult:
        result = self.evaluator.compute()
        classes = {f"{CLASS_ACCURACY}{label}": value for label, value in self.evaluator.accuracy_by_class().items()}
        return replace(result, metrics=result.metrics | classes)

    def write(self, path: Path) -> bool:
        return False


class _PromptMarker:
    """Judges images when it takes them in."""

    def __init__(self, protocol: PromptProtocol) -> None:
        self.evaluator, self.images_per_prompt = protocol.evaluator(), protocol.images_per_prompt

    def add(self, arrays: Mapping[str, NDArray[Any]], indices: Sequence[int]) -> None:
        rows = [index // self.images_per_prompt for index in indices]
        self.evaluator.update(torch.from_numpy(arrays["images"]), rows)

    def check(self) -> list[str]:
        return []

    def compute(self) -> EvaluationResult:
        return self.evaluator.compute()

    def write(self, path: Path) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.evaluator.write(path)
        return True


def make_task(evaluation: DictConfig, *, num_images: int | None = None, classes: Sequence[int] | None = None) -> Task:
    """The task of an `evaluation:` section.

    Args:
        num_images: instead of the section's own; of a protocol of prompts neither is a setting.
        classes: that images are drawn for; None: all.

    Raises:
        ValueError: no protocol, an unknown one, or settings of the other kind.
    """
    if torch.cuda.is_available():  # judges take the current GPU, and nothing has chosen this process's yet
        torch.cuda.set_device(pick_device())
    if not evaluation.protocol:
        raise ValueError("evaluation=none measures nothing; choose a protocol, such as evaluation=mnist-cnn")
    prompts = {name: evaluation.get(name) for name in ("images_per_prompt", "max_prompts")}
    protocol = make_protocol(evaluation.protocol, **prompts)
    if isinstance(protocol, Protocol):
        number = evaluation.get("num_images") if num_images is None else num_images
        number = protocol.num_images if number is None else number
        if number is None:
            raise ValueError(
                f"protocol {protocol.name} judges images of classes and needs evaluation.num_images, or its own num_images"
            )
        return ClassTask(protocol, number, classes)
    if classes is not None:
        raise ValueError(f"classes are given, and protocol {protocol.name} is one of prompts; set them to null")
    if evaluation.get("num_images") is not None:
        raise ValueError(
            f"evaluation.num_images is no setting of {protocol.name}, a protocol of prompts: it draws evaluation.images_per_prompt "
            "images of each. Choose evaluation=geneval or another of prompts as the section to start from"
        )
    return PromptTask(protocol)


def _identity(judge: Any) -> dict[str, Any] | None:
    """Name and weights of a detector or a colour classifier."""
    if judge is None:
        return None
    name = getattr(judge, "name", type(judge).__name__)
    return {"name": name, "fingerprint": getattr(judge, "fingerprint", None)}


def _check_pixels(generator: Generator) -> None:
    if tokenizer_hash(generator) is None:
        raise ValueError(
            "what is judged is images, and this generator has no tokenizer to make them with; set generator.tokenizer_checkpoint, "
            "or evaluation=none"
        )
