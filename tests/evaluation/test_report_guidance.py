"""A run's page on the question of guidance: four cells, what alignment is worth, and metrics that were rewarded."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from report_page import Page

from evaluation.arms import summarize
from evaluation.metric_names import METRICS
from evaluation.report import write_report
from evaluation.report_guidance import guidance_section
from evaluation.results import ResultRow, append_result

FID = METRICS[0]
SEEDS = (1001, 1002)


def rows(label: str, *fids: float, accuracy: float = 0.8, **settings: Any) -> list[ResultRow]:
    """One a seed."""
    others = settings.pop("metrics", {})
    return [
        ResultRow(
            label=label,
            seed=seed,
            n=2000,
            protocol="toy",
            metrics={"fid_toy_2k": fid, "accuracy_toy_2k": accuracy} | others,
            **settings,
        )
        for seed, fid in zip(SEEDS, fids, strict=False)
    ]


def study() -> list[ResultRow]:
    return [
        *rows("base", 16.0, 16.4),
        *rows("base", 12.5, 12.9, temperature=0.8),
        *rows("base", 12.1, 12.3, temperature=0.7, top_k=50),
        *rows("base", 8.0, 8.4, guidance_scale=2.0, accuracy=0.9),
        *rows("base", 11.0, 11.4, guidance_scale=3.0, accuracy=0.95),
        *rows("base", 7.0, 7.2, guidance_scale=2.0, top_p=0.9),
        *rows("base", 1.0, 1.2, search="best of 4 by reward"),
        *rows("aligned", 10.0, 10.4, accuracy=0.85),
    ]


def write(folder: Path, items: Sequence[ResultRow]) -> Page:
    config = {"objective": {"_target_": "align.objectives.cca.cca"}}
    (folder / "run.json").write_text(json.dumps({"name": "toy/cca", "status": "finished", "config": config}))
    for item in items:
        append_result(folder / "results.jsonl", item)
    return Page(write_report(folder))


def tables(page: Page) -> list[list[list[str]]]:
    """The cells' texts of every table of the section, parts of a cell divided by " / "."""
    found = []
    for table in re.findall(r'<table class="question[^"]*">(.*?)</table>', page.html, re.DOTALL):
        lines = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
        cells = [re.findall(r"<t[hd]>(.*?)</t[hd]>", line, re.DOTALL) for line in lines]
        found.append([[_text(cell) for cell in line] for line in cells])
    return found


def _text(cell: str) -> str:
    return unescape(" / ".join(part for part in re.split(r"<[^>]+>", cell) if part.strip()))


def test_the_four_cells_hold_the_best_of_each_kind(tmp_path: Path) -> None:
    page = write(tmp_path, study())
    assert "With or without guidance FID, lower is better" in page.text
    cells, equivalents = tables(page)
    assert cells == [
        ["", *(f"{g} / {s}" for g in ("no guidance", "guidance") for s in ("T=1, no filter", "temperature or filter"))],
        [
            "base",
            "16.20 / 16.00–16.40",
            "12.20 / 12.10–12.30 / T=0.7, top-k 50",
            "8.20 / 8.00–8.40 / guidance 2, T=1",
            "7.10 / 7.00–7.20 / guidance 2, T=1, top-p 0.9",
        ],
        ["CCA", "10.20 / 10.00–10.40", "not measured", "not measured", "not measured"],
    ]
    # FID falls from 16.2 to 8.2 between scales 1 and 2, so that 10.2 is passed at 1 + 6 / 8; accuracy rises by 0.1 there
    assert equivalents[1:] == [["CCA", "FID", "10.20", "1.75"], ["CCA", "accuracy", "0.850", "1.50"]]


@pytest.mark.parametrize(
    ("fid", "scale"), [(16.2, "off"), (5.0, "none tried (nearest: 2)"), (20.0, "none tried (nearest: 1)")]
)
def test_where_no_scale_is_worth_it(tmp_path: Path, fid: float, scale: str) -> None:
    items = [row for row in study() if row.label == "base"] + rows("aligned", fid, fid)
    _, equivalents = tables(write(tmp_path, items))
    assert equivalents[1] == ["CCA", "FID", f"{fid:.2f}", scale]


