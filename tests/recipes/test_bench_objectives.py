"""`align bench`: every arm is paired with the base by its sampling seed, and stages start where the one before ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.arms import summarize
from evaluation.results import ResultRow
from recipes.bench_objectives import END_MARK, TIMES_FILE, _Bench, _details, start_mark
from recipes.bench_tables import make_table
from recipes.cli import main

QUICK = ["trainer.max_steps=1", "trainer.per_device_train_batch_size=2", "trainer.sample_every=0", "preflight=false"]
SMALL = [
    "evaluation.num_images=80",
    "evaluation.guidance_scales=[]",
    "evaluation.temperatures=[]",
    "evaluation.filters=[]",
]


def figure(*values: float) -> dict[str, object]:
    ordered = sorted(values)
    by_seed = {str(1001 + order): value for order, value in enumerate(values)}
    return {"median": ordered[len(values) // 2], "low": ordered[0], "high": ordered[-1], "by_seed": by_seed}


def arm(label: str, *fids: float, guidance: str = "off", temperature: float = 1.0) -> dict[str, object]:
    return {
        "label": label,
        "guidance": guidance,
        "temperature": temperature,
        "plain": guidance == "off" and temperature == 1.0,
        "n": 100,
        "forwards_per_image": 9,
        "training_seconds": None if label == "base" else 12.3,
        "fid": figure(*fids),
        "accuracy": figure(0.5, 0.4, 0.6),
        "recall": figure(0.5, 0.5, 0.5),
        "reward": figure(-1.0, -1.0, -1.0),
    }


def test_the_table_gives_the_median_of_the_paired_ratios() -> None:
    arms = [
        arm("base", 10.0, 20.0, 40.0),
        arm("base", 5.0, 5.0, 5.0, guidance="1.5 linear"),
        arm("base", 7.0, 7.0, 7.0, temperature=0.8),
        arm("base", 4.0, 4.0, 4.0, guidance="1.25", temperature=0.8),
        arm("cca", 8.0, 18.0, 10.0),  # ratios .8, .9, .25: not the ratio of the medians, .5
        {**arm("cca", 9.0, 9.0, 9.0), "plain": False, "filters": ["top-p 0.9"]},
    ]
    table = make_table({"toy": {"seeds": [1, 2, 3], "arms": arms}})
    assert "| arm | FID | ratio to base | FID, tuned sampling | accuracy |" in table
    # the best temperature or filter of each stands in a column, whatever guidance it goes best with
    assert (
        "| base | 20.00 [10.00, 40.00] | 1.00 | 7.00 (T=0.8) | 0.500 [0.400, 0.600] | 0.500 | -1.00 | 9 |  |" in table
    )
    assert "| base, guidance 1.5 linear | 5.00 | 0.25 | 4.00 (T=0.8, guidance 1.25) |" in table
    assert "| cca | 10.00 [8.00, 18.00] | 0.80 | 9.00 (top-p 0.9) |" in table
    assert table.count("| base") == 2
    assert "| 12 |" in table


def test_arms_of_prompts_show_the_median_change_and_a_table_of_tags() -> None:
    def judged(label: str, *scores: float, **tags: object) -> dict[str, object]:
        own = {name: value for name, value in arm(label, 0.0).items() if name not in ("fid", "accuracy", "recall")}
        return {
            **own,
            "protocol": "geneval-shapes",
            "geneval": figure(*scores),
            "held-out": figure(0.5, 0.5, 0.5),
            "details": tags,
        }

    base = judged("base", 0.3, 0.45, 0.5, counting=figure(0.25, 0.25, 0.25), colors=figure(0.75, 0.75, 0.75))
    grpo = judged(
        "grpo", 0.6, 0.5, 0.7, counting=figure(0.5, 0.25, 0.75)
    )  # changes .3, .05, .2; that of the medians is .15
    table = make_table({"toy": {"seeds": [1, 2, 3], "arms": [base, grpo]}})
    assert (
        "| arm | geneval-shapes | change | geneval-shapes, tuned sampling | held-out judge | reward | forwards" in table
    )
    assert "| base | 0.450 [0.300, 0.500] | +0.000 |  | 0.500 | -1.00 | 9 |  |" in table
    assert "| grpo | 0.600 [0.500, 0.700] | +0.200 |" in table
    assert (
        "| arm | counting | colors |\n|---|---|---|\n| base | 0.250 | 0.750 |\n| grpo | 0.500 [0.250, 0.750] |  |"
        in table
    )


def test_details_of_an_arm_are_what_is_no_known_metric() -> None:
    metrics = {
        "geneval_geneval-shapes_6": 0.4,
        "two_object_geneval-shapes_6": 0.2,
        "reward": 1.0,
        "accuracy-class3": 0.1,
    }
    (found,) = summarize([ResultRow("base", 1, 6, "geneval-shapes", metrics)])
    assert {name: spread["median"] for name, spread in _details(found).items()} == {"two_object": 0.2}
    (digits,) = summarize([ResultRow("base", 1, 6, "mnist-cnn", {"fid_mnist-cnn_6": 4.0, "is_mnist-cnn_6": 1.0})])
    assert _details(digits) == {}


def test_the_training_time_is_that_of_all_stages_and_of_none_in_part(tmp_path: Path) -> None:
    (tmp_path / TIMES_FILE).write_text(json.dumps({"gft": {"1": 10.0, "2": 30.0}, "gft+ddo": {"1": 5.0}}))
    bench = _Bench(tmp_path, [1, 2], resume=False)
    assert bench.training_seconds("gft") == {1: 10.0, 2: 30.0}
    assert bench.training_seconds("gft+ddo") == {1: 15.0}
    assert bench.training_seconds("base") == {}


def test_an_erasing_arm_has_a_table_of_its_own() -> None:
    arms = {
        "base": {"accuracy_erased": figure(0.8, 0.8, 0.8), "kept": arm("base", 16.6)},
        "erase": {"accuracy_erased": figure(0.01, 0.02, 0.03), "kept": arm("erase", 18.0)},
    }
    table = make_table({"toy": {"seeds": [1], "arms": [], "erasure": {"class": 3, "arms": arms}}})
    assert table.startswith("`toy`, class 3 erased:")
    assert "| erase | 0.020 [0.010, 0.030] | 0.500 [0.400, 0.600] | 18.00 | 0.500 |" in table


@pytest.mark.slow
def test_stages_seeds_and_files(tmp_path: Path) -> None:
    readme = tmp_path / "page.md"
    readme.write_text(
        f"above\n{start_mark('mnist')}\nold\n{END_MARK}\nbelow\n{start_mark('shapes')}\nkept\n{END_MARK}\n"
    )
    results = tmp_path / "bench.json"
    overrides = ",".join(f'"{item}"' for item in [*QUICK, *SMALL])
    arguments = [
        *("bench", "mnist", "experiments=[sft,sft+gft,erase]", "generators=[mnist-llamagen,mnist-var]"),
        *("processes=2", "seeds=[1]"),
        *(f"overrides=[{overrides}]", f"output_dir={tmp_path / 'run'}", f"results={results}", f"readme={readme}"),
    ]
    assert main(arguments) == 0
    summary = json.loads(results.read_text())
    labels = [arm["label"] for arm in summary["mnist-llamagen"]["arms"]]
    assert labels == ["base", "sft", "sft+gft"]
    assert {arm["n"] for arm in summary["mnist-llamagen"]["arms"]} == {80}
    text = readme.read_text()
    assert text.startswith("above")
    assert text.endswith(f"below\n{start_mark('shapes')}\nkept\n{END_MARK}\n")
    assert "old" not in text
    assert "| sft+gft |" in text
    erasure = summary["mnist-llamagen"]["erasure"]
    assert erasure["class"] == 3
    assert [erasure["arms"][label]["kept"]["n"] for label in ("base", "erase")] == [72, 72]
    assert "class 3 erased" in text
    run = tmp_path / "run" / "mnist-llamagen"
    assert (run / "sft-seed1" / "generator.pt").exists()
    first = {path: path.stat().st_mtime_ns for path in run.rglob("generator.pt")}
    # everything is there: resuming trains nothing again, and measures nothing again
    rows = {path: path.read_text() for path in run.rglob("results.jsonl")}
    assert main([*arguments, "resume=auto"]) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("generator.pt")} == first
    assert {path: path.read_text() for path in run.rglob("results.jsonl")} == rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "faces"], "unknown: align bench faces; known: mnist, shapes"),
        (["bench", "mnist", "experiments=[ccca]"], "unknown experiment mnist/ccca; known: mnist/best_of_n"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_page_without_a_place_for_the_table_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{start_mark('shapes')}\n{END_MARK}\n")
    run = tmp_path / "run"
    assert main(["bench", "mnist", f"readme={page}", f"output_dir={run}"]) == 1
    assert "has no place for the table" in capsys.readouterr().err
    assert not run.exists()
