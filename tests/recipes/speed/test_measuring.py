"""Turns, floors, fits: what the tables' numbers are made of."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_llamagen

from recipes.speed import floor as floors
from recipes.speed.curves import fit, table
from recipes.speed.machine import interleaved, median_ratio, peak_bytes, read_bandwidth
from recipes.speed.models import make_model, published_sizes
from recipes.speed.turns import EndStep, in_turn


def test_works_are_done_in_turn_each_round_from_another_one() -> None:
    done: list[str] = []
    seconds = interleaved({name: lambda name=name: done.append(name) for name in "abc"}, 3)  # type: ignore[misc]
    assert "".join(done) == "abcbcacab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_taken_round_by_round() -> None:
    assert median_ratio([2.0, 40.0, 3.0], [1.0, 10.0, 3.0]) == 2.0


def test_loops_go_on_one_step_at_a_time() -> None:
    done: list[str] = []

    def loop(name: str, steps: int, end_step: EndStep) -> None:
        for _ in range(steps):
            done.append(name)
            end_step()

    seconds = in_turn({"a": lambda end: loop("a", 3, end), "b": lambda end: loop("b", 2, end)})
    assert "".join(done) == "ababa"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 1}


def test_what_fails_in_one_loop_stops_all() -> None:
    def endless(end_step: EndStep) -> None:
        while True:
            end_step()

    def failing(end_step: EndStep) -> None:
        end_step()
        raise ValueError("no more data")

    before = threading.active_count()
    with pytest.raises(ValueError, match="no more data"):
        in_turn({"endless": endless, "failing": failing})
    assert threading.active_count() == before


def test_the_floor_counts_what_is_read_and_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "read_bandwidth", lambda *_: 1.0)
    monkeypatch.setattr(floors, "matmul_rate", lambda *_: 1.0)
    found = floors.floor(tiny_llamagen(), rows=2, prompt=1)
    weights = 2 * (3 * 16 * 16 + 16 * 16 + 3 * 16 * 32) + 16 * 16  # two layers and the head, no table of embeddings
    before = 2 * 2 * 2 * 16 * (0 + 1 + 2 + 3 + 4 + 5)  # keys and values of two layers and rows
    assert found.reading == 4 * (6 * weights + before)
    attended = 2 * 2 * 16 * (1 + 2 + 3 + 4 + 5 + 6)  # two layers: by keys, and by values
    assert found.multiplying == 2 * 2 * (6 * weights + attended)
    assert found.seconds == max(found.reading, found.multiplying)


def test_the_bandwidth_is_of_as_many_bytes_as_asked() -> None:
    assert read_bandwidth(1 << 20, torch.device("cpu"), torch.float32) > 0
    assert read_bandwidth(10, torch.device("cpu"), torch.bfloat16) > 0


def cells(seconds: Any) -> list[dict[str, Any]]:
    return [
        {"size": "B", "parameters": 110_000_000, "guidance": 1.0, "precision": "fp32", "batch": batch, "length": length}
        | {"drawn_by": {"ours": {"seconds": [seconds(batch, length)]}}}
        for batch in (1, 2, 4)
        for length in (16, 64, 256)
    ]


def test_the_fit_finds_the_growth_and_says_how_far_it_is_off() -> None:
    (exact,) = fit(cells(lambda batch, length: 3 * length + 2 * batch * length + 0.5 * batch * length**2))
    assert exact["seconds_per_step"] == pytest.approx(3)
    assert exact["seconds_per_token"] == pytest.approx(2)
    assert exact["seconds_per_pair"] == pytest.approx(0.5)
    assert exact["deviation"] == pytest.approx(0, abs=1e-9)
    (cubic,) = fit(cells(lambda batch, length: float(batch**3 * length)))
    assert cubic["deviation"] > 0.2


def test_the_fit_says_how_sure_it_is_and_which_cell_is_furthest_off() -> None:
    given = cells(lambda batch, length: 1e-2 * length + 1e-3 * batch * length)
    noisy = next(cell for cell in given if (cell["batch"], cell["length"]) == (2, 64))
    noisy["drawn_by"]["ours"]["seconds"] = [1.1 * noisy["drawn_by"]["ours"]["seconds"][0]]
    (found,) = fit(given)
    assert found["worst"] == {"batch": 2, "length": 64}
    assert 0 < found["error_per_token"] < found["seconds_per_token"]
    assert abs(found["seconds_per_token"] - 1e-3) < 2 * found["error_per_token"]
    shown = table([found])
    assert "a L + b B L + c B L²" in shown
    assert "| B | 110 | 1.0 | fp32 | 9 |" in shown
    assert "(batch 2, 64 tokens)" in shown


def test_two_lengths_or_batch_sizes_fit_anything_and_say_nothing() -> None:
    given = cells(lambda batch, length: 1.0)
    assert fit([cell for cell in given if cell["length"] < 256]) == []
    assert fit([cell for cell in given if cell["batch"] < 4]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lamagen", "B", 64), "unknown model 'lamagen'; known: llamagen, var, janus"),
        (("llamagen", None, 64), "which size of llamagen"),
        (("llamagen", "C", 64), "no published llamagen has the size 'C'; known: B, L, XL"),
        (("llamagen", "B", 60), "length is 60; it must be a square number"),
        (("var", "d16", 256), "a VAR of random weights has 680 tokens, got length 256"),
        (("mnist-var", None, 64), "size and length are those of random weights"),
        (("shapes-t2i", None, None), "is a llamagen-t2i, which there is no plain loop of"),
    ],
)
def test_models_that_are_not(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(*arguments)


def test_published_sizes_are_those_of_the_files() -> None:
    sizes: Any = published_sizes("llamagen", "XL", grid=(24, 24))
    assert (sizes.dim, sizes.num_layers, sizes.hidden_dim, sizes.size_name) == (1280, 36, 3584, "XL")
    scales: Any = published_sizes("var", "d24")
    assert (scales.dim, scales.size_name, sum(side**2 for side in scales.patch_nums)) == (1536, "d24", 680)


@pytest.mark.slow
def test_a_process_has_a_peak_of_its_own() -> None:
    """And not that of the one which started it, whose pages it has before it becomes another program."""
    held = np.ones(10**9, dtype=np.uint8)
    code = "from recipes.speed.machine import peak_bytes; print(peak_bytes())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 0.9 * held.nbytes
    assert peak_bytes() > held.nbytes
