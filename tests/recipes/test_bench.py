"""`align bench`: every arm is paired with the base by its sampling seed, and stages start where the one before ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.bench import MARKS, make_table
from recipes.cli import main

QUICK = ["trainer.max_steps=1", "trainer.per_device_train_batch_size=2", "trainer.sample_every=0", "preflight=false"]
SMALL = ["evaluation.num_images=70", "evaluation.guidance_scales=[]", "evaluation.temperatures=[]"]


def figure(median: float) -> dict[str, float]:
    return {"median": median, "low": median - 1, "high": median + 1}


def arm(label: str, fid: float, **more: float) -> dict[str, object]:
    shown = {"fid": figure(fid), "accuracy": figure(0.5), "recall": figure(0.5), "reward": figure(-1.0)}
    return {
        "label": label,
        "guidance_scale": 1.0,
        "temperature": 1.0,
        "n": 100,
        "forwards_per_image": 9,
        **shown,
        **more,
    }


def test_the_table_gives_ratios_to_the_plain_base() -> None:
    arms = [arm("base", 8.0), arm("base", 4.0, guidance_scale=1.5), arm("base", 7.0, temperature=0.8), arm("cca", 6.0)]
    table = make_table({"toy": {"seeds": [1, 2], "arms": arms}})
    assert "| base | 8.00 [7.00, 9.00] | 1.00 | 0.500 [-0.500, 1.500] |" in table
    assert "| base, guidance 1.5 | 4.00 [3.00, 5.00] | 0.50 |" in table
    assert "| base, T=0.8 | 7.00 [6.00, 8.00] | 0.88 |" in table
    assert "| cca | 6.00 [5.00, 7.00] | 0.75 |" in table


@pytest.mark.slow
def test_stages_seeds_and_files(tmp_path: Path) -> None:
    readme = tmp_path / "page.md"
    readme.write_text(f"above\n{MARKS[0]}\nold\n{MARKS[1]}\nbelow\n")
    results = tmp_path / "bench.json"
    overrides = ",".join(f'"{item}"' for item in [*QUICK, *SMALL])
    arguments = [
        *("bench", "mnist", "experiments=[sft,sft+gft]", "generators=[mnist-llamagen]", "seeds=[1]"),
        *(f"overrides=[{overrides}]", f"output_dir={tmp_path / 'run'}", f"results={results}", f"readme={readme}"),
    ]
    assert main(arguments) == 0
    summary = json.loads(results.read_text())
    labels = [arm["label"] for arm in summary["mnist-llamagen"]["arms"]]
    assert labels == ["base", "sft", "sft+gft"]
    assert {arm["n"] for arm in summary["mnist-llamagen"]["arms"]} == {70}
    text = readme.read_text()
    assert text.startswith("above")
    assert text.endswith("below\n")
    assert "old" not in text
    assert "| sft+gft |" in text
    run = tmp_path / "run" / "mnist-llamagen"
    assert (run / "sft-seed1" / "generator.pt").exists()
    first = {path: path.stat().st_mtime_ns for path in run.rglob("generator.pt")}
    # everything is there: resuming trains nothing again
    assert main([*arguments, "resume=auto"]) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("generator.pt")} == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench"], "which domain? known: mnist"),
        (["bench", "faces"], "which domain? known: mnist"),
        (["bench", "mnist", "experiments=[ccca]"], "unknown experiment mnist/ccca; known: mnist/best_of_n"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_page_without_a_place_for_the_table_is_left_alone(tmp_path: Path) -> None:
    from recipes.bench import _put_into

    page = tmp_path / "page.md"
    page.write_text("text\n")
    with pytest.raises(ValueError, match="has no place for the table"):
        _put_into(page, "table")
    assert page.read_text() == "text\n"
