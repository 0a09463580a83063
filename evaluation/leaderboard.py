"""Many runs on one page: a table for every way of measuring, and no number beside one that was measured otherwise.

Only rows of the split "report" are shown. A run whose files cannot be read is left out whole, since part of its rows
could move a median unseen; the page and the command name it, and the other runs are shown.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.arms import COMPARABLE, Arm, summarize
from evaluation.curves import METHOD_NAMES, SCORED, method_name, read_run
from evaluation.headline import contaminated_metrics, fixed, median
from evaluation.metric_names import CLASS_ACCURACY, Metric, find_key, known_metrics
from evaluation.results import ResultRow, read_results


@dataclass(frozen=True)
class Entry:
    """One arm of one run.

    run: the run's folder, as seen from the leaderboard's.
    name: what the run calls itself.
    report: its page as seen from the leaderboard's; None if there is none.
    method: the objective of an aligned arm; empty for a base.
    """

    run: str
    name: str
    report: str | None
    method: str
    arm: Arm

    @property
    def remarks(self) -> list[str]:
        told = dict.fromkeys(remark for row in self.arm.rows for remark in row.remarks)
        if names := contaminated_metrics([self.arm]):
            told[f"{', '.join(names)} contaminated: the generator was rewarded by the same features"] = None
        return list(told)


@dataclass(frozen=True)
class Figure:
    """A median as shown, with the range over its seeds, or the standard error of a single one where that is known."""

    value: float
    text: str
    ends: tuple[str, str] | None = None
    error: str = ""


@dataclass(frozen=True)
class Group:
    """Arms that were measured in the same way, best first; `columns` are their metrics by name, the leading one first."""

    protocol: str
    n: int
    reference_n: int | None
    reference_hash: str | None
    extractor_fingerprint: str | None
    columns: Mapping[str, Metric] = field(repr=False)
    entries: Sequence[Entry] = field(repr=False)

    @property
    def leading(self) -> Metric | None:
        return next(iter(self.columns.values()), None)

    @property
    def of_prompts(self) -> bool:
        rows = [row for entry in self.entries for row in entry.arm.rows]
        return any(row.verdicts or find_key(row.metrics, "geneval") for row in rows)

    @property
    def hashes(self) -> list[tuple[str, str | None]]:
        """What identifies the reference and what looked at the images. Prompts are part of their judge's identity."""
        reference = [] if self.of_prompts and self.reference_hash is None else [("reference", self.reference_hash)]
        return [*reference, ("judge" if self.of_prompts else "extractor", self.extractor_fingerprint)]

    @property
    def against(self) -> str:
        """What the images were held against; empty where that was not recorded."""
        if not self.reference_n:
            return ""
        return f"for {self.reference_n} prompts" if self.of_prompts else f"against {self.reference_n} reference images"

    @property
    def measured(self) -> str:
        """How, in words, behind the protocol's name."""
        hashes = [f"{what} {short(digest)}" for what, digest in self.hashes]
        return ", ".join([f"n = {self.n} {self.against}".rstrip(), *hashes])

    def remarks(self) -> dict[str, int]:
        """What its rows remark, and on how many arms."""
        counts: dict[str, int] = {}
        for entry in self.entries:
            for remark in entry.remarks:
                counts[remark] = counts.get(remark, 0) + 1
        return counts


@dataclass(frozen=True)
class Leaderboard:
    """What a folder of runs holds.

    left_out: runs that could not be read, and why.
    remarks: what else a reader should know of the runs.
    """

    groups: Sequence[Group]
    left_out: Sequence[str] = ()
    remarks: Sequence[str] = ()

    @property
    def summary(self) -> str:
        runs = {entry.run for group in self.groups for entry in group.entries}
        arms = sum(len(group.entries) for group in self.groups)
        counted = [(arms, "arm"), (len(runs), "run"), (len(self.groups), "way of measuring")]
        plural = {"way of measuring": "ways of measuring"}
        words = [f"{n} {word if n == 1 else plural.get(word, word + 's')}" for n, word in counted]
        return f"{words[0]} of {words[1]}, {words[2]}"


