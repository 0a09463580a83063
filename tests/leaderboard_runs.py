"""Folders of runs as a leaderboard finds them, with rows of chosen numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from evaluation.results import ResultRow, append_result

NASTY = "<script>alert(1)</script>_%&#"


def row(label: str, fid: float, **changes: object) -> ResultRow:
    plain = ResultRow(
        label=label,
        seed=1001,
        n=2000,
        protocol="mnist-cnn",
        metrics={"fid_mnist-cnn_2k": fid, "recall_mnist-cnn_2k": 0.5 + fid / 100},
        stderr={"fid_mnist-cnn_2k": 0.31},
        reference_n=1000,
        reference_hash="ab" * 32,
        extractor_fingerprint="cafe42",
        forwards_per_image=49.0,
        images_per_second=200.0,
    )
    return replace(plain, **changes)


def write_run(folder: Path, *rows: ResultRow, **facts: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "finished", **facts}))
    (folder / "results.jsonl").touch()
    for item in rows:
        append_result(folder / "results.jsonl", item)
    return folder


def write_runs(root: Path) -> Path:
    """Two studies under one protocol, and an evaluation under another."""
    for name, aligned in (("cca", 9.5), ("ddo", 8.9)):
        rows = [
            row(label, fid + offset, seed=1001 + offset, **how)
            for offset in range(3)
            for label, fid, how in (
                ("base", 16.0, {}),
                ("base", 12.0, {"temperature": 0.7}),
                ("base", 8.0, {"guidance_scale": 2.0, "forwards_per_image": 98.0}),
                ("aligned", aligned, {}),
            )
        ]
        rows += [
            row("base", 10.5, temperature=0.8),
            row("aligned", aligned - 2, search="best of 4 by reward", forwards_per_image=196.0),
            row("aligned", float("nan"), top_k=50),
        ]
        config = {"objective": {"_target_": f"align.objectives.{name}.{name}"}}
        write_run(root / "studies" / name, *rows, name=f"mnist/{name}", config=config)
    (root / "studies" / "cca" / "report.html").write_text("a report")
    other = {"protocol": "adm-inception", "n": 50_000, "metrics": {"fid_adm-inception_50k": 3.4}, "stderr": {}}
    write_run(root / "imagenet", row("base", 0, **other, remarks=("too few images",)))
    return root
