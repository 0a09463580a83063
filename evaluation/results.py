"""The rows of `results.jsonl`, and what may be concluded from them.

A row is one evaluation: one arm (a label and how it was sampled), one seed. Rows of the split "select" chose
settings, such as the best guidance scale; rows of the split "report" are on other seeds, and only they carry claims.
Arms are compared seed by seed, since images drawn with the same seed share most of their noise.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("report", "select")
# Two rows that differ in one of these measure different things: FID alone moves with every one of them.
COMPARABLE = ("protocol", "n", "reference_n", "extractor_fingerprint")
# Keys of the accuracy on one class: this and the class.
CLASS_ACCURACY = "accuracy-class"
# Rows that agree in these are one arm.
ARM = (
    *("label", "guidance_scale", "guidance_schedule", "guided_blocks", "temperature", "top_k", "top_p", "search"),
    "split",
)


@dataclass(frozen=True)
class Metric:
    """How a metric is named in keys (`fid` in `fid_mnist-cnn_2k`), shown, and read."""

    name: str
    title: str
    lower_is_better: bool = False
    digits: int = 3


METRICS = (
    Metric("fid", "FID", lower_is_better=True, digits=2),
    Metric("geneval", "GenEval"),
    Metric("held-out", "held-out judge"),
    Metric("accuracy", "accuracy"),
    Metric("is", "IS", digits=2),
    Metric("precision", "precision"),
    Metric("recall", "recall"),
)


@dataclass(frozen=True)
class ResultRow:
    """One evaluation. Guidance scale 1.0 and top_k 0 are off; metric keys carry their protocol and sample count.

    intervals: 95 % intervals under some keys of `metrics`.
    search: compute spent at test time beyond sampling once, in words: `best of 4 by geneval`; empty: none.
    samples, verdicts: a grid of images, and the verdicts on all images as JSON lines; relative to the run folder.
    """

    label: str
    seed: int
    n: int
    protocol: str
    metrics: Mapping[str, float]
    stderr: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    guidance_scale: float = 1.0
    guidance_schedule: str = "constant"
    guided_blocks: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    search: str = ""
    split: str = "report"
    reference_n: int | None = None
    extractor_fingerprint: str | None = None
    checkpoint: str | None = None
    forwards_per_image: float | None = None
    images_per_second: float | None = None
    samples: str | None = None
    verdicts: str | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; allowed: {', '.join(SPLITS)}")
        for metric in METRICS:
            find_key(self.metrics, metric.name)  # a row is of one protocol: one key per metric

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ResultRow:
        """Build a row from a decoded JSON object.

        Raises:
            ValueError: a field is missing, of the wrong type, or unknown. An unknown field is not skipped: a
                misspelt `guidance_scale` would otherwise turn a guided row into a guidance-free one.
        """
        if unknown := sorted(set(record) - set(_READERS)):
            raise ValueError(f"unknown field {unknown[0]!r}; known: {', '.join(_READERS)}")
        if missing := [name for name in _REQUIRED if record.get(name) is None]:
            raise ValueError(f"missing field {missing[0]!r}; a row needs: {', '.join(_REQUIRED)}")
        values = {}
        for name, value in record.items():
            if value is None:  # JSON null: not measured
                continue
            try:
                values[name] = _READERS[name](value)
            except (TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"field {name!r} cannot be {value!r}: {error}") from error
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object; fields that were not measured are left out, and NaN becomes null."""
        record = {name: value for name, value in asdict(self).items() if value not in (None, {}, "")}
        for name in ("metrics", "stderr"):
            if name in record:
                record[name] = {key: value if math.isfinite(value) else None for key, value in record[name].items()}
        return record


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {key: math.nan if value is None else float(value) for key, value in record.items()}


