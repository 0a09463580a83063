"""A leaderboard's page, and the files that `align report` writes of a folder of runs."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from evaluation.cells import CELLS
from evaluation.files import write_atomically
from evaluation.headline import number
from evaluation.leaderboard import Entry, Figure, Group, Leaderboard, best_text, figure, short
from evaluation.leaderboard_tables import latex, latex_table, markdown, markdown_table
from evaluation.metric_names import Metric
from evaluation.pages import templates


def write_leaderboard(board: Leaderboard, folder: Path) -> list[Path]:
    """Write leaderboard.html, leaderboard.md and leaderboard.tex into `folder`, and say where."""
    texts = {"html": leaderboard_page(board, Path(folder).resolve().name), "md": markdown(board), "tex": latex(board)}
    paths = []
    for suffix, text in texts.items():
        paths.append(Path(folder) / f"leaderboard.{suffix}")
        write_atomically(paths[-1], text.encode())
    return paths


def leaderboard_page(board: Leaderboard, name: str) -> str:
    """One file that fetches nothing; its only script is told to the browser by its hash."""
    environment = templates()
    script = environment.get_template("leaderboard_script.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    groups = [_group_entry(group, index) for index, group in enumerate(board.groups, start=1)]
    return environment.get_template("leaderboard.html.j2").render(
        name=name, board=board, groups=groups, script=Markup(script), script_hash=digest
    )


def _group_entry(group: Group, index: int) -> dict[str, Any]:
    columns = list(group.columns.items())
    figures = [[figure(entry.arm, metric) for _, metric in columns] for entry in group.entries]
    best = [best_text(known, metric) for known, (_, metric) in zip(zip(*figures, strict=True), columns, strict=True)]
    shown = {
        "search": any(entry.arm.search for entry in group.entries),
        "filters": any(entry.arm.filters for entry in group.entries),
        "remarks": any(entry.remarks for entry in group.entries),
    }
    return {
        "group": group,
        "hashes": [(what, digest or "", short(digest)) for what, digest in group.hashes],
        "columns": columns,
        "shown": shown,
        "rows": [_row(entry, known, columns, best) for entry, known in zip(group.entries, figures, strict=True)],
        "question": _question(group, group.leading) if group.leading else None,
        "cells": CELLS,
        "markdown": markdown_table(group),
        "latex": latex_table(group, index),
    }


def _row(
    entry: Entry, figures: Sequence[Figure | None], columns: Sequence[tuple[str, Metric]], best: Sequence[str | None]
) -> dict[str, Any]:
    arm = entry.arm
    return {
        **_identity(entry),
        "words": _words(entry, arm.settings),
        "guided": arm.guidance_scale != 1,
        "tuned": arm.reshaped,
        "figures": [_cell(known, top) for known, top in zip(figures, best, strict=True)],
        "forwards": "" if arm.forwards_per_image is None else f"{arm.forwards_per_image:.4g}",
        "rate": "" if arm.images_per_second is None else number(arm.images_per_second),
    }


def _identity(entry: Entry) -> dict[str, Any]:
    return {
        "entry": entry,
        "href": quote(os.fsencode(entry.report)) if entry.report else None,
        "name": entry.name if entry.name != entry.run else "",
    }


def _words(entry: Entry, settings: str) -> str:
    """What the page's text box searches."""
    return " ".join([entry.run, entry.name, entry.arm.label, entry.method, settings]).casefold()


def _cell(known: Figure | None, best: str | None) -> dict[str, Any] | None:
    if known is None:
        return None
    spread = "–".join(known.ends) if known.ends else f"± {known.error}" if known.error else ""
    value = repr(known.value) if math.isfinite(known.value) else ""
    return {"value": value, "text": known.text, "spread": spread, "best": known.text == best}


def _question(group: Group, metric: Metric) -> list[dict[str, Any]]:
    """For every model four cells, each with its best arm by the leading metric; searches at test time are none of it."""
    models: dict[tuple[str, str], list[Entry]] = {}
    for entry in group.entries:
        if entry.arm.drawn_once:
            models.setdefault((entry.run, entry.arm.label), []).append(entry)
    chosen = [[cell.best([entry.arm for entry in own], metric) for cell in CELLS.values()] for own in models.values()]
    figures = [[figure(arm, metric) if arm else None for arm, _ in cells] for cells in chosen]
    best = [best_text(of_column, metric) for of_column in zip(*figures, strict=True)]
    rows = []
    for entries, cells, known in zip(models.values(), chosen, figures, strict=True):
        settings = ["" if arm is None or arm.plain else arm.settings.removeprefix("no guidance, ") for arm, _ in cells]
        rows.append(
            {
                **_identity(entries[0]),
                "words": _words(entries[0], " ".join(settings)),
                "cells": [
                    (_cell(one, top), words, count)
                    for one, top, words, (_, count) in zip(known, best, settings, cells, strict=True)
                ],
            }
        )
    return rows
