"""Infinity's image sizes: the schedules of scales behind them, and a tokenizer that fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_infinity, tiny_var

from align import load_generator, sample
from align.checkpoints import save_tokenizer
from align.generators.infinity_sizes import published_schedules
from align.tensor_files import save_tensors


def test_every_published_image_size_has_a_schedule() -> None:
    schedules = published_schedules()
    assert len(schedules) == 60  # eight shapes, seven of them both ways, at four areas
    square, number = schedules[1024, 1024]
    assert (number, sum(height * width for height, width in square)) == (13, 10521)
    for (height, width), (schedule, drawn) in schedules.items():
        assert (16 * schedule[drawn - 1][0], 16 * schedule[drawn - 1][1]) == (height, width)
        mirrored, same = schedules[width, height]
        assert (tuple((b, a) for a, b in mirrored), same) == (schedule, drawn)
    # a smaller image takes the first scales of a larger one's schedule, and stands at its places
    assert schedules[256, 256] == (square, 7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "does not say its scales; pass image_size=1024"),
        ({"image_size": 1024, "schedule": [(1, 1), (2, 2)]}, "and not both"),
        ({"image_size": 1000}, r"draws 1000x1000 pixels .*squares: 256, 512, 768, 1024; others near it: 1024x1024"),
        ({"image_size": 1024, "num_scales": 3}, "num_scales= goes with schedule="),
        ({"schedule": [(1, 1), (2, 2)], "num_scales": 3}, "num_scales is 3; it must be 2 to 2"),
        ({"schedule": [(2, 2), (3, 3)]}, r"starts at \(2, 2\)"),
        ({"schedule": [(1, 1), (3, 3), (2, 4)]}, "two or more growing maps"),
        ({"image_size": 1024}, "num_scales is 13, and this Infinity knows 5 scales"),
        ({"grid": (2, 2)}, "takes image_size= .*; got \\['grid'\\]"),
    ],
)
def test_scales_are_asked_for_and_checked(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    tiny_infinity().save_published(tmp_path / "infinity.pth")
    with pytest.raises(ValueError, match=message):
        load_generator("infinity", tmp_path / "infinity.pth", **settings)


def test_the_8b_is_refused_by_name(tmp_path: Path) -> None:
    save_tensors(tmp_path / "8b.pth", {**tiny_infinity().state_dict(), "word_embed.weight": torch.ones(16, 56)})
    with pytest.raises(ValueError, match="56 bits a position: those of 2x2 positions of its tokenizer, as Infinity-8B"):
        load_generator("infinity", tmp_path / "8b.pth", image_size=1024)


def test_the_tokenizer_must_be_there_and_fit(tmp_path: Path) -> None:
    generator = tiny_infinity(with_tokenizer=False)
    condition = generator.encode_condition(["red"])
    for call in (
        lambda: generator(torch.zeros(1, 52, dtype=torch.long), condition),
        lambda: sample(generator, condition),
        lambda: generator.decode(torch.zeros(1, 52, dtype=torch.long)),
    ):
        with pytest.raises(ValueError, match="without a tokenizer.*pass tokenizer_checkpoint="):
            call()
    scales = {"schedule": generator.sizes.schedule, "num_scales": 4}
    generator.save_published(tmp_path / "infinity.pth")
    var = tiny_var()
    assert var.tokenizer is not None
    save_tokenizer(var.tokenizer, tmp_path / "var.pth")
    with pytest.raises(ValueError, match="does not say its scales; pass patch_nums="):
        load_generator("infinity", tmp_path / "infinity.pth", tmp_path / "var.pth", **scales)
    tokenizer = tiny_infinity().tokenizer
    assert tokenizer is not None
    save_tokenizer(tokenizer, tmp_path / "vae.pth")
    save_tensors(tmp_path / "wide.pth", {**generator.state_dict(), "word_embed.weight": torch.ones(16, 5)})
    with pytest.raises(ValueError, match="reads codes of 5 numbers and its tokenizer's have 4"):
        load_generator("infinity", tmp_path / "wide.pth", tmp_path / "vae.pth", **scales)
    with pytest.raises(ValueError, match="it looks like Infinity.s image tokenizer: pass it as tokenizer_checkpoint"):
        load_generator("infinity", tmp_path / "vae.pth", **scales)
