"""The built-in rewards still score the stored images as they did when the scores were stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.base import Reward
from rewards.probes import NOT_PROBED, PROBES, is_near, probe, scores_of, stored_images, stored_scores
from rewards.registry import BUILT_IN

QUICK = ("classifier-log-prob", "geneval", "jpeg-compressibility", "loo-fid", "pixel-reconstruction")


def test_every_built_in_reward_is_probed_or_it_is_said_why_not() -> None:
    assert {point.name for point in BUILT_IN} == PROBES.keys() | NOT_PROBED.keys()
    assert not PROBES.keys() & NOT_PROBED.keys()
    assert stored_scores().keys() == PROBES.keys()


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PROBES]
)
def test_scores_are_the_stored_ones(name: str, tmp_path: Path) -> None:
    scores, stored = probe(name, tmp_path), stored_scores()[name]
    assert is_near(scores, stored, PROBES[name].tolerance), f"{scores}, stored is {stored}"
    assert abs(stored[0] - stored[1]) > 0.03  # else a reward that looks at nothing would do


def test_near_is_a_share_of_the_score_or_of_one() -> None:
    assert is_near([0.001, 2000.0], [0.0, 2001.0], 1e-3)
    assert not is_near([0.0011, 2000.0], [0.0, 2000.0], 1e-3)
    assert not is_near([0.0, 2003.0], [0.0, 2000.0], 1e-3)
    assert not is_near([float("nan"), 1.0], [0.0, 1.0], 1e-3)
    assert is_near([float("nan"), 1.0], [float("nan"), 1.0], 1e-3)


def test_stored_images_are_cut_from_their_middle() -> None:
    whole = stored_images(64)
    assert whole.shape == (2, 64, 64, 3)
    assert stored_images(28).equal(whole[:, 18:46, 18:46])
    red, white = whole[0, 34, 30].tolist(), whole[1].float().mean().item()
    assert red == [210, 40, 30]
    assert 150 < white < 200


def test_a_failing_reward_is_no_score() -> None:
    with pytest.raises(ValueError, match="'mine' raised KeyError"):
        scores_of(Reward("mine", lambda images, rows: [row["a"] for row in rows]), stored_images(8), [{}, {}])
