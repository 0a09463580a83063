"""The page is one file, says what the rows say, and copes with whatever a run has left."""

import json
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from report_page import Page

from evaluation.arms import summarize
from evaluation.charts import Axis, Line, Mark, fit_axis, guidance_chart, plot
from evaluation.curves import curve_charts, method_name, read_logs, thin_out
from evaluation.headline import assign_roles
from evaluation.metric_names import METRICS
from evaluation.report import write_report
from evaluation.results import ResultRow, append_result


def row(label: str, fid: float, **changes: object) -> ResultRow:
    plain = ResultRow(
        label=label,
        seed=1001,
        n=2000,
        protocol="mnist-cnn",
        metrics={"fid_mnist-cnn_2k": fid, "recall_mnist-cnn_2k": 0.78},
        stderr={"fid_mnist-cnn_2k": 0.31},
        reference_n=1000,
        extractor_fingerprint="cafe42",
        forwards_per_image=49.0,
    )
    return replace(plain, **changes)


def write_png(path: Path, width: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path.parent.mkdir(exist_ok=True)
    header = struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (width + 1))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def write_log(folder: Path, steps: int, **keys: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, **{key: value * step for key, value in keys.items()}}) for step in range(steps)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    run = {
        "name": "mnist/cca",
        "kind": "study",
        "command": "align study experiment=mnist/cca",
        "config": {"objective": {"_target_": "align.objectives.cca.cca", "beta": 0.15}, "data": {"codes": None}},
        "versions": {"torch": "2.9.0"},
        "hashes": {"generator": "9f9f"},
        "git": {"revision": "4b825dc6", "dirty": True},
        "wall_seconds": 3725.0,
        "status": "finished",
        "runs": ["cca-seed1", "cca-seed2", "sft-seed1", "lost-seed1"],
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    for name in ("cca-seed1", "cca-seed2"):
        write_log(tmp_path / name, 20, loss=1.0, gap_positive=-0.2, gap_negative=-1.0, odd=2.0)
    write_log(tmp_path / "sft-seed1", 20, loss=0.1)
    rows = [
        row("base", fid, guidance_scale=s, split="select", seed=1) for s, fid in ((1.0, 16.9), (2.0, 9.1), (3.0, 12.0))
    ]
    rows += [row("base", fid, temperature=t, split="select", seed=1) for t, fid in ((0.8, 13.1), (0.7, 12.1))]
    for seed, (base, cool, guided, aligned) in enumerate([(16.6, 12.1, 8.7, 9.5), (16.2, 12.4, 8.9, 9.9)], start=1001):
        samples = {name: f"samples/{name}.png" if seed == 1001 else None for name in ("base", "cfg", "aligned")}
        rows += [
            row("base", base, seed=seed, samples=samples["base"]),
            row("base", cool, seed=seed, temperature=0.7),
            row("base", guided, seed=seed, guidance_scale=2.0, forwards_per_image=98.0, samples=samples["cfg"]),
            row("aligned", aligned, seed=seed, samples=samples["aligned"]),
        ]
    for item in rows:
        append_result(tmp_path / "results.jsonl", item)
    for name, width in (("base", 280), ("cfg", 280), ("aligned", 2048)):
        write_png(tmp_path / "samples" / f"{name}.png", width)
    return tmp_path


def test_page_is_self_contained(study: Path) -> None:
    page = Page(write_report(study))
    for value in page.values("src", "href", "xlink:href", "srcset"):
        assert value.startswith("data:"), value
    assert not re.search(r"https?:|url\(|@import|<script", page.html)
    assert "default-src 'none'" in page.values("content")[-1]
    assert "width=device-width, initial-scale=1" in page.values("content")
    assert "prefers-color-scheme: dark" in page.html
    assert not list(study.glob(".report*"))


def test_page_says_what_the_rows_say(study: Path) -> None:
    text = Page(write_report(study)).text
    for expected in (
        "CCA lowers guidance-free FID from 16.4 to 9.70 (medians of 2 paired seeds; change −7.10 to −6.30; ratio 0.59)",
        "better than the best temperature (T=0.7: 12.2), against 8.80 for the best CFG (scale 2) at twice the forwards",
        "16.20–16.60",  # the range of an arm
        "± 0.31",  # the standard error of a row
        "−6.70 (×0.59)",  # the paired change of an arm
        "not comparable with Inception FID",
        "2000 generated images per row against 1000 reference images, extractor cafe42",
        "objective.beta 0.15",
        "hashes: generator 9f9f",
        "align study experiment=mnist/cca",
        "1 h 2 min",
        "uncommitted changes",
    ):
        assert expected in text, expected


def test_inception_fid_is_not_called_a_domain_fid(tmp_path: Path) -> None:
    append_result(
        tmp_path / "results.jsonl", row("base", 3.4, protocol="adm-inception", metrics={"fid_adm-inception_2k": 3.4})
    )
    assert "not comparable" not in Page(write_report(tmp_path)).text


def test_grids_are_of_one_seed_and_inlined(study: Path) -> None:
    page = Page(write_report(study))
    assert [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")] == [
        "Grid of samples: base, no guidance, T=1",
        "Grid of samples: base, guidance 2, T=1",
        "Grid of samples: CCA, no guidance, T=1",
    ]
    assert page.values("class").count("pixelated") == 2  # the wide grid is scaled smoothly
    assert page.text.count("seed 1001") == 3


def test_pictures_outside_the_run_or_of_another_kind_stay_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_png(tmp_path / "secrets" / "other.png", 8)
    (run / "notes.png").write_text("not a picture")
    for seed, samples in enumerate(("../secrets/other.png", "notes.png", "missing.png")):
        append_result(run / "results.jsonl", row("base", 16.0, samples=samples, temperature=1 + seed / 10))
    assert "<img" not in Page(write_report(run)).html


def test_training_curves(study: Path) -> None:
    run = json.loads((study / "run.json").read_text())
    charts = {(chart.title, chart.legend): chart for chart in curve_charts(read_logs(study, run))}
    assert [(title, main.main) for (title, _), main in charts.items()] == [
        ("gap to the reference (nats)", True),
        ("loss", True),
        ("loss", True),  # one chart per objective: the two losses do not share a scale
        ("odd", False),
    ]
    gaps = next(iter(charts.values())).svg
    assert gaps.count("c-positive") == gaps.count("c-negative") == 2  # one line per seed


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": 2}\n'
    )
    (chart,) = curve_charts(read_logs(tmp_path, {}))
    assert chart.remark == "1 logged values are not finite and are left out."


