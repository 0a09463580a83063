"""The one door to prompt suites: files of the user's, never downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evaluation.suites.compbench import read_compbench
from evaluation.suites.dpg import read_dpg
from evaluation.suites.geneval2 import read_geneval2
from evaluation.suites.lines import damaged, objects, table, text_lines
from evaluation.suites.questions import read_questions

Rows = list[dict[str, Any]]


def read_parti(path: Path) -> Rows:
    """Rows of the published PartiPrompts.tsv (Yu et al. 2022, arXiv 2206.10789): 1,632 prompts; the tag is the category."""
    return [
        {
            "id": f"{index:05d}",
            "prompt": cells["Prompt"].strip(),
            "tag": cells["Category"],
            "challenge": cells["Challenge"],
        }
        for index, (_, cells) in enumerate(table(path, ("Prompt", "Category", "Challenge"), tabs=True))
    ]


def read_own(path: Path) -> Rows:
    """Rows of a .txt with a prompt a line, or of a .jsonl with an object a line, of which the text `prompt` is needed.

    `id` is the line's place if there is none. `tag`, a text, groups rows; `questions` are as `read_questions` has them;
    other columns are kept, for the rewards that look at them.
    """
    if path.suffix == ".txt":
        return [{"id": f"{index:05d}", "prompt": prompt} for index, (_, prompt) in enumerate(text_lines(path))]
    if path.suffix != ".jsonl":
        raise ValueError(f"{path} is no prompt file; .txt (a prompt a line) and .jsonl (a column 'prompt') are read")
    rows: Rows = []
    for number, record in objects(path):
        if not isinstance(record.get("prompt"), str):
            raise damaged(
                path, number, f"has {', '.join(record) or 'nothing'}; a text in the column 'prompt' is needed"
            )
        if not isinstance(record.get("tag", ""), str):
            raise damaged(path, number, f"has the tag {record['tag']!r}; it must be a text")
        try:
            read_questions(record)
        except ValueError as error:
            raise damaged(path, number, f"is refused: {error}") from error
        rows.append({"id": f"{len(rows):05d}", **record})
    return rows


SUITES: dict[str, Callable[[Path], Rows]] = {
    "geneval2": read_geneval2,
    "dpg": read_dpg,
    "compbench": read_compbench,
    "parti": read_parti,
    "prompts": read_own,
}


def read_suite(kind: str, path: Path | str) -> Rows:
    """Dataset rows of a suite, each with `prompt` and `id`; with `tag` where the suite has categories, and with
    `questions` where a VQA judge is to answer some.

    Args:
        kind: `geneval2`, `dpg`, `compbench`, `parti`, or `prompts` for a list of one's own.
        path: the suite's file or folder; docs/prompt-suites.md names it.

    Raises:
        FileNotFoundError, ValueError: an unknown kind, no such file, what in it is damaged, by line, no prompts, an empty
            one, or an id twice.
    """
    if kind not in SUITES:
        raise ValueError(f"unknown prompt suite {kind!r}; known: {', '.join(SUITES)}")
    rows = SUITES[kind](Path(path))
    if not rows:
        raise ValueError(f"{path} holds no prompts")
    seen: set[str] = set()
    for index, row in enumerate(rows):
        if not row["prompt"].strip():
            raise ValueError(f"prompt {index} (counted from 0) of {path} is empty")
        if str(row["id"]) in seen:
            raise ValueError(f"{path} has the id {row['id']!r} twice; every prompt needs its own")
        seen.add(str(row["id"]))
    return rows
