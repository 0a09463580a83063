"""Any rewards on any prompts: means by reward, tag and kind of question, by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from judge_server import Server, first_words, question_of, running_server, says
from omegaconf import OmegaConf

from evaluation.prompted import PromptProtocol
from recipes import reward_evaluator
from recipes.reward_protocol import RewardProtocol, make_reward_protocol
from rewards.base import PartialScores, Reward, groupwise
from rewards.builtin.vqa import VqaJudge
from rewards.combine import RewardSet

ROWS = [
    {"id": "a", "prompt": "one", "tag": "Food & Drink"},
    {"id": "b", "prompt": "two", "tag": "Food & Drink"},
    {"id": "c", "prompt": "three", "tag": "art_2"},
]


def brightness(images: torch.Tensor, conditions: list[dict[str, Any]]) -> torch.Tensor:
    return images.float().mean(dim=(1, 2, 3))


def painted(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 4, 3)


def protocol(*rewards: Reward, rows: Any = ROWS, images_per_prompt: int = 2) -> RewardProtocol:
    return RewardProtocol("mine", rows, RewardSet(rewards), images_per_prompt)


def numbers(metrics: dict[str, float], suffix: str) -> dict[str, float]:
    assert all(key.endswith(suffix) for key in metrics)
    return {key.removesuffix(suffix): value for key, value in metrics.items()}


def test_means_by_reward_and_by_tag() -> None:
    made: PromptProtocol = protocol(Reward("bright", brightness))
    evaluator = made.evaluator()
    evaluator.update(painted(1, 5, 100), [0, 1, 2])
    evaluator.update(painted(200, 3, 7), [2, 0, 1])
    result = evaluator.compute()
    assert numbers(result.metrics, "_mine_6") == {
        "bright": pytest.approx((2 + 6 + 150) / 3),
        "bright/food-drink": 4.0,
        "bright/art_2": 150.0,
        "failed-bright": 0.0,
        "not-applicable-bright": 0.0,
    }
    assert (result.n, result.protocol, result.reference_n) == (6, "mine", 3)
    assert result.intervals["bright_mine_6"] == (2.0, 150.0)  # all three draws the same prompt: 2 of 27
    assert result.stderr.keys() == result.intervals.keys() == {"bright_mine_6", "bright/food-drink_mine_6"}


def test_failures_and_what_does_not_apply_are_counted_and_left_out(tmp_path: Path) -> None:
    def choosy(images: torch.Tensor, conditions: list[dict[str, Any]]) -> PartialScores:
        values = brightness(images, conditions)
        return PartialScores(values.masked_fill(values == 9, math.nan), values != 8, "it is an eight")

    evaluator = protocol(Reward("choosy", choosy), Reward("bright", brightness)).evaluator()
    evaluator.update(painted(1, 8, 8, 8, 9, 3), [0, 0, 1, 1, 2, 2])
    with pytest.warns(UserWarning, match=r"'choosy' failed for 3 of 6 images, .*the first: row 0: .*it is an eight"):
        found = numbers(evaluator.compute().metrics, "_mine_6")
    assert found["choosy"] == 2.0  # of the prompts' means 1 and 3
    assert found["choosy/food-drink"] == 1.0
    assert (found["failed-choosy"], found["not-applicable-choosy"], found["failed-bright"]) == (3, 1, 0)
    evaluator.write(tmp_path / "verdicts.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert lines[0] == {
        **{"id": "a", "tag": "Food & Drink", "prompt": "one", "image": 0},
        **{"scores": {"choosy": 1.0, "bright": 1.0}, "failed": {}},
    }
    assert [line["scores"]["choosy"] for line in lines] == [1, None, None, None, None, 3]
    assert ["choosy" in line["failed"] for line in lines] == [False, True, True, True, False, False]
    assert [line["image"] for line in lines] == [0, 1] * 3


def test_it_sums_up_no_fewer_images_and_takes_no_more() -> None:
    evaluator = protocol(Reward("bright", brightness)).evaluator()
    evaluator.update(painted(1, 2, 3), [0, 0, 1])
    with pytest.raises(ValueError, match="row 1 has 1 images of 2, and so it is with 2 of 3 rows"):
        evaluator.compute()
    for images, rows, message in (
        (painted(1, 2), [1, 0], "row 0 gets 3 images; protocol mine asks for 2"),
        (painted(1, 2), [1, 3], "there is no row 3"),
        (painted(1, 2), [2, 2, 1], "2 images but 3 row numbers"),
        (painted(1)[0], [1], "images"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluator.update(images, rows)
    evaluator.update(painted(3, 4, 4), [1, 2, 2])  # nothing of the refused ones has stayed
    assert evaluator.compute().metrics["bright_mine_6"] == pytest.approx((1.5 + 3 + 4) / 3)


def test_without_a_single_score_there_is_no_result() -> None:
    def broken(images: torch.Tensor, conditions: list[dict[str, Any]]) -> None:
        raise RuntimeError("no weights")

    evaluator = protocol(Reward("broken", broken), images_per_prompt=1).evaluator()
    evaluator.update(painted(1, 2, 3), [0, 1, 2])
    with pytest.raises(ValueError, match="not one image has a score: row 0: .*no weights"):
        evaluator.compute()


# --- a judge of questions


@pytest.fixture
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


ASKED = {
    "a": [
        {"question": "A hat?", "kind": "entity - whole"},
        {"question": "Red?", "depends_on": [0], "kind": "entity - state"},
    ],
    "b": [{"question": "A cup?", "kind": "entity - part"}],
}
JUDGED = [{"id": key, "prompt": key, "tag": "t", "questions": asked} for key, asked in ASKED.items()]


def judged(server: Server, score: str) -> Reward:
    return Reward("judge", VqaJudge(base_url=server.url, model="org/My_VLM-8B", score=score, call_timeout=5.0))


def test_one_judge_gives_both_means_of_soft_tifa_and_those_of_kinds(server: Server, tmp_path: Path) -> None:
    chances = {"hat": 0.9, "Red": 0.4, "cup": 0.5}

    def answer(request: dict[str, Any], before: int) -> tuple[int, bytes]:
        chance = next(chance for word, chance in chances.items() if word in question_of(request))
        return says("x", **first_words(yes=chance, no=1 - chance))

    server.answer = answer
    evaluator = protocol(judged(server, "soft-tifa-gm"), rows=JUDGED, images_per_prompt=1).evaluator()
    evaluator.update(painted(1, 2), [1, 0])
    found = numbers(evaluator.compute().metrics, "_mine_2")
    assert found == {
        "judge": pytest.approx((0.6 + 0.5) / 2),  # the root of 0.36
        "soft-tifa-gm": pytest.approx(0.55),
        "soft-tifa-gm/t": pytest.approx(0.55),
        "soft-tifa-am": pytest.approx((0.65 + 0.5) / 2),
        "soft-tifa-am/t": pytest.approx(0.575),
        "soft-tifa-am/entity": pytest.approx((0.9 + 0.4 + 0.5) / 3),  # of questions, not of prompts
        "soft-tifa-am/entity-state": pytest.approx(0.4),
        "soft-tifa-am/entity-part": pytest.approx(0.5),
        "soft-tifa-am/entity-whole": pytest.approx(0.9),
        "failed-judge": 0.0,
        "not-applicable-judge": 0.0,
    }
    assert len(server.requests) == 3
    evaluator.write(tmp_path / "verdicts.jsonl")
    first = json.loads((tmp_path / "verdicts.jsonl").read_text().splitlines()[0])
    assert first["answers"] == [["A hat?", pytest.approx(0.9)], ["Red?", pytest.approx(0.4)]]


def test_kinds_of_dpg_count_answers_as_given(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_evaluator, "JUDGED_AT_ONCE", 3)
    server.answer = lambda request, before: says("no" if "hat" in question_of(request) else "yes")
    rewards = [judged(server, "dpg"), Reward("bright", brightness)]
    evaluator = protocol(*rewards, rows=JUDGED, images_per_prompt=2).evaluator()
    evaluator.update(painted(1, 1, 3, 3), [0, 0, 1, 1])
    found = numbers(evaluator.compute().metrics, "_mine_4")
    assert found["dpg"] == found["judge"] == 0.5  # 0 and 1: the red hat fails with the hat
    assert found["dpg/entity"] == pytest.approx(2 / 3)
    assert (found["dpg/entity-state"], found["dpg/entity-whole"]) == (1.0, 0.0)
    assert found["bright"] == 2.0
    assert next(iter(found)) == "judge"


def test_a_judge_that_fails_for_some_is_told(server: Server) -> None:
    server.answer = lambda request, before: says("?" if "hat" in question_of(request) else "yes")
    evaluator = protocol(judged(server, "tifa"), rows=JUDGED, images_per_prompt=1).evaluator()
    evaluator.update(painted(1, 3), [0, 1])
    with pytest.warns(UserWarning, match="failed for 1 of 2 images.*row 0: asked 'A hat"):
        found = numbers(evaluator.compute().metrics, "_mine_2")
    assert (found["tifa"], found["failed-judge"], "tifa/entity-state" in found) == (1.0, 1.0, False)


# --- from settings


def test_the_name_tells_the_suite_and_the_judge(tmp_path: Path) -> None:
    suite = tmp_path / "geneval2_data.jsonl"
    atoms = {"prompt": "a hat", "atom_count": 1, "vqa_list": [["A hat?", "Yes"]], "skills": ["object"]}
    suite.write_text(json.dumps(atoms))
    kwargs = {"base_url": "http://localhost:1/v1", "model": "org/My_VLM-8B"}
    made = make_reward_protocol(suite, OmegaConf.create([{"name": "vqa", "kwargs": kwargs}]), 1, suite="geneval2")
    assert (made.name, made.images_per_prompt, len(made.rows)) == ("geneval2-my-vlm-8b", 1, 1)
    (tmp_path / "geneval.txt").write_text("a hat\na cup")
    section = {"rewards": ["jpeg-compressibility"], "timeout": 3.0}
    made = make_reward_protocol(str(tmp_path / "geneval.txt"), OmegaConf.create(section), 2)
    assert (made.name, [row["prompt"] for row in made.rows]) == ("prompts-geneval", ["a hat", "a cup"])
    assert make_reward_protocol(["a hat"], ["jpeg-compressibility"], 2).name == "prompts"
    with pytest.raises(ValueError, match="suite 'dpg' is read from a file"):
        make_reward_protocol(["a hat"], ["jpeg-compressibility"], 1, suite="dpg")
    with pytest.raises(ValueError, match="rewards is 'jpeg'; a list is needed"):
        make_reward_protocol(["a hat"], "jpeg", 1)


def test_other_rows_or_judges_have_another_fingerprint(server: Server) -> None:
    soft, hard = judged(server, "soft-tifa-gm"), judged(server, "tifa")
    prints = [protocol(soft, rows=JUDGED), protocol(hard, rows=JUDGED), protocol(soft, rows=JUDGED[:1])]
    assert len({one.fingerprint for one in prints}) == 3
    assert protocol(soft, rows=JUDGED).fingerprint == prints[0].fingerprint == prints[0].evaluator()._fingerprint


@groupwise
def ranks(images: torch.Tensor, conditions: list[dict[str, Any]]) -> torch.Tensor:
    return brightness(images, conditions)


class Frechet:
    def describe(self) -> None: ...
    def score(self) -> None: ...
    def advance(self) -> None: ...
    def state_dict(self) -> None: ...
    def load_state_dict(self) -> None: ...


def test_what_cannot_be_evaluated_is_refused(server: Server) -> None:
    bright, judge = Reward("bright", brightness), judged(server, "tifa")
    for build, message in (
        (lambda: RewardProtocol("A b", ROWS, RewardSet((bright,)), 1), "'A b' must be lower-case"),
        (lambda: protocol(), "has 3 prompts, 0 rewards and 2 images"),
        (lambda: protocol(bright, rows=[]), "has 0 prompts"),
        (lambda: protocol(bright, images_per_prompt=0), "and 0 images"),
        (lambda: protocol(Reward("ranks", ranks)), "'ranks' compares the images of one prompt"),
        (lambda: protocol(Reward("fid", Frechet())), "'fid' scores an image by the batch"),  # type: ignore[arg-type]
        (lambda: protocol(judge), "'judge' answers questions, and no row has any"),
        (lambda: protocol(bright, rows=[{"prompt": "x", "questions": [3]}]), r"row 0: questions\[0\] is 3"),
        (lambda: protocol(Reward("is_red", brightness)), "'is_red' would be taken for the metric 'is'; .* 'is-red'"),
        (lambda: protocol(bright, Reward("bright_too", brightness)), "for the metric 'bright'"),
        (lambda: protocol(judge, Reward("other", judge.function), rows=JUDGED), "judge and other both are judges"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
