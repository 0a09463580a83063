"""The four cells of the question of guidance, and which arms they hold."""

from typing import Any

import pytest

from evaluation.arms import Arm, summarize
from evaluation.cells import CELLS, best_of_cells
from evaluation.metric_names import METRICS, Metric
from evaluation.results import ResultRow

FID = METRICS[0]
RECALL = Metric("recall", "recall")


def arm(fid: float, *, label: str = "base", recall: float = 0.5, **settings: Any) -> Arm:
    metrics = {"fid_toy_2k": fid, "recall_toy_2k": recall}
    (one,) = summarize([ResultRow(label, 1, 2000, "toy", metrics, **settings)])
    return one


@pytest.mark.parametrize(
    ("settings", "cell"),
    [
        ({}, "off-plain"),
        ({"temperature": 0.9}, "off-tuned"),
        ({"top_k": 900}, "off-tuned"),
        ({"top_p": 0.96}, "off-tuned"),
        ({"guidance_scale": 1.5}, "guided-plain"),
        ({"guidance_scale": 0.5}, "guided-plain"),
        ({"guidance_scale": 1.5, "guidance_schedule": "linear", "guided_blocks": 5}, "guided-plain"),
        ({"guidance_scale": 1.5, "top_k": 900}, "guided-tuned"),
        ({"guidance_scale": 1.5, "temperature": 1.1}, "guided-tuned"),
        ({"search": "best of 4 by geneval"}, None),
        ({"search": "best of 4 by geneval", "guidance_scale": 1.5, "top_p": 0.9}, None),
    ],
)
def test_an_arm_is_in_one_cell_and_a_search_in_none(settings: dict[str, Any], cell: str | None) -> None:
    one = arm(9.0, **settings)
    assert [name for name, other in CELLS.items() if other.holds(one)] == ([cell] if cell else [])


def test_the_best_of_a_cell_and_among_how_many() -> None:
    (unmeasured,) = summarize([ResultRow("base", 1, 2000, "toy", {"kid_toy_2k": 0.1}, top_k=50)])
    arms = [
        arm(12.0, temperature=0.8),
        arm(11.0, temperature=0.7, recall=0.4),
        arm(float("nan"), temperature=0.1),
        unmeasured,
        arm(3.0, guidance_scale=2.0),
    ]
    cell = CELLS["off-tuned"]
    assert cell.best(arms, FID) == (arms[1], 3), "of two lower ones, and one undefined"
    assert cell.best(arms, RECALL) == (arms[0], 3), "higher is better"
    assert CELLS["off-plain"].best(arms, FID) == (None, 0)


def test_the_best_of_each_cell_that_has_one() -> None:
    arms = [
        arm(5.0, guidance_scale=2.0),
        arm(4.0, guidance_scale=3.0),
        arm(12.0, temperature=0.8),
        arm(16.0),
        arm(1.0, search="best of 4 by geneval"),
    ]
    assert best_of_cells(arms, FID) == [arms[3], arms[2], arms[1]]