def test_rewards_that_were_only_watched_are_told_apart(tmp_path: Path) -> None:
    records = [{"step": step, "reward/judge": step, "reward/mine": -step, "failed/judge": 0} for step in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    rewards = [{"name": "judge", "held_out": True}, {"name": "mine", "held_out": False}]
    (tmp_path / "run.json").write_text(json.dumps({"rewards": rewards}))
    titles = {chart.title: chart.main for chart in curve_charts(read_logs(tmp_path, {}))}
    assert titles == {"reward/judge, held out": True, "reward/mine": True, "failed/judge": False}


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ({"config": {"objective": {"_target_": "align.objectives.va_pi.va_pi"}}, "name": "mnist/x"}, "VA-π"),
        ({"config": {"objective": "grpo"}}, "GRPO"),
        ({"config": {}, "name": "mnist/cca"}, "CCA"),
        ({}, "SFT"),
    ],
)
def test_name_of_the_method(run: dict[str, object], name: str) -> None:
    assert method_name(run, "sft-seed3") == name


def test_thinning_keeps_spikes() -> None:
    points = [(float(step), 0.0) for step in range(10_000)]
    points[1234] = (1234.0, 50.0)
    points[8765] = (8765.0, -50.0)
    kept = thin_out(points)
    assert len(kept) <= 400
    assert points[1234] in kept
    assert points[8765] in kept
    assert kept == sorted(kept)


def test_text_is_escaped(tmp_path: Path) -> None:
    nasty = "<script>alert('x')</script>&\""
    (tmp_path / "run.json").write_text(json.dumps({"name": nasty, "command": nasty, "config": {nasty: nasty}}))
    write_log(tmp_path, 3, **{nasty: 1.0})
    for label in ("base", nasty, "aligned"):
        append_result(tmp_path / "results.jsonl", row(label, 16.0))
    page = Page(write_report(tmp_path))
    assert "<script" not in page.html
    assert nasty in page.text


def test_a_run_stopped_before_any_result(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": "mnist/cca", "status": "running", "wall_seconds": null, "git": null}')
    write_log(tmp_path, 5, loss=1.0)
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 5, "lo')
    with pytest.warns(UserWarning, match="half-written"):
        page = Page(write_report(tmp_path))
    assert "not finished" in page.text
    assert "holds no evaluation yet" in page.text
    assert "loss" in page.text


def test_an_empty_folder_and_no_folder(tmp_path: Path) -> None:
    assert "holds no evaluation yet" in Page(write_report(tmp_path)).text
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path / "missing")


def test_a_damaged_run_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": ')
    with pytest.raises(ValueError, match=r"run\.json: not valid JSON"):
        write_report(tmp_path)


@pytest.mark.parametrize("kind", ["train", "sweep", "eval"])
def test_less_than_a_study(tmp_path: Path, kind: str) -> None:
    rows = {
        "train": [row("base", 16.0), row("aligned", 9.0)],
        "sweep": [row("base", 16.0 - s, guidance_scale=s, split="select") for s in (1.0, 1.5, 2.0)],
        "eval": [row("base", 16.0)],
    }[kind]
    for item in rows:
        append_result(tmp_path / "results.jsonl", item)
    text = Page(write_report(tmp_path)).text
    assert {"train": "On one seed", "sweep": "On the selection seeds", "eval": "base, no guidance"}[kind] in text


