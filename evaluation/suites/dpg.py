"""DPG-Bench (Hu et al. 2024, arXiv 2403.05135): 1,065 long prompts with questions that depend on one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluation.suites.lines import damaged, table, text_lines
from evaluation.suites.questions import Question

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
CSV = "dpg_bench.csv"
Numbered = dict[
    int, tuple[int, list[int], Question]
]  # by the question's number: its line, its parents' numbers, itself


def read_dpg(path: Path) -> list[dict[str, Any]]:
    """Rows of the published dpg_bench.csv, or of the folder with it and prompts/<item>.txt, whose prompts then count.

    The kind of a question is its tuple's, such as `entity - whole`. All questions are read: the published code leaves out
    the first line of the table, so that one of the 1,065 prompts comes out otherwise there.
    """
    csv = path / CSV if path.is_dir() else path
    items: dict[str, tuple[str, Numbered]] = {}
    for number, cells in table(csv, COLUMNS):
        try:
            qid, parents, question = _question(cells)
            _, asked = items.setdefault(cells["item_id"], (cells["text"].strip(), {}))
            if qid in asked:
                raise ValueError(f"has question {qid} of {cells['item_id']} a second time")
        except ValueError as error:
            raise damaged(csv, number, str(error)) from error
        asked[qid] = number, parents, question
    texts = _prompt_files(path / "prompts", set(items)) if path.is_dir() else {}
    return [
        {"id": item, "prompt": texts.get(item, text), "questions": _linked(csv, item, asked)}
        for item, (text, asked) in items.items()
    ]


def _question(cells: dict[str, str]) -> tuple[int, list[int], Question]:
    numbers = [cells["proposition_id"], *cells["dependency"].split(",")]
    try:
        qid, *parents = [int(text) for text in numbers]
    except ValueError:
        raise ValueError(
            f"has proposition_id {cells['proposition_id']!r} and dependency {cells['dependency']!r}; whole numbers are needed, of the latter separated by commas"
        ) from None
    for column in ("item_id", "text", "question_natural_language"):
        if not cells[column].strip():
            raise ValueError(f"has nothing in the column {column}")
    kind = cells["tuple"].partition("(")[0].strip().rstrip("- ")
    return qid, [parent for parent in parents if parent != 0], Question(cells["question_natural_language"], kind=kind)


def _linked(csv: Path, item: str, asked: Numbered) -> list[dict[str, Any]]:
    """Questions as rows list them: parents by place."""
    places = {qid: place for place, qid in enumerate(asked)}
    linked = []
    for qid, (line, parents, question) in asked.items():
        if strange := [parent for parent in parents if parent not in places or parent == qid]:
            raise damaged(
                csv,
                line,
                f"depends on question {strange[0]}, which is no other one of {item}; it has {', '.join(map(str, places))}",
            )
        depends_on = tuple(places[parent] for parent in parents)
        linked.append(Question(question.text, question.answers, depends_on, question.kind).to_row())
    return linked


def _prompt_files(folder: Path, items: set[str]) -> dict[str, str]:
    if not folder.is_dir():
        return {}
    files = {file.stem: file for file in folder.glob("*.txt")}
    if differing := sorted(items ^ files.keys()):
        raise ValueError(
            f"{folder} holds {len(files)} prompts and {CSV} {len(items)}; {differing[0]!r} is in one of them only. Take both from one release"
        )
    texts = {item: " ".join(line for _, line in text_lines(file)) for item, file in files.items()}
    if empty := [item for item, text in texts.items() if not text]:
        raise ValueError(f"{files[empty[0]]} is empty; take it from the release again")
    return texts
