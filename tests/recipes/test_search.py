"""Searches as settings of `align sample` and `align eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from command_line import fails, run
from conftest import tiny_llamagen, tiny_llamagen_t2i
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from align.sampling import best_of_n, generate
from align.types import SamplingConfig
from evaluation.geneval.protocol import GenEvalProtocol
from evaluation.results import read_results
from evaluation.shapes_world.detector import ShapeColors, ShapeDetector
from recipes.config import compose
from recipes.parts import zoo_file
from recipes.protocols import make_protocol
from recipes.search_settings import make_draw, same_judges

REWARDS = """
import torch

def brightness(images, conditions):
    return images.float().mean(dim=(1, 2, 3))

def even(images, conditions):
    applies = torch.tensor([row["label"] % 2 == 0 for row in conditions])
    return brightness(images, conditions).masked_fill(~applies, float("nan"))

def asked(images, conditions):
    return torch.tensor([row.get("wanted", float("nan")) for row in conditions])
"""
CLASSIFIER = "{name: classifier-log-prob, kwargs: {weights: 'zoo:mnist-llamagen'}}"


@pytest.fixture(autouse=True)
def rewards_file(in_a_folder_of_its_own: None) -> None:
    Path("rewards_here.py").write_text(REWARDS)


def section(mode: str = "best_of_n", *names: str, **settings: Any) -> DictConfig:
    rewards = [{"name": f"rewards_here.py:{name}", "label": name} for name in names]
    return OmegaConf.create({"mode": mode, "n": 4, "reward": {"rewards": rewards, "timeout": None}, **settings})


def brightness(images: Tensor, rows: Sequence[Any]) -> Tensor:
    return images.float().mean(dim=(1, 2, 3))


def drawn(config: DictConfig, labels: Sequence[int]) -> Tensor:
    generator = tiny_llamagen()
    draw, _ = make_draw(config, generator)
    return torch.cat([rollout.tokens_BL for rollout in draw(generator, labels, SamplingConfig(), batch_size=9)])


def expected(labels: Sequence[int], n: int) -> Tensor:
    found = best_of_n(tiny_llamagen(), labels, SamplingConfig(), n=n, score=brightness, batch_size=100)
    return torch.cat([rollout.tokens_BL for rollout in found])


def test_no_search_is_plain_sampling() -> None:
    assert make_draw(compose("sample", []).search, tiny_llamagen()) == (generate, "")


def test_the_best_by_a_reward() -> None:
    labels = [0, 1, 2, 3, 0, 0]
    assert torch.equal(drawn(section("best_of_n", "brightness"), labels), expected(labels, 4))


def test_a_reward_that_does_not_apply_to_a_condition_is_left_out_there() -> None:
    """Odd classes keep the first candidate by the one, and are selected by the other where there are two."""
    labels = [0, 1, 2, 3, 3]
    best, first = expected(labels, 4), expected(labels, 1)
    even = torch.tensor([True, False, True, False, False])[:, None]
    assert torch.equal(drawn(section("best_of_n", "even"), labels), torch.where(even, best, first))
    assert torch.equal(drawn(section("best_of_n", "even", "brightness"), labels), best)


def test_rewards_see_the_columns_of_the_rows() -> None:
    generator = tiny_llamagen_t2i()
    rows = [{"prompt": "a red cube", "wanted": 1.0}, {"prompt": "two balls", "wanted": 2.0}]
    prompts = [row["prompt"] for row in rows]
    draw, _ = make_draw(section("best_of_n", "asked"), generator, rows)
    assert len(list(draw(generator, prompts, SamplingConfig(), batch_size=8))) == 1
    draw, _ = make_draw(section("best_of_n", "asked"), generator)
    with pytest.raises(ValueError, match="nothing was selected: asked applies to none of 8 images"):
        list(draw(generator, prompts, SamplingConfig(), batch_size=8))


def test_words_tell_searches_apart() -> None:
    steps = [{"after": 2, "keep": 3, "by": "diversity"}, {"after": 4, "keep": 2, "by": "potential"}]
    guided = {"steps": steps, "potential": "max", "lambda_": 2.5}
    weighed = section("best_of_n", "brightness", "even")
    weighed.reward.rewards[1].weight = 0.5
    words = [
        make_draw(config, tiny_llamagen())[1]
        for config in (section("best_of_n", "brightness"), weighed, section("tts", "even", **guided))
    ]
    assert words == [
        "best of 4 by brightness",
        "best of 4 by brightness + 0.5 even",
        "guided search of 4, 3 diverse after 2, 2 by max x2.5 after 4, by even",
    ]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (section("best"), "unknown search.mode 'best'; known: none, best_of_n, tts"),
        (section("best_of_n"), "there are none; name one"),
        (section("best_of_n", "brightness", n=0), "has 0 candidates"),
        (section("tts", "brightness", steps=[{"after": 2}], potential="value", lambda_=1), "search.steps holds"),
        (
            section(
                "tts",
                "brightness",
                steps=[{"after": 6, "keep": 1, "by": "potential"}],
                potential="value",
                lambda_=1,
            ),
            "this generator draws 6; selections come after 1 to 5",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(config: DictConfig, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make_draw(config, tiny_llamagen())


def test_rewards_that_cannot_select_are_refused() -> None:
    unweighed = section("best_of_n", "brightness")
    unweighed.reward.rewards[0].weight = 0.0
    with pytest.raises(ValueError, match="'brightness' has no weight, so that a search does not look at it"):
        make_draw(unweighed, tiny_llamagen())
    Path("rewards_here.py").write_text(REWARDS + "\nbrightness.kind = 'group'\n")
    with pytest.raises(ValueError, match="'brightness' compares the images of one prompt"):
        make_draw(section("best_of_n", "brightness"), tiny_llamagen())


def test_a_prompt_that_asks_for_different_things_cannot_be_searched_for() -> None:
    rows = [{"label": 1, "wanted": 2.0}, {"label": 1, "wanted": 3.0}]
    with pytest.raises(ValueError, match="1 has several rows with other columns"):
        make_draw(section("best_of_n", "asked"), tiny_llamagen(), rows)
    make_draw(section("best_of_n", "asked"), tiny_llamagen(), rows[:1] * 2)


def test_a_generator_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no tokenizer to make them with; set generator.tokenizer_checkpoint"):
        make_draw(section("best_of_n", "brightness"), tiny_llamagen(with_tokenizer=False))


def test_a_judge_that_selects_and_reports_is_found() -> None:
    digits = make_protocol("zoo:mnist-llamagen")
    config = section()
    for weights, found in (("reward", []), ("evaluator", ["the judge"])):
        folder = zoo_file("zoo:mnist-llamagen", "reward").parent
        file = next(path for path in folder.glob(f"{weights}*.safetensors"))
        config.reward.rewards = [
            {"name": "classifier-log-prob", "label": "the judge", "kwargs": {"weights": str(file)}}
        ]
        assert same_judges(config, digits) == found
    config.reward.rewards = [{"name": "geneval", "kwargs": {"detector": "shapes"}}]
    rows = [{"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "a photo of a circle"}]
    shapes = GenEvalProtocol("toy", rows, ShapeDetector(), ShapeColors())
    assert same_judges(config, shapes) == ["geneval"]
    other = GenEvalProtocol("toy", rows, RenamedDetector(), ShapeColors(), held_out=(ShapeDetector(), ShapeColors()))
    assert same_judges(config, other) == []
    assert same_judges(config, other, held_out=True) == ["geneval"]
    assert same_judges(config, shapes, held_out=True) == []
    assert same_judges(OmegaConf.create({"mode": "none"}), shapes) == []


class RenamedDetector(ShapeDetector):
    name = "another"


def test_rewards_as_a_protocol_are_judges_too() -> None:
    config = section("best_of_n", "brightness", "even")
    rewards: Any = SimpleNamespace(rewards=make_reward_set(config, 0))
    assert same_judges(config, rewards) == ["brightness"]


def make_reward_set(config: DictConfig, index: int) -> Any:
    from recipes.reward_settings import make_rewards

    return make_rewards(OmegaConf.create({"rewards": [config.reward.rewards[index]]}))


# --- commands


@pytest.mark.slow
def test_samples_are_searched_for(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["search=best_of_n", "search.n=3", f"search.reward.rewards=[{CLASSIFIER}]"]
    run("sample", "labels=[3,1,4]", "output_dir=drawn", *chosen)
    assert "3 images, best of 3 by classifier-log-prob, 147 forwards each" in capsys.readouterr().err
    with np.load("drawn/images.npz") as arrays:
        assert arrays["arr_0"].shape == (3, 28, 28, 3)
        assert arrays["arr_1"].tolist() == [3, 1, 4]
    steps = "search.steps=[{after: 2, keep: 4, by: diversity}, {after: 4, keep: 2, by: potential}]"
    guided = ["generator=mnist-var", "search=tts", "search.n=6", steps, f"search.reward.rewards=[{CLASSIFIER}]"]
    run("sample", "num_images=2", "output_dir=guided", *guided)
    assert "2 by value x10 after 4, by classifier-log-prob, 22 forwards each" in capsys.readouterr().err
    message = fails(capsys, "sample", "search=tts", f"search.reward.rewards=[{CLASSIFIER}]")
    assert "required and not given: search.steps" in message


@pytest.mark.slow
def test_evaluations_of_a_search_are_an_arm_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = zoo_file("zoo:mnist-llamagen", "reward").with_name("evaluator.safetensors")
    judge = f"search.reward.rewards=[{{name: classifier-log-prob, kwargs: {{weights: '{evaluator}'}}}}]"
    run("eval", "evaluation.num_images=70", "output_dir=scored", "search=best_of_n", "search.n=2", judge)
    told = capsys.readouterr().err
    assert "'classifier-log-prob' selects the images and is what protocol mnist-cnn judges them by" in told
    (row,) = read_results(Path("scored/results.jsonl"))
    assert (row.search, row.forwards_per_image) == ("best of 2 by classifier-log-prob", 98)
    assert row.metrics["accuracy_mnist-cnn_70"] > 0.9  # drawn once each it is 0.83
    message = fails(capsys, "eval", "images=elsewhere", "search=best_of_n", judge)
    assert "a search draws images, and images= are drawn already" in message
