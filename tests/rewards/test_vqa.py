"""A judge that answers the questions of a row: each is asked once, and what is no answer is a failure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from judge_server import Server, first_words, question_of, running_server, says

from rewards.base import Reward
from rewards.builtin import chat, endpoint
from rewards.builtin.answers import read_chance, read_word
from rewards.builtin.endpoint import EndpointError
from rewards.builtin.vqa import VqaJudge
from rewards.registry import load_reward
from rewards.scoring import score_rewards

IMAGES = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 4, 5, 3)
CATS = {"question": "How many cats?", "answers": ["two", "2"]}
ROWS: list[dict[str, Any]] = [
    {"prompt": "two red cats", "questions": [CATS, "Are the cats red?"]},
    {"prompt": "a dog", "questions": ["Is there a dog?", {"question": "Does it run?", "depends_on": [0]}]},
]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint, "PAUSES", (0.01, 0.02))
    with running_server() as server:
        yield server


def judge(server: Server, score: str, **settings: Any) -> VqaJudge:
    return VqaJudge(**{"base_url": server.url, "model": "org/m", "score": score, "call_timeout": 5.0, **settings})


def says_by(server: Server, **answers: Any) -> None:
    """Answers by a word of the question: with a text, or with chances of first words."""

    def answer(request: dict[str, Any], before: int) -> tuple[int, bytes]:
        found = next(given for word, given in answers.items() if word in question_of(request))
        return says("x", **first_words(**found)) if isinstance(found, dict) else says(found)

    server.answer = answer


SOFT = {
    "many": {"2": 0.5, "Two": 0.25, "Three": 0.25},
    "red": {"Yes": 0.2, "_yes": 0.1, "no": 0.6},
    "dog": {"Yes": 1.0},
    "run": {"No": 0.51, "yes": 0.49},
}


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("soft-tifa-am", [(0.75 + 0.3) / 2, (1 + 0.49) / 2]),
        ("soft-tifa-gm", [math.sqrt(0.75 * 0.3), 0.7]),
        ("compbench-vqa", [0.75 * 0.3, 0.49]),
    ],
)
def test_probabilities_of_the_right_answers(server: Server, score: str, expected: list[float]) -> None:
    says_by(server, **SOFT)
    scores = judge(server, score)(IMAGES, ROWS)
    assert scores.values.tolist() == pytest.approx(expected)
    assert (scores.valid.tolist(), scores.error) == ([True, True], "")
    assert len(server.requests) == 4
    assert all((request["logprobs"], request["top_logprobs"]) == (True, 20) for request in server.requests)


def test_answers_by_themselves_need_no_probabilities(server: Server) -> None:
    says_by(server, many="Two.", red="No", dog="no", run="Yes, it runs")
    assert judge(server, "tifa")(IMAGES, ROWS).values.tolist() == [0.5, 0.5]
    assert judge(server, "dpg")(IMAGES, ROWS).values.tolist() == [0.5, 0.0]  # no dog, so none that runs
    assert not any("logprobs" in request for request in server.requests)


def test_each_question_is_asked_of_its_own_image_in_the_template(server: Server) -> None:
    says_by(server, many="2", red="yes", dog="yes", run="yes")
    judge(server, "tifa", template="{prompt}: {question}")(IMAGES, ROWS)
    pictures = {question_of(one): one["messages"][0]["content"][0]["image_url"]["url"] for one in server.requests}
    first, second = "two red cats: How many cats?", "two red cats: Are the cats red?"
    assert pictures.keys() == {first, second, "a dog: Is there a dog?", "a dog: Does it run?"}
    assert pictures[first] == pictures[second] != pictures["a dog: Does it run?"]


def test_an_image_is_encoded_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    says_by(server, many="2", red="yes", dog="yes", run="yes")
    encoded: list[Any] = []
    encode = chat._data_url
    monkeypatch.setattr(chat, "_data_url", lambda image: encoded.append(image) or encode(image))
    judge(server, "tifa", concurrency=1)(IMAGES, ROWS)
    assert len(encoded) == 2


def test_one_failed_question_fails_its_image_alone(server: Server) -> None:
    says_by(server, many="2", red="I cannot tell", dog="yes", run="no")
    reward = Reward("judge", judge(server, "tifa"))
    scores = score_rewards([reward], IMAGES, ROWS, timeout=5.0)
    assert scores.valid_NR[:, 0].tolist() == [False, True]
    assert scores.values_NR[1, 0].item() == 0.5
    told = str(scores.errors["judge"])
    assert (
        "image 0: EndpointError: asked 'Are the cats red?': the answer does not begin with yes or no: 'I cannot" in told
    )


def test_a_row_without_questions_is_not_judged(server: Server) -> None:
    says_by(server, dog="yes", run="yes")
    scores = judge(server, "tifa")(IMAGES, [{"prompt": "x"}, ROWS[1]])
    assert (math.isnan(scores.values[0]), scores.values[1].item(), scores.valid.tolist()) == (True, 1.0, [True, True])
    with pytest.raises(ValueError, match=r"row 1: questions is \[\]"):
        judge(server, "tifa")(IMAGES, [ROWS[0], {"questions": []}])


def test_without_probabilities_the_way_out_is_told(server: Server) -> None:
    says_by(server, many="2", red="yes", dog="yes", run="yes")
    scores = judge(server, "soft-tifa-gm")(IMAGES, ROWS)
    assert not scores.valid.any()
    assert "gives no log-probabilities" in scores.error
    assert "the score tifa or dpg (vqa)" in scores.error


def test_the_probability_of_what_is_not_listed_is_bounded() -> None:
    def chance(**listed: float) -> float:
        return read_chance({"choices": [first_words(**listed)]}, ("yes",))

    assert chance(No=0.9, Maybe=0.01, nO=0.002) == pytest.approx(0.002)  # as the least of them at most
    assert chance(No=0.9, Maybe=0.099) == pytest.approx(0.001)  # as what they leave at most
    assert chance(No=1.0) == 0.0
    assert chance(yes=0.7, Yes=0.3000001) == 1.0
    with pytest.raises(EndpointError, match="lists no likely first tokens"):
        chance()


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("Three", ("two", "2"), 0.0),
        ("2 cats", ("two", "2"), 1.0),
        ("17", ("two", "2"), 0.0),
        ("None", ("two", "2"), 0.0),
        ("NO", ("no",), 1.0),
        ("Red.", ("red",), 1.0),
        ("blue", ("red", "crimson"), 0.0),
        ("There are two", ("two", "2"), "a number"),
        ("2", ("yes",), "yes or no"),
        ("...", ("red",), "a word"),
    ],
)
def test_words_become_right_or_wrong_or_no_answer(text: str, answers: tuple[str, ...], expected: float | str) -> None:
    reply = {"choices": [{"message": {"content": text}}]}
    if isinstance(expected, float):
        assert read_word(reply, answers) == expected
    else:
        with pytest.raises(EndpointError, match=re.escape(f"does not begin with {expected}: {text!r}")):
            read_word(reply, answers)


def test_judges_that_ask_otherwise_have_other_fingerprints(server: Server) -> None:
    def fingerprint(score: str = "soft-tifa-gm", **settings: Any) -> str:
        return judge(server, score, **settings).fingerprint

    assert fingerprint() == fingerprint("soft-tifa-am") == fingerprint(concurrency=2)
    others = [
        fingerprint("tifa"),
        fingerprint(model="n"),
        fingerprint(template="{question}"),
        fingerprint(extra_body={"a": 1}),
    ]
    assert len({fingerprint(), *others}) == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"score": "vqascore"},
            "unknown score 'vqascore'; allowed: soft-tifa-am, soft-tifa-gm, tifa, dpg, compbench-vqa",
        ),
        ({"template": "Well?"}, r"the template 'Well\?' has no {question}"),
        ({"base_url": "localhost"}, "base_url is 'localhost'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_reward("vqa", **{"base_url": "http://localhost:1/v1", "model": "m", **settings})
