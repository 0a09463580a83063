"""The README's table of generators and objectives says nothing but what holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tiny_runs import FAMILIES, SHORT, checkpoint, data

from align.zoo_entries import zoo_entries
from recipes.cli import main

ROOT = Path(__file__).parents[2]
# column -> the option of `objective`, and the kind of data that it learns from
OBJECTIVES = {
    "CCA": ("cca", "images"),
    "GFT": ("gft", "images"),
    "DDO": ("ddo", "images"),
    "DPO": ("dpo", "pairs"),
    "GRPO": ("grpo", "prompts"),
    "VA-π": ("va_pi", "images"),
    "SFT": ("sft", "images"),
    "erasure": ("erasure", "images"),
}


def table() -> dict[str, dict[str, str]]:
    """{generator: {column: cell}}"""
    section = (ROOT / "README.md").read_text().split("## What runs on what\n")[1].split("\n## ")[0]
    header, _, *rows = [line.strip("| \n").split("|") for line in section.splitlines() if line.startswith("|")]
    columns = [cell.strip() for cell in header[1:]]
    found = {}
    for name, *cells in rows:
        key = re.search(r"`([^`]+)`", name)
        assert key, f"no generator named in {name!r}"
        cells += [""] * (len(columns) - len(cells))  # strip took the empty ones at the end
        found[key[1]] = dict(zip(columns, (cell.strip() for cell in cells), strict=True))
    return found


def test_it_has_every_generator_and_objective_and_three_kinds_of_cell() -> None:
    rows = table()
    assert set(rows) == {*FAMILIES, *zoo_entries()}
    for name, cells in rows.items():
        assert list(cells) == list(OBJECTIVES)
        for cell in cells.values():
            link = re.fullmatch(r"\[measured\]\(([^)#]+)\)", cell)
            assert link or cell in ("", "runs"), f"{name}: {cell!r}"
            assert not link or (ROOT / link[1]).exists(), f"{name}: no figures at {link[1]}"


RUNS = [(name, column) for name, cells in table().items() for column, cell in cells.items() if cell == "runs"]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "column"), RUNS, ids=[f"{name}-{column}" for name, column in RUNS])
def test_what_is_said_to_run_runs(family: str, column: str, tmp_path: Path) -> None:
    objective, kind = OBJECTIVES[column]
    made, settings = checkpoint(family, tmp_path)
    settings += ["data=images" if kind == "images" else "data=prompts", *data(kind, made, tmp_path)]
    if objective == "erasure":
        settings.append("data.negative_label=" + ("1" if made.num_classes is not None else "a picture of one"))
    run = tmp_path / "run"
    chosen = [f"generator={family}", f"objective={objective}", "name=tiny", f"output_dir={run}"]
    assert main(["train", *chosen, *settings, *SHORT]) == 0
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
