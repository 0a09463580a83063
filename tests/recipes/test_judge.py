"""The judge: what it asks a generator for, what it writes down, and what it refuses before anything is drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_llamagen_t2i
from omegaconf import OmegaConf
from PIL import Image
from prompt_protocol import ROWS, Brightness
from tiny_runs import CAPTIONS

import recipes.judge
from align.sampling import sample
from align.types import Rollout, SamplingConfig
from evaluation.results import ResultRow, read_results
from recipes.judge import Judge, base_settings
from recipes.tasks import ClassTask, PromptTask
from rewards.base import Reward
from rewards.combine import RewardSet

SEVEN = SamplingConfig(seed=7)


def judge(folder: Path, protocol: Brightness | None = None, **settings: Any) -> Judge:
    return Judge(PromptTask(protocol or Brightness()), **{"batch_size": 4, "folder": folder, **settings})


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_images_come_row_after_row_and_do_not_depend_on_the_batch(tmp_path: Path, batch_size: int) -> None:
    generator, protocol = tiny_llamagen_t2i(), Brightness()
    judge(tmp_path, protocol, batch_size=batch_size).score(generator, "base", SEVEN, split="report")
    expected = []
    for index in range(6):  # two of each of three prompts
        condition = generator.encode_condition([CAPTIONS[index // 2]])
        tokens = sample(generator, condition, SEVEN, index_B=torch.tensor([index])).tokens_BL
        expected.append((index // 2, generator.decode(tokens).float().mean().item()))
    assert protocol.seen == [(row, pytest.approx(mean)) for row, mean in expected]


def test_a_row_of_results_tells_all_that_the_protocol_does(tmp_path: Path) -> None:
    row = judge(tmp_path).score(
        tiny_llamagen_t2i(), "base", replace(SEVEN, guidance_scale=2.0), split="report", grid=True
    )
    assert (row.n, row.protocol, row.reference_n) == (6, "toy", 3)
    assert row.extractor_fingerprint == ",".join(CAPTIONS)
    share = row.metrics["geneval_toy_6"]
    assert row.intervals == {"geneval_toy_6": (share - 0.1, share + 0.1)}
    assert (row.stderr, row.search) == ({"geneval_toy_6": 0.1}, "")
    assert row.samples == "samples/base_toy_g2_t1_seed7.png"
    assert row.verdicts == "verdicts/base_toy_g2_t1_seed7.jsonl"
    verdicts = [json.loads(line) for line in (tmp_path / row.verdicts).read_text().splitlines()]
    assert [verdict["prompt"] for verdict in verdicts] == [caption for caption in CAPTIONS for _ in range(2)]
    # one image of each prompt, with the prompt below it
    assert Image.open(tmp_path / row.samples).info["Description"].splitlines() == CAPTIONS
    assert read_results(tmp_path / "results.jsonl") == [row]


def test_rewards_see_the_whole_row(tmp_path: Path) -> None:
    def wanted(images: torch.Tensor, conditions: list[dict[str, Any]]) -> torch.Tensor:
        return torch.tensor([condition["at_least"] for condition in conditions])

    rewards = RewardSet((Reward("wanted", wanted, 0.5),))
    row = judge(tmp_path, rewards=rewards).score(tiny_llamagen_t2i(), "base", SEVEN, split="report")
    assert row.metrics["reward"] == pytest.approx(0.5 * 120)


def test_a_search_draws_in_its_own_way_and_is_an_arm_of_its_own(tmp_path: Path) -> None:
    def darkest(
        generator: Any, raw_conditions: Any, config: SamplingConfig, *, batch_size: int, first: int = 0
    ) -> Iterator[Rollout]:
        asked = [row["prompt"] for row in ROWS for _ in range(2)]
        assert list(raw_conditions) == asked[first : first + batch_size]
        condition = generator.encode_condition(raw_conditions)
        rollout = sample(generator, condition, config)
        yield replace(rollout, tokens_BL=torch.zeros_like(rollout.tokens_BL), forwards_per_image=99.0)

    protocol = Brightness()
    searching = judge(tmp_path, protocol, draw=darkest, search="best of 4 by geneval")
    row = searching.score(tiny_llamagen_t2i(), "base", SEVEN, split="report")
    assert (row.search, row.forwards_per_image) == ("best of 4 by geneval", 99.0)
    assert row.verdicts == "verdicts/base_toy_g1_t1_best-of-4-by-geneval_seed7.jsonl"
    assert len({mean for _, mean in protocol.seen}) == 1


def test_a_smaller_task_shows_in_count_and_fingerprint(tmp_path: Path) -> None:
    generator = tiny_llamagen_t2i()
    whole, fewer_images, fewer_rows = (
        judge(tmp_path, protocol).score(generator, "base", SEVEN, split="report")
        for protocol in (Brightness(), Brightness(images_per_prompt=1), Brightness(rows=ROWS[:2]))
    )
    assert (whole.n, fewer_images.n, fewer_rows.n) == (6, 3, 4)
    assert fewer_images.extractor_fingerprint == whole.extractor_fingerprint != fewer_rows.extractor_fingerprint


def test_grids_show_prompts_from_all_over(tmp_path: Path) -> None:
    many = [{"prompt": f"prompt {order}"} for order in range(48)]
    task = PromptTask(Brightness(rows=many, images_per_prompt=3))
    assert task.shown() == [6 * order for order in range(24)]
    assert task.captions([0, 6, 141]) == ["prompt 0", "prompt 2", "prompt 47"]
    assert PromptTask(Brightness(rows=many[:30])).shown()[-1] == 2 * 28
    often = [many[0], many[1], many[0], many[0], many[2]]
    assert PromptTask(Brightness(rows=often)).shown() == [0, 2, 8]  # a prompt that has several rows once


class Toy:
    """Stands for a protocol of classes, of which only the name is asked."""

    name = "mnist-cnn"


def test_tasks_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="toy judges images of prompts, and a llamagen generator draws images of classes"
    ):
        PromptTask(Brightness()).check(tiny_llamagen())
    with pytest.raises(
        ValueError, match="mnist-cnn judges images of classes, and a llamagen-t2i generator draws images of prompts"
    ):
        ClassTask(Toy(), 70).check(tiny_llamagen_t2i())  # type: ignore[arg-type]


def test_a_generator_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="has no tokenizer"):
        PromptTask(Brightness()).check(tiny_llamagen_t2i(with_tokenizer=False))


def test_a_prompt_that_the_generator_cannot_read_is_refused_by_its_row() -> None:
    class Small:
        def encode(self, captions: list[str]) -> Any:
            raise ValueError(f"unknown word {captions[0].split()[-1]!r}")

    generator = tiny_llamagen_t2i()
    generator.attach_text(Small())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="protocol toy, row 0 .*'a picture of one'.* unknown word 'one'"):
        PromptTask(Brightness()).check(generator)


@pytest.mark.parametrize(("metric", "best"), [("fid", 1.5), ("geneval", 3.0), ("clip-score", 3.0)])
def test_settings_are_chosen_by_the_leading_metric_in_its_direction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, best: float
) -> None:
    def score(self: Judge, generator: Any, label: str, sampling: SamplingConfig, *, split: str) -> ResultRow:
        metrics = {f"{metric}_toy_6": sampling.guidance_scale + sampling.temperature, "recall_toy_6": 0.5}
        if metric == "clip-score":
            del metrics["recall_toy_6"]
        return ResultRow(label, sampling.seed, 6, "toy", metrics, split=split)

    monkeypatch.setattr(recipes.judge.Judge, "score", score)
    section = OmegaConf.create(
        {
            "select_seed": 3,
            "guidance_scales": [1.5, 3.0, 2.0],
            "guidance_schedules": ["constant"],
            "temperatures": [0.9, 0.8],
            "filters": [],
        }
    )
    plain, tempered, guided, both = base_settings(judge(tmp_path), tiny_llamagen_t2i(), section)
    assert plain == SamplingConfig(seed=3)
    assert tempered.temperature == (0.8 if metric == "fid" else 0.9)
    assert guided.guidance_scale == best
    assert both == replace(guided, temperature=tempered.temperature)
