"""`align report` of runs, and of folders of runs."""

from pathlib import Path

import pytest
from command_line import fails, run
from leaderboard_runs import row, write_run, write_runs


def test_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        write_run(Path("runs") / name, row("base", 16.0))
    run("report", "runs/one", "runs/two")
    assert capsys.readouterr().out.split() == ["runs/one/report.html", "runs/two/report.html"]
    assert not list(Path("runs").glob("leaderboard*"))


def test_of_a_folder_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    write_runs(Path("runs"))
    run("report", "runs/")
    assert capsys.readouterr().out.splitlines() == [
        "runs/leaderboard.html",
        "runs/leaderboard.md",
        "runs/leaderboard.tex",
        "15 arms of 3 runs, 2 ways of measuring",
    ]
    run("report", "runs/")  # its own files are no runs
    assert "15 arms of 3 runs" in capsys.readouterr().out


def test_damaged_runs_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path("runs/good"), row("base", 16.0))
    write_run(Path("runs/damaged"))
    Path("runs/damaged/results.jsonl").write_text("?\n")
    run("report", "runs")
    said = capsys.readouterr()
    assert "left out: runs/damaged/results.jsonl:1: not valid JSON" in said.err
    assert "1 arm of 1 run" in said.out


def test_nothing_to_report(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert "which run?" in fails(capsys, "report")
    for name in ("empty", "missing"):
        error = fails(capsys, "report", name)
        assert f"{name} is not a run's folder" in error
        assert "Traceback" not in error
    assert "there is no such folder" in error