def _pairs(record: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {key: (float(low), float(high)) for key, (low, high) in record.items()}


def _whole(value: Any) -> int:
    if int(value) != value:
        raise ValueError("a whole number was expected")
    return int(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a string was expected")
    return value


_READ_AS: dict[str, Any] = {
    "int": _whole,
    "float": float,
    "str": _text,
    "Mapping[str, float]": _numbers,
    "Mapping[str, tuple[float, float]]": _pairs,
}
_READERS = {item.name: _READ_AS[str(item.type).removesuffix(" | None")] for item in fields(ResultRow)}
_REQUIRED = ("label", "seed", "n", "protocol", "metrics")


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object). A last line cut short, as a kill leaves it, is skipped with a warning.

    Raises:
        ValueError: any other line is not a JSON object; names the file and the line.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # no newline behind it: the writer was stopped
                warnings.warn(f"{path}:{number}: skipped a half-written last line", stacklevel=2)
                return
            raise ValueError(f"{path}:{number}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}:{number}: an object was expected, got {line.strip()[:40]}")
        yield number, record


def read_results(path: Path) -> list[ResultRow]:
    """The rows of a `results.jsonl`, in file order; none if the file does not exist yet.

    Raises:
        ValueError: a line is not a row; names the file and the line.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    for number, record in read_json_lines(path):
        try:
            rows.append(ResultRow.from_json(record))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return rows


def append_result(path: Path, row: ResultRow) -> None:
    """Add one row, on disk when this returns. What a killed writer left half-written is cut off first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(row.to_json(), allow_nan=False).encode() + b"\n"
    with path.open("ab+") as handle:
        handle.seek(0)
        content = handle.read()
        tail = content.rpartition(b"\n")[2]
        try:
            json.loads(tail or b"null")
        except ValueError:
            handle.truncate(len(content) - len(tail))
            tail = b""
        handle.write((b"\n" if tail else b"") + line)
        handle.flush()
        os.fsync(handle.fileno())


@dataclass(frozen=True)
class Spread:
    """A number by seed. NaN is kept, so that a seed without a defined value cannot vanish from a median."""

    values: Mapping[int, float]

    @property
    def median(self) -> float:
        return float(np.median(list(self.values.values())))

    @property
    def min(self) -> float:
        return float(np.min(list(self.values.values())))

    @property
    def max(self) -> float:
        return float(np.max(list(self.values.values())))

    @property
    def sd(self) -> float:
        """Sample standard deviation; NaN for a single seed."""
        return float(np.std(list(self.values.values()), ddof=1)) if len(self.values) > 1 else math.nan


@dataclass(frozen=True)
class Arm:
    """All rows with one label, one way of sampling and one split: at most one row per seed, by seed."""

    label: str
    guidance_scale: float
    guidance_schedule: str
    guided_blocks: int | None
    temperature: float
    top_k: int
    top_p: float
    search: str
    split: str
    rows: tuple[ResultRow, ...]

    @property
    def guides_evenly(self) -> bool:
        """Every block by the same scale."""
        return self.guidance_schedule == "constant" and self.guided_blocks is None

    @property
    def guidance(self) -> str:
        """Its guidance in a few characters: `off`, `1.5`, `2 linear`, `2 linear, first 5`."""
        if self.guidance_scale == 1:
            return "off"
        schedule = "" if self.guidance_schedule == "constant" else f" {self.guidance_schedule}"
        interval = "" if self.guided_blocks is None else f", first {self.guided_blocks}"
        return f"{self.guidance_scale:g}{schedule}{interval}"

    @property
    def settings(self) -> str:
        """How it was sampled, in words."""
        guidance = "no guidance" if self.guidance_scale == 1 else f"guidance {self.guidance}"
        return ", ".join([guidance, f"T={self.temperature:g}", *self.filters, *([self.search] if self.search else [])])

    @property
    def filters(self) -> list[str]:
        top_k = [f"top-k {self.top_k}"] if self.top_k else []
        return top_k + ([f"top-p {self.top_p:g}"] if self.top_p < 1 else [])

    @property
    def plain(self) -> bool:
        """Sampled once from the model's own distribution: no guidance, temperature 1, no filter, no search."""
        return (self.guidance_scale, self.temperature, self.top_k, self.top_p, self.search) == (1, 1, 0, 1, "")

    def metric(self, name: str) -> Spread | None:
        """A metric by seed, found by its prefix (`fid`, `fid_`) or its whole key; None unless every row has it."""
        keys = [find_key(row.metrics, name) for row in self.rows]
        if None in keys:
            return None
        return Spread({row.seed: row.metrics[str(key)] for row, key in zip(self.rows, keys, strict=True)})

    @property
    def forwards_per_image(self) -> float | None:
        return _median_known(row.forwards_per_image for row in self.rows)

    @property
    def images_per_second(self) -> float | None:
        return _median_known(row.images_per_second for row in self.rows)


def _median_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def find_key(metrics: Mapping[str, float], name: str) -> str | None:
    """The key that is `name`, or starts with `name` and an underscore.

    Raises:
        ValueError: several keys do, such as two protocols in one row.
    """
    if name in metrics:
        return name
    prefix = name.removesuffix("_") + "_"
    found = [key for key in metrics if key.startswith(prefix)]
    if len(found) > 1:
        raise ValueError(f"metric {name!r} is ambiguous: {', '.join(found)}; ask for one of them by its whole key")
    return found[0] if found else None


def summarize(rows: Iterable[ResultRow]) -> list[Arm]:
    """Group rows into arms, in order of first appearance; of two rows of one arm and seed, the later one counts.

    Raises:
        ValueError: rows of one arm have different protocols, sample counts, references or extractors.
    """
    arms: dict[tuple[Any, ...], dict[int, ResultRow]] = {}
    for row in rows:
        arms.setdefault(tuple(getattr(row, name) for name in ARM), {})[row.seed] = row
    for by_seed in arms.values():
        refuse_mixed(list(by_seed.values()))
    return [
        Arm(**dict(zip(ARM, key, strict=True)), rows=tuple(by_seed[seed] for seed in sorted(by_seed)))
        for key, by_seed in arms.items()
    ]


def refuse_mixed(rows: Sequence[ResultRow]) -> None:
    """Raise ValueError, naming two rows, unless all were measured in the same way."""
    for first, row in pairwise(rows):
        for name in COMPARABLE:
            if getattr(row, name) != getattr(first, name):
                raise ValueError(
                    f"cannot compare rows with different {name}: {getattr(first, name)} in {_name(first)}, "
                    f"{getattr(row, name)} in {_name(row)}. Evaluate both under the same protocol"
                )


def _name(row: ResultRow) -> str:
    return f"{row.label!r} (guidance {row.guidance_scale:g}, T={row.temperature:g}, {row.split} seed {row.seed})"


@dataclass(frozen=True)
class Paired:
    """An arm against a base on the seeds that both have: differences arm - base and ratios arm / base."""

    arm: Spread
    base: Spread
    differences: Spread
    ratios: Spread


def paired(arm: Arm, base: Arm, metric: str) -> Paired:
    """Compare two arms seed by seed.

    Raises:
        ValueError: the arms were not measured in the same way, share no seed, or lack the metric.
    """
    refuse_mixed([*base.rows, *arm.rows])
    arm_spread, base_spread = arm.metric(metric), base.metric(metric)
    if arm_spread is None or base_spread is None:
        raise ValueError(f"{arm.label!r} and {base.label!r} cannot be compared by {metric!r}: a row lacks it")
    ours, theirs = arm_spread.values, base_spread.values
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        raise ValueError(
            f"{arm.label!r} (seeds {list(ours)}) and {base.label!r} (seeds {list(theirs)}) share no seed; "
            "evaluate both on the same seeds"
        )
    return Paired(
        arm=Spread({seed: ours[seed] for seed in seeds}),
        base=Spread({seed: theirs[seed] for seed in seeds}),
        differences=Spread({seed: ours[seed] - theirs[seed] for seed in seeds}),
        ratios=Spread({seed: ours[seed] / (theirs[seed] or math.nan) for seed in seeds}),
    )


def text_table(arms: Sequence[Arm]) -> str:
    """The arms as aligned columns for a terminal: medians over the seeds, with their range."""
    table = [["arm", "guidance", "T", *(metric.title for metric in METRICS), "forwards/img", "img/s", "seeds"]]
    for arm in arms:
        name = [
            arm.label,
            *arm.filters,
            *([arm.search] if arm.search else []),
            *(["(select)"] if arm.split == "select" else []),
        ]
        values = [_cell(arm.metric(metric.name), metric.digits) for metric in METRICS]
        costs = ["-" if cost is None else f"{cost:.0f}" for cost in (arm.forwards_per_image, arm.images_per_second)]
        table.append([" ".join(name), arm.guidance, f"{arm.temperature:g}", *values, *costs, str(len(arm.rows))])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *rest in table:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cell(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "-"
    text = f"{spread.median:.{digits}f}"
    if len(spread.values) > 1:
        text += f" [{spread.min:.{digits}f}-{spread.max:.{digits}f}]"
    return text