def read_leaderboard(folder: Path) -> Leaderboard:
    """Every run in `folder`, at any depth: a folder with a run.json and a results.jsonl.

    Raises:
        FileNotFoundError: there is none; says what was looked for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a run's folder, nor one of runs: there is no such folder")
    left_out: list[str] = []
    found = list(_walk(folder, left_out))
    runs = [place for place, names in found if {"run.json", "results.jsonl"} <= names]
    if not runs:
        began = sum("run.json" in names for _, names in found)
        raise FileNotFoundError(
            f"{folder} is not a run's folder: it has no run.json; nor does it hold runs: no folder inside it has both a "
            "run.json and a results.jsonl" + (f" (only a run.json: {began})" if began else "")
        )
    remarks = [
        f"{_name(place, folder)} has a results.jsonl but no run.json: left out."
        for place, names in found
        if "results.jsonl" in names and "run.json" not in names
    ]
    entries: list[Entry] = []
    told: dict[str, list[str]] = {}
    for place in runs:
        name = _name(place, folder)
        try:
            with warnings.catch_warnings(record=True) as caught:  # of a last line cut short
                warnings.simplefilter("always")
                run, rows = read_run(place), read_results(place / "results.jsonl")
        except (ValueError, OSError) as error:
            left_out.append(str(error))
            continue
        remarks += [f"{warning.message}." for warning in caught]
        if (status := run.get("status", "finished")) != "finished":
            told.setdefault("Not finished, shown as far as they are", []).append(f"{name} ({status})")
        if not rows:
            told.setdefault("No evaluation yet", []).append(name)
        elif all(row.split != "report" for row in rows):
            told.setdefault("Only rows that chose settings, on which no claim rests", []).append(name)
        report = _name(place / "report.html", folder) if (place / "report.html").is_file() else None
        for arm in _arms(row for row in rows if row.split == "report"):
            entries.append(Entry(name, str(run.get("name") or ""), report, _method(run, place, arm), arm))
    remarks += [f"{words}: {', '.join(names)}." for words, names in told.items()]
    return Leaderboard(_groups(entries), left_out, remarks)


def _walk(folder: Path, unreadable: list[str]) -> Iterator[tuple[Path, set[str]]]:
    """Folders and the names of their files, in order; behind links too, each folder once."""
    seen: set[Path] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=lambda error: unreadable.append(str(error))):
        if (real := Path(place).resolve()) in seen:
            folders.clear()
            continue
        seen.add(real)
        if "run.json" in files and "push" in folders:
            folders.remove("push")  # what `align push` put together: a copy of this run's rows
        folders.sort()
        yield Path(place), set(files)


def _name(place: Path, folder: Path) -> str:
    return os.fsencode(place.relative_to(folder)).decode("utf-8", "replace")


def _arms(rows: Iterable[ResultRow]) -> Iterator[Arm]:
    """Rows of one arm that were measured in different ways are several arms."""
    found: dict[tuple[Any, ...], list[ResultRow]] = {}
    for row in rows:
        found.setdefault(_measure(row), []).append(row)
    for same in found.values():
        yield from summarize(same)


def _measure(row: ResultRow) -> tuple[Any, ...]:
    return tuple(getattr(row, name) for name in COMPARABLE)


def _method(run: Mapping[str, Any], place: Path, arm: Arm) -> str:
    if arm.label == "base":
        return ""
    if arm.label in METHOD_NAMES:
        return METHOD_NAMES[arm.label]
    if run.get("kind") in SCORED:
        return ""
    trained = arm.label == "aligned" or (run.get("config") or {}).get("objective")
    return method_name(run, place.name) if trained else ""


def _groups(entries: Iterable[Entry]) -> list[Group]:
    """By protocol, and of one protocol the most images first."""
    found: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        found.setdefault(_measure(entry.arm.rows[0]), []).append(entry)
    groups = []
    for key, members in sorted(found.items(), key=lambda item: (item[0][0], -item[0][1], *map(str, item[0][2:]))):
        columns = _columns([entry.arm for entry in members])
        leading = next(iter(columns.values()), None)
        ranked = sorted(
            members,
            key=lambda entry: (
                leading.rank(median(entry.arm, leading)) if leading else 0.0,
                entry.run,
                entry.arm.label,
                entry.arm.settings,
            ),
        )
        groups.append(Group(**dict(zip(COMPARABLE, key, strict=True)), columns=columns, entries=ranked))
    return groups


def _columns(arms: Sequence[Arm]) -> dict[str, Metric]:
    """Known metrics in their order, then those of any other name by their whole key. Single classes are left out."""
    rows = [row for arm in arms for row in arm.rows]
    columns, taken = {}, set()
    contaminated = contaminated_metrics(arms)
    known = known_metrics(row.metrics for row in rows)
    for metric in sorted(known, key=lambda metric: metric.name in contaminated):  # another one leads
        columns[metric.name] = metric.under([rows[0].protocol])
        taken |= {find_key(row.metrics, metric.name) for row in rows}
    for key in dict.fromkeys(key for row in rows for key in row.metrics):
        if key not in taken and not key.startswith(CLASS_ACCURACY):
            name = key.partition(f"_{rows[0].protocol}")[0]
            columns[name] = Metric(key, name)
    return columns


def figure(arm: Arm, metric: Metric) -> Figure | None:
    """None where not every row of the arm has the metric."""
    spread = arm.metric(metric.name)
    if spread is None:
        return None
    text = fixed(spread.median, metric)
    if not math.isfinite(spread.median):
        return Figure(spread.median, text)
    if len(spread.values) > 1:
        return Figure(spread.median, text, ends=(fixed(spread.min, metric), fixed(spread.max, metric)))
    (row,) = arm.rows
    error = row.stderr.get(str(find_key(row.metrics, metric.name)), math.nan)
    return Figure(spread.median, text, error=f"{error:.2g}" if math.isfinite(error) else "")


def best_text(figures: Iterable[Figure | None], metric: Metric) -> str | None:
    """The best value as it is shown, so that arms which look equal are equally good; None if none is defined."""
    defined = [known for known in figures if known and math.isfinite(known.value)]
    return min(defined, key=lambda known: metric.rank(known.value)).text if defined else None


def short(digest: str | None) -> str:
    """A hash in sixteen characters, any other name in full."""
    if digest is None:
        return "not recorded"
    return digest[:16] if re.fullmatch(r"[0-9a-f]{17,}", digest) else digest
