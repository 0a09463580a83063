"""Write a run's report.html again from its files, or a leaderboard of all the runs in a folder.

  align report RUN [RUN ...]   a run's folder, which holds run.json: RUN/report.html
  align report runs/           a folder of runs, at any depth: leaderboard.html, and for a paper leaderboard.md and .tex

On the leaderboard only numbers that were measured in the same way share a table. Rows that chose settings are no part of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from evaluation.leaderboard import read_leaderboard
from evaluation.leaderboard_page import write_leaderboard
from evaluation.report import write_report


def main(folders: list[str]) -> None:
    if not folders:
        raise ValueError("which run? Give its folder: align report runs/demo; or a folder of runs: align report runs/")
    for folder in map(Path, folders):
        if (folder / "run.json").exists():
            print(write_report(folder))
        else:
            _write_leaderboard(folder)


def _write_leaderboard(folder: Path) -> None:
    board = read_leaderboard(folder)
    for note in [*(f"left out: {reason}" for reason in board.left_out), *board.remarks]:
        print(note, file=sys.stderr)
    for path in write_leaderboard(board, folder):
        print(path)
    print(board.summary)
