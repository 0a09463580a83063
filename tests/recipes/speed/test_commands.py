"""`align bench rollout`, `train` and `eval` from end to end, on what is shipped or tiny."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import fails, run

from recipes.cli import main

ZOO = ("size=[null]", "length=[null]", "repeats=2", "batch=[2]")


def test_rollouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "rollout.json"
    run("bench", "rollout", "model=mnist-llamagen", *ZOO, "guidance=[1.0,2.0]", f"results={results}")
    table = capsys.readouterr().out
    assert "| drawn by | images/s | ms/token | ours is faster |" in table
    assert table.count("| plain |") == 2
    found = json.loads(results.read_text())
    assert found["command"].startswith("align bench rollout model=mnist-llamagen")
    assert found["threads"] == 1
    assert "torch" in found["versions"]
    first, second = found["cells"]
    assert (first["guidance"], second["guidance"], first["length"]) == (1.0, 2.0, 49)
    for by in first["drawn_by"].values():
        assert len(by["seconds"]) == 2
        assert by["share_of_floor"] > 0
    assert first["drawn_by"]["plain"]["agreement"]["tokens"] == 1.0
    assert first["drawn_by"]["ours"]["times_ours"] == 1.0


@pytest.mark.slow
def test_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "train.json"
    short = ("steps=1", "memory=false", "trainer.per_device_train_batch_size=2", f"results={results}")
    run("bench", "train", "model=mnist-llamagen", "size=null", "length=null", *short)
    assert "| cca, plain |" in capsys.readouterr().out
    variants = json.loads(results.read_text())["variants"]
    assert variants["plain"]["times_faster"] == 1.0
    assert variants["ours, cached reference"]["relative_difference"]["gradient"] < 1e-4


@pytest.mark.slow
def test_evaluation(tmp_path: Path) -> None:
    results = tmp_path / "eval.json"
    small = ("images=2", "image_size=32", "batch_size=2", "features=32", "repeats=1")
    run("bench", "eval", *small, f"results={results}")
    found = json.loads(results.read_text())
    assert set(found["features"]["by"]) == {"ours", "torch-fidelity"}
    assert set(found["distance"]["by"]) == {"ours", "torch-fidelity", "scipy sqrtm"}
    assert found["distance"]["by"]["scipy sqrtm"]["relative_difference"] < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "align bench does several things; known: mnist, shapes, rollout, train, eval"),
        (
            ["rolout"],
            "unknown: align bench rolout; known: mnist, shapes, rollout, train, eval. Did you mean: align bench rollout?",
        ),
        (["rollout", "precision=[fp16]"], "unknown precision fp16; known: fp32, bf16"),
        (["train", "step=dpo"], "unknown step 'dpo'; known: cca, grpo"),
        (["train", "step=grpo", "model=mnist-var", "size=null", "length=null"], "step=grpo is of a language model"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in fails(capsys, "bench", *arguments)


def test_help_tells_both_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: align bench {mnist,shapes,rollout,train,eval} [key=value ...]")
    assert "What is gained." in text
    assert "What it costs." in text
    assert main(["bench", "rollout", "--help"]) == 0
    assert "peer_path=null  # a checkout of the family's authors" in capsys.readouterr().out
    assert main(["bench", "shapes", "--help"]) == 0
    assert "seeds=[1, 2, 3]" in capsys.readouterr().out
