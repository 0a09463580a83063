"""The rows of `results.jsonl`.

A row is one evaluation: one arm (a label and how it was sampled), one seed. Rows of the split "select" chose
settings, such as the best guidance scale; rows of the split "report" are on other seeds, and only they carry claims.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from evaluation.metric_names import METRICS, find_key

SPLITS = ("report", "select")


@dataclass(frozen=True)
class ResultRow:
    """One evaluation. Guidance scale 1.0 and top_k 0 are off; metric keys carry their protocol and sample count.

    intervals: 95 % intervals under some keys of `metrics`.
    search: compute spent at test time beyond sampling once, in words: `best of 4 by geneval`; empty: none.
    reference_hash: of the real images' statistics that it was measured against.
    remarks: what a reader of the numbers should know, such as that there were too few images for one of them.
    contaminated: names of metrics whose own features the generator was rewarded by.
    images: where images came from that no generator here drew, whose settings are what somebody said of them.
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
    images: str = ""
    split: str = "report"
    reference_n: int | None = None
    reference_hash: str | None = None
    extractor_fingerprint: str | None = None
    checkpoint: str | None = None
    forwards_per_image: float | None = None
    images_per_second: float | None = None
    remarks: tuple[str, ...] = ()
    contaminated: tuple[str, ...] = ()
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
        record = {name: value for name, value in asdict(self).items() if value not in (None, {}, (), "")}
        for name in ("metrics", "stderr"):
            if name in record:
                record[name] = {key: value if math.isfinite(value) else None for key, value in record[name].items()}
        if "intervals" in record:
            record["intervals"] = {k: ends for k, ends in record["intervals"].items() if all(map(math.isfinite, ends))}
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


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("a list of strings was expected")
    return tuple(map(_text, value))


_READ_AS: dict[str, Any] = {
    "int": _whole,
    "float": float,
    "str": _text,
    "tuple[str, ...]": _texts,
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
