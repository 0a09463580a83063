"""Write a run's report.html again from its files: align report RUN [RUN ...]"""

from __future__ import annotations

from pathlib import Path

from evaluation.report import write_report


def main(folders: list[str]) -> None:
    if not folders:
        raise ValueError("which run? Give its folder: align report runs/demo")
    for folder in folders:
        if not (Path(folder) / "run.json").exists():
            raise FileNotFoundError(f"{folder} is not a run's folder: it has no run.json")
        print(write_report(Path(folder)))
