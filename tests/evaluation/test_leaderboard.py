"""Runs of a folder: which are found, what may share a table, and the tables for a paper."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from leaderboard_runs import NASTY, row, write_run, write_runs

from evaluation.arms import COMPARABLE
from evaluation.leaderboard import Figure, figure, read_leaderboard
from evaluation.leaderboard_page import write_leaderboard
from evaluation.leaderboard_tables import escape_latex, escape_markdown, latex, latex_table, markdown, markdown_table
from evaluation.results import append_result

OTHERWISE = {
    "protocol": "other-cnn",
    "n": 1000,
    "reference_n": 900,
    "reference_hash": None,
    "extractor_fingerprint": "beef",
}


def test_runs_are_found_at_any_depth_and_ranked_by_the_leading_metric(tmp_path: Path) -> None:
    board = read_leaderboard(write_runs(tmp_path))
    assert board.summary == "15 arms of 3 runs, 2 ways of measuring"
    inception, digits = board.groups
    assert (inception.protocol, inception.n, list(inception.columns)) == ("adm-inception", 50_000, ["fid"])
    assert list(digits.columns) == ["fid", "recall"]
    ranked = [(entry.run, entry.arm.label, entry.arm.metric("fid").median) for entry in digits.entries]
    assert ranked[:2] == [("studies/ddo", "aligned", pytest.approx(6.9)), ("studies/cca", "aligned", 7.5)]
    assert [value for *_, value in ranked[:-2]] == sorted(value for *_, value in ranked[:-2])
    assert {entry.arm.top_k for entry in digits.entries[-2:]} == {50}  # undefined comes last
    assert {(entry.run, entry.arm.label): entry.method for entry in digits.entries} == {
        ("studies/cca", "base"): "",
        ("studies/cca", "aligned"): "CCA",
        ("studies/ddo", "base"): "",
        ("studies/ddo", "aligned"): "DDO",
    }
    assert {entry.run: entry.report for entry in digits.entries} == {
        "studies/cca": "studies/cca/report.html",
        "studies/ddo": None,
    }


@pytest.mark.parametrize("name", COMPARABLE)
def test_what_was_measured_otherwise_has_a_table_of_its_own(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "one", row("base", 16.0), row("base", 9.0, seed=1002, **{name: OTHERWISE[name]}))
    write_run(tmp_path / "two", row("base", 12.0))
    board = read_leaderboard(tmp_path)
    assert sorted(len(group.entries) for group in board.groups) == [1, 2]
    assert all(len(entry.arm.rows) == 1 for group in board.groups for entry in group.entries)
    tables = [markdown_table(group) for group in board.groups] + [latex_table(group, 1) for group in board.groups]
    for table in tables:
        assert ("16.00" in table and "12.00" in table) != ("9.00" in table)
    sections = write_leaderboard(board, tmp_path)[0].read_text().split("<article>")[1:]
    assert len(sections) == 2
    for section in sections:
        assert (">16.00<" in section and ">12.00<" in section) != (">9.00<" in section)


def test_the_same_rows_measured_in_two_ways_are_all_shown(tmp_path: Path) -> None:
    write_run(tmp_path / "one", row("base", 16.0), row("base", 17.0, reference_hash="cd" * 32))
    values = [
        figure(entry.arm, group.leading) for group in read_leaderboard(tmp_path).groups for entry in group.entries
    ]
    assert [known.text for known in values] == ["16.00", "17.00"]


def test_spreads(tmp_path: Path) -> None:
    rows = [row("base", fid, seed=seed) for seed, fid in enumerate((16.6, 16.2, 17.5))]
    rows += [row("aligned", 9.5), row("sft", 9.0, stderr={}), row("lost", float("nan"))]
    write_run(tmp_path / "one", *rows)
    (group,) = read_leaderboard(tmp_path).groups
    shown = {entry.arm.label: figure(entry.arm, group.leading) for entry in group.entries}
    assert shown["base"] == Figure(16.6, "16.60", ends=("16.20", "17.50"))
    assert shown["aligned"] == Figure(9.5, "9.50", error="0.31")
    assert shown["sft"] == Figure(9.0, "9.00")
    assert (shown["lost"].text, shown["lost"].error) == ("undefined", "")


def test_metrics_of_other_names_are_columns_and_single_classes_are_none(tmp_path: Path) -> None:
    metrics = {"reward_b_mnist-cnn_2k": 1.0, "reward_mnist-cnn_2k": 2.0, "accuracy-class3_mnist-cnn_2k": 0.5}
    write_run(tmp_path / "one", row("base", 0, metrics=metrics, stderr={}))
    (group,) = read_leaderboard(tmp_path).groups
    assert {name: figure(group.entries[0].arm, metric).text for name, metric in group.columns.items()} == {
        "reward_b": "1.000",
        "reward": "2.000",
    }


# ---- what is left out, and that it is told


def test_a_damaged_run_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    for name in ("good", "damaged", "described-badly"):
        write_run(tmp_path / name, row("base", 16.0))
    with (tmp_path / "damaged" / "results.jsonl").open("a") as handle:
        handle.write('{"label": "base"}\n')
    (tmp_path / "described-badly" / "run.json").write_text("{")
    board = read_leaderboard(tmp_path)
    assert [entry.run for group in board.groups for entry in group.entries] == ["good"]
    assert "damaged/results.jsonl:2: missing field 'seed'" in board.left_out[0]
    assert "described-badly/run.json: not valid JSON" in board.left_out[1]
    assert "- Left out: " in markdown(board)


def test_what_else_a_reader_should_know(tmp_path: Path) -> None:
    write_run(tmp_path / "stopped", row("base", 16.0), status="running")
    with (tmp_path / "stopped" / "results.jsonl").open("a") as handle:
        handle.write('{"lab')
    write_run(tmp_path / "swept", row("base", 1.0, split="select"))
    write_run(tmp_path / "begun")
    write_run(tmp_path / "nameless", row("base", 2.0))
    (tmp_path / "nameless" / "run.json").unlink()
    board = read_leaderboard(tmp_path)
    assert [entry.run for group in board.groups for entry in group.entries] == ["stopped"]
    for expected in (
        "nameless has a results.jsonl but no run.json: left out.",
        "stopped/results.jsonl:2: skipped a half-written last line.",
        "Not finished, shown as far as they are: stopped (running).",
        "Only rows that chose settings, on which no claim rests: swept.",
        "No evaluation yet: begun.",
    ):
        assert any(expected in remark for remark in board.remarks), expected


def test_sub_runs_copies_and_loops_add_nothing(tmp_path: Path) -> None:
    study = write_run(tmp_path / "study", row("base", 16.0))
    (write_run(study / "cca-seed1") / "results.jsonl").unlink()
    write_run(study / "push", row("base", 16.0))
    (study / "loop").symlink_to(tmp_path)
    (tmp_path / "twice").symlink_to(study)
    board = read_leaderboard(tmp_path)
    assert board.summary == "1 arm of 1 run, 1 way of measuring"
    assert not board.remarks


def test_a_folder_without_runs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder inside it has both a run\.json and a results\.jsonl$"):
        read_leaderboard(tmp_path)
    (write_run(tmp_path / "begun") / "results.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"\(only a run\.json: 1\)"):
        read_leaderboard(tmp_path)


# ---- tables for a paper


def test_markdown(tmp_path: Path) -> None:
    text = markdown(read_leaderboard(write_runs(tmp_path)))
    for expected in (
        "**mnist-cnn**, n = 2000 against 1000 reference images, reference abababababababab, extractor cafe42.",
        "| run | arm | method | sampling | seeds | FID ↓ | recall ↑ | forwards per image | images/s |",
        "| studies/cca | base |  | guidance 2, T=1 | 3 | 9.00 [8.00, 10.00] | 0.590 [0.580, 0.600] | 98 | 200 |",
        "| studies/ddo | aligned | DDO | no guidance, T=1, best of 4 by reward | 1 | **6.90** ± 0.31 | 0.569 | 196 | 200 |",
        "| no guidance, T=1, top-k 50 | 1 | undefined | undefined |",
        "- too few images (1 arm)",
    ):
        assert expected in text, expected
    assert text.count("| run |") == 2


def test_latex(tmp_path: Path) -> None:
    text = latex(read_leaderboard(write_runs(tmp_path)))
    for expected in (
        r"\caption{Protocol mnist-cnn, n = 2000 against 1000 reference images, reference abababababababab",
        r"run & arm & method & sampling & seeds & FID $\downarrow$ & recall $\uparrow$ & forwards \\",
        r"studies/cca & base &  & guidance 2, T=1 & 3 & $9.00_{[8.00, 10.00]}$ & $0.590_{[0.580, 0.600]}$ & 98 \\",
        r"$\mathbf{6.90} \pm 0.31$",
        r"& undefined & undefined & 49 \\",
        r"too few images (1 arm)\par",
    ):
        assert expected in text, expected
    tables = text.split(r"\end{table}")
    assert [table.count(r"\begin{tabular}") for table in tables] == [1, 1, 0]
    for table in tables[:2]:
        columns = table.partition(r"\begin{tabular}{")[2].partition("}")[0]
        lines = [line for line in table.splitlines() if line.endswith(r"\\")]
        assert {line.count("&") + 1 for line in lines} == {len(columns)}


def test_names_are_escaped() -> None:
    assert escape_latex(NASTY) == r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{}\_\%\&\#"
    assert escape_latex("\\~^$ {[VA-π]}\n*") == (
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}\$ \{{[}VA-$\pi$]\} {*}"
    )
    assert escape_markdown(f"{NASTY}|`[x]\n") == r"&lt;script&gt;alert(1)&lt;/script&gt;\_%&amp;\#\|\`\[x\]"


def test_nasty_names_stay_in_their_cells(tmp_path: Path) -> None:
    write_run(tmp_path / "a_b%&#|{x}", replace(row("base", 16.0), label=NASTY), name=NASTY)
    board = read_leaderboard(tmp_path)
    assert r"a\_b\%\&\#\textbar{}\{x\} & \textless{}script" in latex(board)
    assert r"| a\_b%&amp;\#\|{x} | &lt;script&gt;" in markdown(board)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"run\xff")
    try:
        write_run(folder, row("base", 16.0))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    append_result(folder / "results.jsonl", row("aligned", 9.0))
    assert "| run� | aligned |" in markdown(read_leaderboard(tmp_path))
