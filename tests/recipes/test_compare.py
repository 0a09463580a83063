"""`align compare`: runs side by side, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
from command_line import fails, run
from leaderboard_runs import row, write_run

from evaluation.results import ResultRow

METRICS = "fid_mnist-cnn_2k", "recall_mnist-cnn_2k"


def rows(label: str, *fids: float, **settings: Any) -> list[ResultRow]:
    """One a seed; recall is the same in all."""
    return [
        row(label, fid, seed=1001 + index, metrics=dict(zip(METRICS, (fid, 0.5), strict=True)), stderr={}, **settings)
        for index, fid in enumerate(fids)
    ]


@pytest.fixture
def two() -> None:
    """Differences of FID −1.0, −1.1, −1.2, −1.3: their 95 % interval is −1.15 ± 0.205."""
    base = [*rows("base", 16.0), *rows("base", 5.0, guidance_scale=2.0, split="select")]
    write_run(Path("runs/cca"), *base, *rows("aligned", 10.0, 20.0, 30.0, 40.0), *rows("aligned", 7.0, top_k=50))
    write_run(Path("runs/ddo"), *base, *rows("aligned", 9.0, 18.9, 28.8, 38.7))


TABLE = """no guidance, T=1; protocol mnist-cnn, n = 2000

| metric | runs/cca (aligned) | runs/ddo (aligned) | difference | 95 % interval | seeds | |
|---|---|---|---|---|---|---|
| FID | 25.00 | 23.85 | −1.15 | −1.36 to −0.94 | 4 | better |
| recall | 0.500 | 0.500 | 0 | 0 to 0 | 4 | no clear change |
"""


@pytest.mark.usefixtures("two")
def test_two_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run("compare", "runs/cca", "runs/ddo")
    assert capsys.readouterr().out == TABLE
    run("compare", "runs=[runs/cca,runs/ddo]", "output=tables/two.md")
    said = capsys.readouterr()
    assert said.out == Path("tables/two.md").read_text(encoding="utf-8") == TABLE
    assert "written to tables/two.md" in said.err


@pytest.mark.usefixtures("two")
def test_more_runs_are_each_compared_with_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path("runs/base"), *rows("base", 10.5, 20.5))
    run("compare", "runs/base", "runs/cca", "runs/ddo")  # of the first only a base
    out = capsys.readouterr().out
    assert "| metric | runs/base (base) | runs/cca (aligned) |" in out
    assert "| metric | runs/base (base) | runs/ddo (aligned) |" in out
    assert "| FID | 15.50 | 15.00 | −0.50 | −0.50 to −0.50 | 2 | better |" in out


@pytest.mark.usefixtures("two")
def test_an_arm_is_chosen_by_label_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    run("compare", "runs/cca", "runs/ddo", "label=base")
    assert "| FID | 16.00 | 16.00 | 0 |  | 1 | spread unknown |" in capsys.readouterr().out
    write_run(Path("runs/guided"), *rows("aligned", 6.0, top_k=50), *rows("aligned", 9.0))
    run("compare", "runs/cca", "runs/guided", "top_k=50")
    out = capsys.readouterr().out
    assert out.startswith("no guidance, T=1, top-k 50; protocol mnist-cnn, n = 2000\n")
    assert "| FID | 7.00 | 6.00 | −1.00 |" in out


def test_rewards_are_compared_too(capsys: pytest.CaptureFixture[str]) -> None:
    for name, values in (("one", (0.2, 0.3)), ("two", (0.3, 0.4))):
        items = [
            ResultRow("aligned", seed, 8, "prompts", {"pick-score_prompts_8": value})
            for seed, value in enumerate(values)
        ]
        write_run(Path(name), *items)
    run("compare", "one", "two")
    assert "| pick-score | 0.250 | 0.350 | +0.100 |" in capsys.readouterr().out


@pytest.mark.usefixtures("two")
def test_one_run_is_no_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert "a comparison takes at least two runs, got 1: align compare RUN_A RUN_B" in fails(
        capsys, "compare", "runs/cca"
    )
    assert "required and not given: runs" in fails(capsys, "compare")


@pytest.mark.usefixtures("two")
def test_an_arm_that_is_not_there_lists_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "compare", "runs/cca", "runs/ddo", "label=sft")
    assert error.startswith("error: runs/cca has no single arm sft with these settings")
    assert error.endswith(
        "Its arms: base, no guidance, T=1; aligned, no guidance, T=1; aligned, no guidance, T=1, top-k 50\n"
    ), "those of selection seeds are none"
    error = fails(capsys, "compare", "runs/cca", "runs/ddo", "guidance_scale=2")
    assert "runs/cca has no single arm" in error
    write_run(Path("runs/select"), *rows("base", 5.0, split="select"))
    assert "Its arms: none on report seeds" in fails(capsys, "compare", "runs/select", "runs/ddo")


def test_of_several_labels_without_an_aligned_one_none_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        write_run(Path(name), *rows("base", 5.0), *rows("sft", 4.0))
    assert fails(capsys, "compare", "one", "two").startswith("error: one has no single arm with these settings; choose")
    run("compare", "one", "two", "label=sft")


@pytest.mark.usefixtures("two")
def test_what_is_no_run_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/empty").mkdir()
    for name in ("runs/empty", "runs/missing"):
        assert f"{name} is no run with results: it has no results.jsonl" in fails(capsys, "compare", "runs/cca", name)


@pytest.mark.usefixtures("two")
def test_what_does_not_compare_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write_run(Path("runs/more"), *rows("aligned", 9.0, n=50_000))
    assert "cannot compare rows with different n: 2000 in 'aligned'" in fails(
        capsys, "compare", "runs/cca", "runs/more"
    )
    write_run(Path("runs/other"), *(row("aligned", 9.0, seed=7),))
    assert "share no seed" in fails(capsys, "compare", "runs/cca", "runs/other")
