"""A Hub that records what it is asked for, rows to evaluate a run by, and the parts of a pushed card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from evaluation.results import ResultRow, append_result

SHORT = ["evaluation=none", "trainer.max_steps=2", "trainer.per_device_train_batch_size=2", "trainer.sample_every=2"]
KEYS = {"fid": "fid_mnist-cnn_2k", "accuracy": "accuracy_mnist-cnn_2k"}


class Hub:
    """Records what it is asked for; uploads what lies in the folder at that moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.uploaded: set[str] = set()
        self.tokens: list[str | None] = []
        self.error = error
        monkeypatch.setattr(huggingface_hub, "HfApi", self.open)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_saved")

    def open(self, token: str | None = None, **_: Any) -> Hub:
        self.tokens.append(token)
        return self

    def create_repo(self, repo_id: str, **settings: Any) -> str:
        if self.error is not None:
            raise self.error
        self.calls.append(("create_repo", {"repo_id": repo_id, **settings}))
        return f"https://hub/{repo_id}"

    def upload_folder(self, **settings: Any) -> None:
        self.calls.append(("upload_folder", settings))
        self.uploaded = contents(Path(settings["folder_path"]))


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def set_record(folder: Path, **facts: Any) -> None:
    record = json.loads((folder / "run.json").read_text()) | facts
    (folder / "run.json").write_text(json.dumps(record))


def row(label: str, fid: float, **settings: Any) -> ResultRow:
    values: dict[str, Any] = {"seed": 1001, "n": 2000, "protocol": "mnist-cnn", "reference_n": 1000, **settings}
    metrics = {KEYS["fid"]: fid, KEYS["accuracy"]: 0.75, "accuracy-class3": 0.5}
    return ResultRow(label, metrics=metrics, stderr={KEYS["fid"]: 0.25}, forwards_per_image=49.0, **values)


ROWS = [
    row("base", 99.5, split="select", seed=1),
    row("base", 7.5, samples="samples/base.png"),
    row("base", 4.25, guidance_scale=1.5, samples="samples/guided.png"),
    row("aligned", 5.125, top_k=9),
    row("aligned", 4.5, samples="samples/aligned.png"),
]


def evaluate(folder: Path, rows: list[ResultRow] = ROWS) -> None:
    for entry in rows:
        append_result(folder / "results.jsonl", entry)
        if entry.samples:
            (folder / entry.samples).write_bytes(b"png")


def card_of(folder: Path) -> str:
    return (folder / "push" / "README.md").read_text()


def section(card: str, title: str) -> str:
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def run_snippet(card: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The card's own code, with downloads from `files`."""
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name: str(files / name))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, allow_patterns: str(files))
    names: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], names)  # type: ignore[index]
    return names
