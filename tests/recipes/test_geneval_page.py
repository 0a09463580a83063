"""docs/geneval.md, walked as a newcomer does, with tiny models and two images in place of 553 prompts' four."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from mask2former_files import save_mask2former
from PIL import Image

from evaluation.geneval.folder import write_folder
from rewards.tiny import clip, scenes

PAGE = (Path(__file__).parents[2] / "docs/geneval.md").read_text()
ROWS: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a photo of a cat"},
    {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a photo of a red dog"},
]
BLOBS = [{"tag": "single_object", "include": [{"class": "blob", "count": 1}], "prompt": "a photo of a blob"}] * 2


def commands() -> dict[str, list[str]]:
    """By the label or the reward's command."""
    lines = [line.strip() for line in PAGE.splitlines() if line.startswith("    align ")]
    expanded = [re.sub(r"(\S*)\{detector,colors\}(\S*)", r"\1detector\2 \1colors\2", line) for line in lines]
    found = [shlex.split(line)[1:] for line in expanded]
    return {next((word for word in words if word.startswith("label=")), words[1]): words for words in found}


def write_lines(path: str, records: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.slow
def test_the_page_can_be_walked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        Path(name).write_text(code)
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32, 3), dtype=np.uint8)
    write_folder("FOLDER", ROWS, images)
    write_lines("rows.jsonl", ROWS)
    official = [
        {"filename": f"x/{number:05}/samples/0000.png", "tag": row["tag"], "prompt": row["prompt"], "correct": True}
        | {"reason": "", "metadata": json.dumps(row), "details": json.dumps({label: [[1, 2, 9, 9, 0.8]]})}
        for number, (row, label) in enumerate(zip(ROWS, ("cat", "dog"), strict=True))
    ]
    write_lines("official.jsonl", official)
    save_mask2former(Path("facebook/mask2former-swin-small-coco-instance"))
    clip.save_transformers_clip(Path("openai/clip-vit-large-patch14"), activation="quick_gelu", seed=0)

    few = ["prompts=rows.jsonl", "evaluation.images_per_prompt=1"]
    for label in ("label=theirs", "label=official"):
        run(*commands()[label], *few)
    verdicts = Path("runs/geneval/verdicts/theirs_images_geneval-hf_g1_t1_seed0.jsonl").read_text().splitlines()
    assert [json.loads(line)["tag"] for line in verdicts] == ["single_object", "colors"]
    (row,) = map(json.loads, Path("runs/official/results.jsonl").read_text().splitlines())
    assert row["metrics"]["geneval_geneval-recorded_2"] == 1
    command = re.search(r"^    python (confusion\.py .*)$", PAGE, re.MULTILINE)
    assert command is not None
    monkeypatch.setattr(sys, "argv", command[1].split())
    runpy.run_path("confusion.py")

    Path("scenes").mkdir()
    Image.fromarray(scenes.two_scenes()[0].numpy()).save("scenes/0.png")
    run(*commands()["score"])
    run(*commands()["check"])
    said = capsys.readouterr().out
    assert "single_object  official True   geneval-hf False  1" in said
    assert "mean 1, std 0; 1 of 1 images scored" in said
    assert "error" not in said
    write_folder("blobs", BLOBS, images)
    write_lines("blobs.jsonl", BLOBS)
    blobs = [word.replace("images=FOLDER", "images=blobs") for word in commands()["label=blobs"]]
    run(*blobs, "evaluation.images_per_prompt=1")
    (row,) = map(json.loads, Path("runs/blobs/results.jsonl").read_text().splitlines())
    assert row["metrics"]["geneval_geneval-blobs_2"] == 1
    assert len(commands()) == 5
