"""One of two processes stops: so does the other, at once, and the last word is the first one's reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("stopping_rank.py")


@pytest.mark.slow
def test_one_that_stops_stops_all_with_its_message(tmp_path: Path) -> None:
    # the packages come before their tests, whose folders have the same names
    path = os.pathsep.join(map(str, (SCRIPT.parents[2], SCRIPT.parents[1])))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], env=environment, check=True, timeout=240)
    for case in ("data", "update", "killed", "saving", "evaluation"):
        seconds, summary = (tmp_path / case / "summary.txt").read_text().split("\n", 1)
        assert float(seconds) < 40, case  # collectives would wait for half an hour
        whose = 0 if case == "saving" else 1
        # torchrun's summary comes last: the process that failed first, whatever the other said
        root = summary.rpartition("Root Cause (first observed failure)")[2]
        assert f"rank      : {whose} " in root, (case, summary)
        said = {r: next((tmp_path / case / "logs").rglob(f"{r}/stderr.log")).read_text() for r in (0, 1)}
        assert "error: " not in said[1 - whose], (case, said)
        assert "Traceback" not in said[1 - whose], (case, said)
        if case == "killed":
            assert "Signal 9 (SIGKILL)" in root
        else:
            assert f"error: process {whose} of 2 stopped: " in said[whose], (case, said)
            assert f"something is wrong with {case}" in said[whose]
            assert f"something is wrong with {case}" in root, (case, summary)