def test_single_classes_have_a_table_of_their_own(tmp_path: Path) -> None:
    for seed, third in ((1, 0.8), (2, 0.6), (3, 0.7)):
        classes = {"fid_mnist-cnn_2k": 16.0, "accuracy-class0": 0.9, "accuracy-class3": third}
        append_result(tmp_path / "results.jsonl", row("base", 0, seed=seed, metrics=classes))
    text = " ".join(Page(write_report(tmp_path)).text.split())
    assert "Accuracy by class 2 arm 0 3 base no guidance, T=1 0.900 0.700" in text
    assert text.count("accuracy-class3") == 1  # among the keys, in no other table


def test_rows_that_do_not_compare_are_listed_but_not_compared(tmp_path: Path) -> None:
    for item in (row("base", 16.0), row("aligned", 9.0, n=1000)):
        append_result(tmp_path / "results.jsonl", item)
    text = Page(write_report(tmp_path)).text
    assert "No conclusion: cannot compare rows with different n: 2000 in 'base'" in text
    assert "Every row 2" in text
    assert "paired by seed" not in text


def test_chart_leaves_out_selection_rows_of_another_extractor(study: Path) -> None:
    append_result(study / "results.jsonl", row("other", 7.0, split="select", extractor_fingerprint="beef"))
    append_result(study / "results.jsonl", row("base", 7.7, guidance_scale=7.0, split="select"))
    html = Page(write_report(study)).html
    assert "base, selection seeds, 7: 7.70" in html
    assert "other, selection seeds" not in html


def test_undefined_everywhere(tmp_path: Path) -> None:
    for label in ("base", "sft", "aligned"):
        append_result(tmp_path / "results.jsonl", row(label, float("nan")))
    page = Page(write_report(tmp_path))
    assert "from undefined to undefined" in page.text
    assert "<svg" not in page.html


# ---- drawing


def test_points_land_where_they_should() -> None:
    # y spans 0 to 10 with 8 % around it, so -0.8 to 10.8 over the 198 units from 208 up to 10: 0.8 / 11.6 of it is 13.7
    line = Line("c-base", [(0.0, 0.0), (5.0, 10.0)])
    svg = plot([line], [Mark(5.0, 5.0, 0.0, 10.0, "c-aligned", "middle")], description="d", size=(150, 230))
    assert 'd="M40 194.3 L140 23.7"' in svg
    assert 'cx="140" cy="109"' in svg
    assert "<title>middle</title>" in svg


def test_axes() -> None:
    assert fit_axis([4.0, 20.0], 100, 0, zero=True) == Axis(0, 22.0, 100, 0)
    assert fit_axis([4.0, 20.0], 100, 0, zero=True).ticks() == [0, 5, 10, 15, 20]
    collapsed = fit_axis([10.0, 400.0], 100, 0, zero=True)
    assert collapsed.log
    assert collapsed.ticks() == [10, 20, 50, 100, 200, 500]
    assert fit_axis([3.0, 3.0], 100, 0)(3.0) == 50.0


def test_guidance_chart_holds_every_point_and_its_price() -> None:
    rows = [row("base", fid, guidance_scale=s, split="select") for s, fid in ((1.0, 16.9), (2.0, 9.1))]
    rows += [row("base", fid, seed=seed) for seed, fid in ((1, 16.6), (2, 16.2), (3, 17.5))]
    rows += [row("base", 8.7, guidance_scale=2.0, forwards_per_image=98.0), row("base", 12.1, temperature=0.7)]
    rows += [row("aligned", 9.5)]
    arms = summarize(rows)
    roles = assign_roles([arm for arm in arms if arm.split == "report"], METRICS[0])
    svg = guidance_chart(arms, roles, METRICS[0], {"aligned": "CCA"})
    for expected in (
        "<title>base, selection seeds, 2: 9.10</title>",
        "<title>base, no guidance, T=1: FID 16.6 (16.2 to 17.5, 3 seeds), 49 forwards per image</title>",
        "<title>base, guidance 2, T=1: FID 8.70, 98 forwards per image</title>",
        ">T=0.7: 12.1</text>",
        ">CCA 9.50</text>",
        ">CFG 8.70</text>",
        ">49 forwards / image</text>",
    ):
        assert expected in svg, expected


def test_a_search_has_a_mark_of_its_own_and_no_say_in_the_price() -> None:
    rows = [row("base", 16.6), row("aligned", 9.5), row("base", 8.7, guidance_scale=2.0, forwards_per_image=98.0)]
    rows += [row("base", 8.0, search="best of 4 by reward", forwards_per_image=196.0)]
    arms = summarize(rows)
    svg = guidance_chart(arms, assign_roles(arms, METRICS[0]), METRICS[0], {})
    assert ">best of 4: 8.00</text>" in svg
    assert svg.count('<g class="mark c-other">') == 1
    assert ">49 forwards / image</text>" in svg
    selected = summarize([row("base", fid, split="select", search=s) for s, fid in (("", 16.9), ("best of 2", 9.0))])
    svg = guidance_chart(selected, assign_roles([], METRICS[0]), METRICS[0], {})
    assert svg.count("selection seeds, 1:") == 1, "it is not on the line of guidance scales"
