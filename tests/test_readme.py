"""The README's figures are those that were recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.bench import END_MARK, start_mark
from recipes.bench_tables import make_table, spread

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("domain", ["mnist", "shapes"])
def test_the_readmes_tables_are_those_that_were_recorded(domain: str) -> None:
    summary = json.loads((ROOT / f"benchmarks/results/{domain}.json").read_text())
    found = {name: result for name, result in summary.items() if isinstance(result, dict) and "arms" in result}
    shown = README.split(start_mark(domain))[1].split(END_MARK)[0]
    assert shown.strip() == make_table(found)


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
