"""The verdicts behind GenEval's numbers: what went wrong in an arm's images, and how sure its numbers are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.arms import Arm
from evaluation.geneval.summary import summarize_verdicts
from evaluation.results import read_json_lines

Record = Mapping[str, Any]

ALL = "all"
OTHER = "other"
# Faults of demands (see evaluation/geneval/scorer.py) in a reader's words, in the order in which demands are looked at: an
# image counts once, for the first of its faults. `target` and `skipped` follow from faults of other demands.
REASONS = {
    "number": {"missing": "missing", "too few": "wrong count", "too many": "wrong count"},
    "color": {"color": "wrong colour"},
    "position": {"position": "wrong place"},
}
CONSEQUENCES = ("target", "skipped")


def read_verdicts(run_dir: Path, arm: Arm) -> list[Record]:
    """The verdicts on all images of an arm, of all its seeds; none unless every row has its file, inside of `run_dir`.

    Raises:
        ValueError: a line is no verdict; names the file and the line.
    """
    paths = [(run_dir / str(row.verdicts)).resolve() for row in arm.rows if row.verdicts]
    # Only files of this run, as for pictures; and a part of the seeds is another number than the arm's.
    present = [path for path in paths if path.is_file() and path.is_relative_to(run_dir.resolve())]
    if len(present) < len(arm.rows):
        return []
    records: list[Record] = []
    for path in present:
        for line, record in read_json_lines(path):
            try:
                _check(record)
            except ValueError as error:
                raise ValueError(f"{path}:{line}: {error}") from error
            records.append(record)
    return records


def _check(record: Record) -> None:
    for key, kind in {"tag": str, "prompt": str, "correct": bool, "credit": int | float, "faults": list}.items():
        if not isinstance(record.get(key), kind):
            raise ValueError(
                f"no verdict of GenEval's: {key} is {record.get(key)!r:.80}; evaluate again to write it anew"
            )
    for fault in record["faults"]:
        named = (fault.get("kind"), fault.get("fault")) if isinstance(fault, Mapping) else (None, fault)
        if named[1] not in (*CONSEQUENCES, *REASONS.get(str(named[0]), ())):
            known = ", ".join(f"{kind}: {', '.join(names)}" for kind, names in REASONS.items())
            raise ValueError(f"unknown fault {fault!r:.80}; known: {known}, and of any kind: {', '.join(CONSEQUENCES)}")


def pooled_intervals(records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """95 % intervals over prompts of all images together, by metric: of several seeds too, which share their prompts.

    Empty without records.
    """
    if not records:
        return {}
    tags, prompts = ([record[key] for record in records] for key in ("tag", "prompt"))
    correct, credit = [record["correct"] for record in records], [record["credit"] for record in records]
    intervals = summarize_verdicts(tags, prompts, correct, credit).intervals
    named = {"geneval" if name == "overall" else name: ends for name, ends in intervals.items()}
    if all("held_out_correct" in record for record in records):
        second = [bool(record["held_out_correct"]) for record in records]
        overall = summarize_verdicts(tags, prompts, second, second).intervals.get("overall")
        named |= {"held-out": overall} if overall else {}
    return named


def reason(record: Record) -> str | None:
    """Why an image is wrong, in one of the words of REASONS; OTHER if its faults do not tell, None if it is correct."""
    if record["correct"]:
        return None
    for kind, words in REASONS.items():
        for fault in record["faults"]:
            if fault["kind"] == kind and fault["fault"] in words:
                return words[fault["fault"]]
    return OTHER


def failures(records: Iterable[Record]) -> dict[str, dict[str, float]]:
    """Shares of images by tag (ALL: of all of them), then by reason, in the order of REASONS; reasons that occur."""
    images: dict[str, int] = {}
    counts: dict[str, dict[str, int]] = {}
    for record in records:
        for tag in (ALL, record["tag"]):
            images[tag] = images.get(tag, 0) + 1
            of_tag = counts.setdefault(tag, {})
            if why := reason(record):
                of_tag[why] = of_tag.get(why, 0) + 1
    return {tag: {why: of_tag[why] / images[tag] for why in ordered_reasons(of_tag)} for tag, of_tag in counts.items()}


def ordered_reasons(found: Iterable[str]) -> list[str]:
    order = [*dict.fromkeys(word for words in REASONS.values() for word in words.values()), OTHER]
    return sorted(set(found), key=order.index)