def test_frontiers_of_the_split_with_more_arms_and_whose_seeds_they_are(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "select").mkdir()
    priced = [
        *rows("base", 16.0, forwards_per_image=49.0),
        *rows("base", 8.0, guidance_scale=2.0, forwards_per_image=98.0),
        *rows("aligned", 9.0, forwards_per_image=49.0),
    ]
    page = write(tmp_path / "report", priced)
    assert "FID against forwards" in page.text
    assert "schedules or intervals. Report seeds." in page.text
    grid = [
        row
        for scale in (1.0, 1.5, 2.0, 3.0)
        for row in rows("base", 20 / scale, guidance_scale=scale, split="select", forwards_per_image=49.0 * scale)
    ]
    page = write(tmp_path / "select", [*grid, *priced])
    assert "Selection seeds: they chose settings" in page.text
    assert "base, guidance 3, T=1: 147, 6.67" in page.html


def test_equivalents_come_from_the_larger_split_or_else_from_the_other() -> None:
    def told(*items: list[ResultRow]) -> list[tuple[str, str]]:
        arms = summarize(row for of_arm in items for row in of_arm)
        section = guidance_section(arms, [arm for arm in arms if arm.split == "report"], FID, {})
        assert section is not None
        return [(one["value"], one["scale"]) for one in section["equivalents"] if one["metric"] == "FID"]

    report = [rows("base", 16.0), rows("base", 8.0, guidance_scale=2.0), rows("aligned", 12.0)]
    grid = [
        rows("base", 16.0, split="select"),
        rows("base", 11.0, guidance_scale=2.0, split="select"),
        rows("base", 9.0, guidance_scale=3.0, split="select"),
        rows("aligned", 10.0, split="select"),
    ]
    assert told(*grid, *report) == [("10.00", "2.50")]
    assert told(*grid[:2], *report) == [("12.00", "1.50")]
    assert told(*[arm for arm in grid if arm[0].label == "base"], *report) == [("12.00", "1.50")]


def test_no_section_where_one_cell_says_all(tmp_path: Path) -> None:
    page = write(tmp_path, [*rows("base", 16.0), *rows("base", 9.0, search="best of 4 by reward")])
    assert "With or without guidance" not in page.text
    assert guidance_section([], [], None, {}) is None


def test_a_label_with_nothing_in_any_cell_has_no_row() -> None:
    arms = summarize([*rows("base", 16.0), *rows("aligned", 9.0), *rows("sft", 1.0, search="best of 4 by reward")])
    section = guidance_section(arms, arms, FID, {})
    assert section is not None
    assert [row["name"] for row in section["rows"]] == ["base", "aligned"]


# ---- contaminated metrics


def rewarded(*contaminated: str) -> list[ResultRow]:
    def dinov2(value: float) -> dict[str, float]:
        return {"fid-dinov2_toy_2k": value}

    return [
        *rows("base", 16.0, 16.4, metrics=dinov2(300.0)),
        *rows("base", 8.0, 8.4, guidance_scale=2.0, metrics=dinov2(200.0)),
        *rows("aligned", 2.0, 2.4, metrics=dinov2(250.0), contaminated=contaminated),
    ]


CONTAMINATED = (
    "Contaminated: FID. The generator was rewarded by the very features that these are measured in, so that a gain in them "
    "may be no gain to the eye; this page leads with FID (dinov2) instead."
)


def test_the_page_leads_with_a_metric_that_was_not_rewarded(tmp_path: Path) -> None:
    page = write(tmp_path, rewarded("fid"))
    assert "CCA lowers guidance-free FID (dinov2) from 300 to 250 (" in page.text
    assert CONTAMINATED in page.text
    assert "With or without guidance FID (dinov2), lower is better" in page.text
    assert "FID (dinov2) by guidance scale" in page.text
    cells, equivalents = tables(page)
    assert cells[1][1] == "300.00 / 300.00–300.00"
    assert ["CCA", "FID (dinov2)", "250.00", "1.50"] in equivalents


def test_without_a_reward_it_leads_with_fid_as_ever(tmp_path: Path) -> None:
    page = write(tmp_path, rewarded())
    assert "CCA lowers guidance-free FID from 16.2 to 2.20 (" in page.text
    assert "Contaminated" not in page.text


def test_where_all_were_rewarded_the_note_says_so(tmp_path: Path) -> None:
    page = write(tmp_path, rewarded("fid", "fid-dinov2", "accuracy"))
    assert "CCA lowers guidance-free FID from 16.2 to 2.20 (" in page.text
    assert "Contaminated: FID, FID (dinov2), accuracy." in page.text
    assert "may be no gain to the eye, and no other metric was measured." in page.text


def test_a_run_without_base_tells_it_too(tmp_path: Path) -> None:
    page = write(tmp_path, [row for row in rewarded("fid") if row.label == "aligned"])
    assert "CCA has a guidance-free FID (dinov2) of 250" in page.text
    assert CONTAMINATED in page.text
