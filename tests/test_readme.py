"""The README's figures are those that were recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.bench_objectives import END_MARK, start_mark
from recipes.bench_tables import make_table, spread

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("domain", ["mnist", "shapes"])
def test_the_readmes_tables_are_those_that_were_recorded(domain: str) -> None:
    summary = json.loads((ROOT / f"benchmarks/results/{domain}.json").read_text())
    found = {name: result for name, result in summary.items() if isinstance(result, dict) and "arms" in result}
    shown = README.split(start_mark(domain))[1].split(END_MARK)[0]
    assert shown.strip() == make_table(found)


def shapes(label: str, *, guidance: str = "off", temperature: float = 1.0) -> dict[str, Any]:
    arms = json.loads((ROOT / "benchmarks/results/shapes.json").read_text())["shapes-t2i"]["arms"]
    setting = (label, guidance, temperature)
    return next(arm for arm in arms if (arm["label"], arm["guidance"], arm["temperature"]) == setting)


def test_the_demo_of_prompts_is_the_recorded_experiment() -> None:
    def cell(figure: dict[str, float]) -> str:
        low, median, high = (f"{figure[name]:.3f}".lstrip("0") for name in ("low", "median", "high"))
        return f"{median} [{low}-{high}]"

    section = README.split("    make demo-t2i\n")[1].split("    make test\n")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    told = {first.strip(" *"): [cell.strip(" *") for cell in rest] for first, *rest in lines}
    for title, arm in (
        ("base", shapes("base")),
        ("base, best temperature", shapes("base", temperature=0.9)),
        ("base, best guidance", shapes("base", guidance="2")),
        ("aligned by GRPO", shapes("grpo")),
    ):
        assert told[title][2:] == [cell(arm["geneval"]), cell(arm["held-out"]), f"{arm['forwards_per_image']:g}"]


def test_what_is_said_of_the_prompts_table_follows_from_it() -> None:
    arms = (shapes("base"), shapes("base", guidance="2"), shapes("cca"), shapes("grpo"))
    base, guided, cca, grpo = (arm["geneval"]["by_seed"] for arm in arms)
    shares = [100 * (cca[seed] - base[seed]) / (guided[seed] - base[seed]) for seed in base]
    above = [f"{grpo[seed] - guided[seed]:.2f}".lstrip("0") for seed in base]
    assert f"sampling to {min(shares):.0f} to {max(shares):.0f} % of what guidance gives" in README
    assert f"on every seed (by {min(above)} to {max(above)})" in README


def test_what_the_readme_tells_of_the_distribution_reward_is_what_was_recorded() -> None:
    arms = json.loads((ROOT / "benchmarks/results/loo-fid.json").read_text())["mnist-llamagen"]["arms"]
    for label, name in (("grpo", "the class alone"), ("grpo_fid", "class and distribution")):
        arm = next(arm for arm in arms if arm["label"] == label)
        (line,) = [line for line in README.splitlines() if line.strip().startswith(f"| `mnist/{label}`: {name} |")]
        figures = [spread(arm["fid"], 2), f"{arm['accuracy']['median']:.3f}", spread(arm["recall"], 3)]
        cells = [*figures, f"{arm['training_seconds']:.0f}"]
        assert [cell.strip(" *") for cell in line.strip(" |").split("|")][1:] == cells


def test_what_it_tells_of_compute_at_test_time_is_what_was_recorded() -> None:
    rows = json.loads((ROOT / "benchmarks/results/search-shapes.json").read_text())["shapes-t2i"]
    section = README.split("**Compute at test time**")[1].split("\n## ")[0]
    cells = [line.strip(" |").split(" | ")[1:] for line in section.splitlines() if line.startswith("| ")][1:]
    assert cells == [[f"{row['geneval']:.3f}", f"{row['forwards_per_image']:g}"] for row in rows]
