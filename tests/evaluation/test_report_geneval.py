"""The page of a study of text to image: every kind of prompt before and after, why images failed, prompts under images."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from report_page import Page
from report_runs import ARMS, write_run

from align.images import save_grid
from evaluation.arms import summarize
from evaluation.geneval.summary import summarize_verdicts
from evaluation.geneval_report import geneval_section
from evaluation.headline import assign_roles, headline_metric
from evaluation.report import write_report
from evaluation.report_verdicts import failures, read_verdicts, reason
from evaluation.results import ResultRow, append_result

NAMES = {"aligned": "GRPO", "sft": "SFT"}
SUFFIX = "geneval-toy_4"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("runs") / "shapes"
    arms = [arm for arm in ARMS if arm[3] == "report" and arm[0] in ("base", "aligned") and not arm[4]]
    return Page(write_report(write_run(folder, per_tag=2, seeds=(1001, 1002), arms=arms)))


def verdict(
    prompt: str, correct: bool, *faults: tuple[str, str], tag: str = "colors", **more: object
) -> dict[str, Any]:
    told = [{"kind": kind, "fault": fault, "label": "cat"} for kind, fault in faults]
    return {"tag": tag, "prompt": prompt, "correct": correct, "credit": float(correct), "faults": told, **more}


def row(label: str, overall: float, *, seed: int = 1, **changes: Any) -> ResultRow:
    metrics = {f"geneval_{SUFFIX}": overall, f"colors_{SUFFIX}": overall - 0.1}
    return ResultRow(**{"label": label, "seed": seed, "n": 4, "protocol": "geneval-toy", "metrics": metrics} | changes)


def section(run_dir: Path, rows: Sequence[ResultRow]) -> Mapping[str, Any]:
    arms = summarize(rows)
    metric = headline_metric(arms)
    assert metric is not None
    found = geneval_section(run_dir, arms, assign_roles(arms, metric), metric, NAMES)
    assert found is not None
    return found


def write_verdicts(folder: Path, name: str, verdicts: Sequence[object]) -> str:
    (folder / name).write_text("".join(f"{json.dumps(item)}\n" for item in verdicts))
    return name


# ---- the page


def test_the_page_needs_nothing_from_outside(page: Page) -> None:
    assert not re.search(r"https?:|url\(|@import|<script", page.html)
    assert all(value.startswith("data:") for value in page.values("src", "href"))


def test_a_score_goes_by_its_protocols_name(page: Page) -> None:
    assert "GRPO raises guidance-free geneval-shapes from" in page.text
    assert "geneval-shapes by kind of prompt" in page.text
    assert "geneval-shapes by guidance scale (higher is better)" in page.text
    plain = [page.text[max(0, hit.start() - 10) : hit.end() + 8] for hit in re.finditer("GenEval", page.text)]
    assert plain, "the remarks name the rules"
    assert all("GenEval's rules" in told or "published GenEval" in told for told in plain)


def test_only_the_protocol_geneval_gives_geneval(tmp_path: Path) -> None:
    named = {"protocol": "geneval", "metrics": {"geneval_geneval_4": 0.5, "colors_geneval_4": 0.5}}
    append_result(tmp_path / "results.jsonl", row("base", 0.5, **named))
    text = Page(write_report(tmp_path)).text
    assert "base, no guidance, T=1: GenEval 0.500" in text
    assert "GenEval by kind of prompt" in text
    assert "not comparable" not in text


def test_nothing_of_images_of_classes_is_said(page: Page) -> None:
    assert not re.search(r"FID|reference images|extractor|images from the same model", page.text)
    assert "12 generated images per row for 12 prompts, judge" in page.text
    assert "± is the standard error of one row: other prompts." in page.text


def test_kinds_of_prompt_have_a_table_of_their_own(page: Page) -> None:
    assert page.text.count("arm geneval-shapes held-out judge single object two object counting colors position") == 1
    first = page.text[: page.text.index("by kind of prompt")]
    assert "held-out judge" in first
    assert "color attribution" not in first, "the main table keeps to what is claimed"
    assert page.text.count("partial credit") == 2  # every row, and what it means
    assert "GRPO against base both without guidance, paired by seed" in page.text


def test_prompts_stand_in_the_text_for_those_who_do_not_see_the_picture(page: Page) -> None:
    alts = page.values("alt")
    assert len(alts) == 3
    assert alts[2].startswith("Grid of samples: GRPO, no guidance, T=1. Prompts: a photo of a ")
    assert page.values("class").count("c-aligned captioned") == 1
    assert "width: clamp(" in page.html


def test_few_prompts_are_told(tmp_path: Path) -> None:
    prompts = [*(f"prompt {number}" for number in range(15)), "prompt 0"]
    save_grid(torch.zeros(16, 4, 4, 3, dtype=torch.uint8), tmp_path / "grid.png", columns=8, captions=prompts)
    append_result(tmp_path / "results.jsonl", row("base", 0.5, samples="grid.png"))
    (alt,) = Page(write_report(tmp_path)).values("alt")
    save_grid(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), tmp_path / "grid.png", columns=1, captions=["a"])
    assert "pixelated" not in Page(write_report(tmp_path)).values("class"), "letters are scaled smoothly"
    assert alt.endswith("prompt 10; prompt 11; and 3 more")


# ---- numbers


def test_geneval_as_a_reward_has_no_section_of_verdicts(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text('{"tag": null, "prompt": "a"}\n')
    arms = summarize(
        [row("base", 0.5, protocol="prompts-rows", metrics={"geneval_prompts-rows_4": 0.5}, verdicts="v.jsonl")]
    )
    metric = headline_metric(arms)
    assert geneval_section(tmp_path, arms, assign_roles(arms, metric), metric, NAMES) is None


def test_arms_without_a_part_in_the_claim_are_shown(tmp_path: Path) -> None:
    found = section(tmp_path, [row("base", 0.5, guidance_scale=0.5)])
    assert [arm["cells"][0]["median"] for arm in found["arms"]] == ["0.500"]


def test_one_seed_shows_its_own_interval(tmp_path: Path) -> None:
    rows = [row("base", 0.5, intervals={f"geneval_{SUFFIX}": (0.41, 0.58)}), row("aligned", 0.7)]
    found = section(tmp_path, rows)
    assert [column.title for column in found["columns"]] == ["geneval-toy", "colors"]
    assert found["arms"][0]["cells"] == [
        {"median": "0.500", "range": "", "interval": "[0.410, 0.580]"},
        {"median": "0.400", "range": "", "interval": ""},
    ]
    assert found["changes"][0] == {"median": "+0.200", "range": "", "verdict": "one seed", "css": ""}


def test_several_seeds_show_their_range_and_the_interval_of_all_their_images(tmp_path: Path) -> None:
    first = [verdict(f"p{index}", index < 3, held_out_correct=index < 2) for index in range(6)]
    second = [verdict(f"p{index}", index < 4, held_out_correct=index < 3) for index in range(6)]
    own = {f"geneval_{SUFFIX}": (0.0, 1.0)}
    metrics = {f"geneval_{SUFFIX}": 0.5, f"held-out_{SUFFIX}": 0.3, f"colors_{SUFFIX}": 0.5}
    rows = [
        row("base", 0.5, seed=seed, intervals=own, metrics=metrics, verdicts=write_verdicts(tmp_path, f"{seed}", lines))
        for seed, lines in ((1, first), (2, second))
    ]
    both = [*first, *second]
    tags, prompts = ["colors"] * 12, [item["prompt"] for item in both]
    for key, cell in (("correct", 0), ("held_out_correct", 1)):
        right = [item[key] for item in both]
        low, high = summarize_verdicts(tags, prompts, right, right).intervals["overall"]
        assert 0 < low < high < 1
        shown = section(tmp_path, rows)["arms"][0]["cells"][cell]
        assert shown["interval"] == f"[{low:.3f}, {high:.3f}]"
    assert section(tmp_path, rows)["arms"][0]["cells"][0]["range"] == "0.500–0.500"


def test_several_seeds_without_all_verdicts_show_no_interval(tmp_path: Path) -> None:
    ends = {f"geneval_{SUFFIX}": (0.4, 0.6)}
    known = write_verdicts(tmp_path, "1", [verdict("p", True), verdict("q", False)])
    rows = [row("base", 0.5, seed=seed, intervals=ends, verdicts=known if seed == 1 else None) for seed in (1, 2)]
    found = section(tmp_path, rows)
    assert found["arms"][0]["cells"][0]["interval"] == ""
    assert found["failures"] is None


def test_a_change_is_claimed_where_all_seeds_agree(tmp_path: Path) -> None:
    def measured(label: str, seed: int, overall: float, colors: float) -> ResultRow:
        return row(label, 0, seed=seed, metrics={f"geneval_{SUFFIX}": overall, f"colors_{SUFFIX}": colors})

    rows = [measured("base", 1, 0.50, 0.5), measured("base", 2, 0.52, 0.6)]
    rows += [measured("aligned", 1, 0.60, 0.3), measured("aligned", 2, 0.66, 0.7)]
    better, unclear = section(tmp_path, rows)["changes"]
    assert better == {"median": "+0.120", "range": "+0.100 to +0.140", "verdict": "better", "css": "better"}
    assert (unclear["range"], unclear["verdict"], unclear["css"]) == ("−0.200 to +0.100", "no clear change", "")


def test_the_chart_holds_the_claims_arms_with_their_spreads(tmp_path: Path) -> None:
    ends = {f"geneval_{SUFFIX}": (0.4, 0.6)}
    rows = [row(label, 0.5 + seed / 100, seed=seed) for label in ("base", "sft") for seed in (1, 2)]
    rows += [row("base", 0.6, guidance_scale=2.0), row("aligned", 0.7, intervals=ends)]
    svg = section(tmp_path, rows)["chart"]
    assert svg.count('<g class="mark c-base">') == 2
    assert svg.count('<g class="mark hollow c-base">') == 2, "the base with guidance"
    assert svg.count('<g class="mark c-aligned">') == 2
    assert "c-sft" not in svg
    assert svg.count('class="spread"') == 2, "the only arm of several seeds"
    assert "<title>base, no guidance, T=1: colors 0.415, seeds 0.410 to 0.420</title>" in svg
    assert "<title>GRPO, no guidance, T=1: geneval-toy 0.700, 95 % over prompts 0.400 to 0.600</title>" in svg
    assert svg.index(">geneval-toy</text>") < svg.index(">colors</text>")


def test_one_evaluation_of_another_label(tmp_path: Path) -> None:
    found = section(tmp_path, [row("janus", 0.8)])
    assert [arm["name"] for arm in found["arms"]] == ["janus"]
    assert found["changes"] is None
    assert "c-other" in found["chart"]


def test_seeds_that_do_not_meet_and_scores_that_are_undefined(tmp_path: Path) -> None:
    for item in (row("base", 0.5), row("aligned", 0.7, seed=2), row("sft", float("nan"))):
        append_result(tmp_path / "results.jsonl", item)
    page = Page(write_report(tmp_path))
    assert "share no seed" in page.text
    assert "GRPO against base" not in page.text
    assert "undefined" in page.text
    assert "nan" not in " ".join(page.values("cy", "y1", "d"))


def test_kinds_of_prompt_of_other_protocols_stay_in_the_main_table(tmp_path: Path) -> None:
    for label in ("base", "aligned"):
        metrics = {"vqa_suite_4": 0.5, "counting_suite_4": 0.4}
        append_result(tmp_path / "results.jsonl", row(label, 0, protocol="suite", metrics=metrics, verdicts="v"))
    text = " ".join(Page(write_report(tmp_path)).text.split())
    assert "arm vqa against base, paired by seed forwards per image counting images" in text
    assert "by kind of prompt" not in text
    assert "other prompts." in text


def test_runs_without_geneval_have_no_section(tmp_path: Path) -> None:
    arms = summarize([row("base", 0, metrics={"fid_toy_4": 3.0})])
    metric = headline_metric(arms)
    assert metric is not None
    assert geneval_section(tmp_path, arms, assign_roles(arms, metric), metric, NAMES) is None


# ---- why images failed


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        ([("number", "missing")], "missing"),
        ([("number", "too few"), ("number", "missing")], "wrong count"),
        ([("number", "too many")], "wrong count"),
        ([("color", "color"), ("number", "missing")], "missing"),
        ([("position", "position"), ("color", "color")], "wrong colour"),
        ([("color", "skipped"), ("position", "target"), ("position", "position")], "wrong place"),
        ([("position", "target"), ("number", "too many")], "wrong count"),
        ([("position", "skipped")], "other"),
        ([], "other"),
    ],
)
def test_the_first_fault_counts(faults: Sequence[tuple[str, str]], why: str) -> None:
    assert reason(verdict("p", False, *faults)) == why
    assert reason(verdict("p", True, *faults)) is None


def test_shares_of_failures_add_up() -> None:
    verdicts = [
        verdict("p", True),
        verdict("p", False, ("color", "color")),
        verdict("p", False, ("number", "missing"), ("color", "skipped")),
        verdict("p", False, ("number", "missing"), tag="counting"),
    ]
    found = failures(verdicts)
    assert found == {
        "all": {"missing": 0.5, "wrong colour": 0.25},
        "colors": {"missing": 1 / 3, "wrong colour": 1 / 3},
        "counting": {"missing": 1.0},
    }
    assert list(found["all"]) == ["missing", "wrong colour"], "in the order in which they are looked for"


def test_failures_before_and_after(tmp_path: Path) -> None:
    before = [verdict("p", False, ("number", "missing")), verdict("q", False, ("color", "color"))]
    after = [verdict("p", True), verdict("q", True)]
    rows = [row("base", 0.5, verdicts=write_verdicts(tmp_path, "b", before))]
    rows += [row("aligned", 0.7, verdicts=write_verdicts(tmp_path, "a", after))]
    rows += [row("sft", 0.5, verdicts=write_verdicts(tmp_path, "s", before))]
    found = section(tmp_path, rows)["failures"]
    assert [arm["name"] for arm in found["arms"]] == ["base", "GRPO"]
    assert [text for _, text in found["legend"]] == ["missing", "wrong colour"]
    assert [line["title"] for line in found["rows"]] == ["all prompts", "colors"]
    assert found["rows"][1]["cells"] == [
        {
            "total": "100 %",
            "parts": [("missing", "50.00"), ("wrong-colour", "50.00")],
            "words": "missing 50, wrong colour 50",
        },
        {"total": "0 %", "parts": [], "words": ""},
    ]


def test_verdicts_outside_of_the_run_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_verdicts(tmp_path, "elsewhere", [verdict("p", True)])
    (arm,) = summarize([row("base", 0.5, verdicts="../elsewhere")])
    assert read_verdicts(tmp_path / "run", arm) == []
    (inside,) = summarize([row("base", 0.5, verdicts="elsewhere")])
    assert len(read_verdicts(tmp_path, inside)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"tag": "colors"}, r"v\.jsonl:2: no verdict of GenEval's: prompt is None"),
        (verdict("p", True) | {"correct": 1}, "correct is 1"),
        (verdict("p", False, ("number", "wrong")), r"v\.jsonl:2: unknown fault .*'wrong'.*missing, too few, too many"),
        (verdict("p", False, ("color", "missing")), "unknown fault"),
        (verdict("p", False) | {"faults": ["missing"]}, "unknown fault 'missing'"),
    ],
)
def test_damaged_verdicts_are_named(tmp_path: Path, line: object, message: str) -> None:
    name = write_verdicts(tmp_path, "v.jsonl", [verdict("p", True), line])
    append_result(tmp_path / "results.jsonl", row("base", 0.5, verdicts=name))
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
