"""The lines of a suite's file with their numbers, from 1; whatever is damaged is refused by its line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file without the spaces around them; blank ones are skipped.

    Raises:
        FileNotFoundError, ValueError: no such file, or a line that is not UTF-8.
    """
    for number, line in enumerate(_decoded(path), start=1):
        if line.strip():
            yield number, line.strip()


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a .jsonl, one a line. A last line that was cut short is refused too: a suite is whole or none.

    Raises:
        FileNotFoundError, ValueError: no such file, or a line that is no object.
    """
    for number, line in text_lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise damaged(path, number, f"is not JSON ({error}): {line[:60]!r}") from error
        if not isinstance(record, dict):
            raise damaged(path, number, f"is {line[:60]!r}; an object {{...}} is needed")
        yield number, record


def table(path: Path, columns: Sequence[str], *, tabs: bool = False) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table with a head line, each with the number of its last line and these columns at least.

    Args:
        tabs: cells are separated by tabs and quotes mean nothing; otherwise as CSV has it.

    Raises:
        FileNotFoundError, ValueError: no such file, a column that it lacks, or a row of another length.
    """
    plain: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    reader = csv.reader(_decoded(path), strict=True, **plain)
    try:
        head = next(reader, [])
        if missing := [column for column in columns if column not in head]:
            raise damaged(path, 1, f"names the columns {', '.join(head)}; {', '.join(missing)} must be among them")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(head):
                raise damaged(path, reader.line_num, f"has {len(cells)} cells; the head line names {len(head)}")
            yield reader.line_num, dict(zip(head, cells, strict=True))
    except csv.Error as error:
        raise damaged(path, reader.line_num, f"is no row of a table ({error})") from error


def damaged(path: Path, number: int, what: str) -> ValueError:
    return ValueError(f"{path}, line {number} {what}")


def _decoded(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; docs/prompt-suites.md says where each suite's comes from")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise damaged(path, number, f"is not UTF-8 ({error}); save the file as that") from error
