"""Two processes train to the same weights and logs as one, at the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent.parent)}
    one, two = tmp_path / "one", tmp_path / "two"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command in ([str(SCRIPT), str(one), "4", "1"], [*launch, str(SCRIPT), str(two), "2", "2"]):
        subprocess.run([sys.executable, *command], env=environment, check=True, timeout=300)
    tensors = [load_file(folder / "checkpoint-3" / "model.safetensors") for folder in (one, two)]
    torch.testing.assert_close(*tensors, atol=2e-5, rtol=1e-4)
    logs = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, two)]
    for alone, together in zip(*logs, strict=True):
        assert alone == pytest.approx(together, rel=1e-3, abs=1e-5)
