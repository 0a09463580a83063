"""A judge behind an endpoint: answers become numbers, and whatever is no answer a failure with the server's words."""

from __future__ import annotations

import base64
import io
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from judge_server import Server, first_words, question_of, running_server, says
from PIL import Image

from rewards.builtin import endpoint
from rewards.builtin.vlm_judge import VlmJudge
from rewards.registry import load_reward

IMAGES = torch.arange(3 * 4 * 5 * 3, dtype=torch.uint8).reshape(3, 4, 5, 3)
ROWS = [{"prompt": prompt} for prompt in ("a cat", "a dog", "a cup")]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(endpoint, "PAUSES", (0.01, 0.02))
    with running_server() as server:
        yield server


def judge(server: Server, **settings: Any) -> VlmJudge:
    return VlmJudge(**{"base_url": server.url, "model": "m", "call_timeout": 5.0, **settings})


def test_the_question_and_the_very_pixels_are_sent(server: Server) -> None:
    scores = judge(server, question="Is it {prompt}? {{}}", extra_body={"max_tokens": 9, "temperature": None})(
        IMAGES, ROWS
    )
    assert (scores.values.tolist(), scores.valid.tolist(), scores.error) == ([0.5] * 3, [True] * 3, "")
    assert server.headers[0]["path"] == "/v1/chat/completions"
    assert "Authorization" not in server.headers[0]
    requests = sorted(server.requests, key=question_of)
    assert [question_of(request) for request in requests] == ["Is it a cat? {}", "Is it a cup? {}", "Is it a dog? {}"]
    assert {key: requests[0][key] for key in requests[0] if key != "messages"} == {"model": "m", "max_tokens": 9}
    for request, index in zip(requests, (0, 2, 1), strict=True):
        head, data = request["messages"][0]["content"][0]["image_url"]["url"].split(",")
        assert head == "data:image/png;base64"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), IMAGES[index].numpy())


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    judge(server, api_key_env="MY_KEY")(IMAGES[:1], ROWS[:1])
    assert server.headers[0]["Authorization"] == "Bearer s3cret"
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ValueError, match="the environment variable MY_KEY is to hold the key"):
        judge(server, api_key_env="MY_KEY")


def test_questions_are_asked_at_once_and_answered_in_order(server: Server) -> None:
    together = threading.Barrier(3)

    def answer(request: dict[str, Any], before: int) -> tuple[int, bytes]:
        together.wait(5)
        place = ["a cat", "a dog", "a cup"].index(question_of(request))
        time.sleep(0.03 * (2 - place))  # the first comes last
        return says(f"Score: {place}")

    server.answer = answer
    assert judge(server, question="{prompt}", concurrency=3)(IMAGES, ROWS).values.tolist() == pytest.approx(
        [0, 0.1, 0.2]
    )


def only(server: Server, text: str | None, **settings: Any) -> tuple[float, str]:
    """The score of one image, and the error."""
    server.answer = lambda request, before: says(text)
    scores = judge(server, **settings)(IMAGES[:1], ROWS[:1])
    assert scores.valid.item() == (not scores.error)
    return scores.values.item(), scores.error


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("Score: 7.5", {}, 0.75),
        ("Score: 2? No.\nScore: 10", {}, 1.0),
        ("Score: 0", {}, 0.0),
        ("rated -1 of 3", {"pattern": r"rated (-?\d+)", "low": -2, "high": 3}, 0.2),
        ("Alignment: 5\nFinal Score: 4", {"answer": "unified-reward"}, 0.8),
        ("**Yes**, it does", {"answer": "yes-no"}, 1.0),
        ("no.", {"answer": "yes-no"}, 0.0),
    ],
)
def test_answers_become_numbers(server: Server, text: str, settings: dict[str, Any], expected: float) -> None:
    assert only(server, text, **settings) == (pytest.approx(expected), "")


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (
            "I cannot rate this",
            {},
            r"image 0: EndpointError: the answer has nothing that fits 'Score.*I cannot rate this",
        ),
        ("Score: 11", {}, "the answer has 11, which is not from 0 to 10: 'Score: 11'"),
        ("Score: ten", {"pattern": r"Score: (\w+)"}, "the answer has 'ten' where a number should be"),
        ("Yesterday", {"answer": "yes-no"}, "begins with neither yes nor no: 'Yesterday'"),
        (None, {}, "the model said nothing"),
        ("Yes", {"answer": "yes-probability"}, "the server gives no log-probabilities; .*take the answer yes-no"),
    ],
)
def test_what_cannot_be_read_is_a_failure(server: Server, text: str, settings: dict[str, Any], message: str) -> None:
    value, error = only(server, text, **settings)
    assert np.isnan(value)
    assert re.search(message, error), error


def test_the_probability_of_yes_is_over_all_its_spellings(server: Server) -> None:
    server.answer = lambda request, before: says("Yes", **first_words(Yes=0.3, _yes=0.15, No=0.1, NO=0.05, Maybe=0.4))
    scores = judge(server, answer="yes-probability")(IMAGES[:1], ROWS[:1])
    assert scores.values.item() == pytest.approx(0.45 / 0.6)
    assert (server.requests[0]["logprobs"], server.requests[0]["top_logprobs"]) == (True, 20)
    server.answer = lambda request, before: says("Well", **first_words(Well=0.9))
    assert (
        "neither yes nor no is among the likeliest"
        in judge(server, answer="yes-probability")(IMAGES[:1], ROWS[:1]).error
    )


def test_one_failure_leaves_the_others_alone(server: Server) -> None:
    server.answer = lambda request, before: says("?" if "dog" in question_of(request) else "Score: 10")
    scores = judge(server)(IMAGES, ROWS)
    assert scores.valid.tolist() == [True, False, True]
    assert scores.values[scores.valid].tolist() == [1, 1]
    assert scores.error.startswith("image 1: ")


@pytest.mark.parametrize("status", [500, 503, 429, 408, None])
def test_a_busy_server_is_asked_three_times(server: Server, status: int | None) -> None:
    busy = None if status is None else (status, b"try later")
    server.answer = lambda request, before: busy if before < 2 else says("Score: 10")
    assert judge(server)(IMAGES[:1], ROWS[:1]).values.tolist() == [1]
    server.requests.clear()
    server.answer = lambda request, before: busy
    error = judge(server)(IMAGES[:1], ROWS[:1]).error
    assert len(server.requests) == 3
    assert (
        (f"answered with status {status}" in error and "try later" in error) if status else "is the server up" in error
    )


@pytest.mark.parametrize("status", [400, 401, 404, 307])
def test_a_refusal_is_final(server: Server, status: int) -> None:
    server.answer = lambda request, before: (status, b"model `m` is unknown")
    scores = judge(server)(IMAGES[:1], ROWS[:1])
    assert scores.valid.tolist() == [False]
    assert f"status {status}" in scores.error
    assert "model `m` is unknown" in scores.error
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "message"), [(b"<html>", "no JSON: <html>"), (b'{"a": 1}', "no chat completion: .*'a'")]
)
def test_another_kind_of_server_is_told(server: Server, body: bytes, message: str) -> None:
    server.answer = lambda request, before: (200, body)
    assert re.search(message, judge(server)(IMAGES[:1], ROWS[:1]).error)


def test_a_server_that_hangs_is_given_up_on(server: Server) -> None:
    server.answer = lambda request, before: server.hang() if before < 1 else says("Score: 10")
    assert judge(server, call_timeout=0.5)(IMAGES[:1], ROWS[:1]).values.tolist() == [1]
    server.requests.clear()
    server.answer = lambda request, before: server.hang()
    assert "no whole answer within 0.2 seconds" in judge(server, call_timeout=0.2)(IMAGES[:1], ROWS[:1]).error
    assert len(server.requests) == 3


def test_the_deadline_is_for_the_whole_batch(server: Server) -> None:
    server.answer = lambda request, before: says("Score: 10") if "cat" in question_of(request) else server.hang()
    started = time.monotonic()
    scores = judge(server, concurrency=1, deadline=1.0)(IMAGES, ROWS)
    assert time.monotonic() - started < 10
    assert scores.valid.tolist() == [True, False, False]
    assert len(server.requests) == 2  # there was no time to ask for the third


def test_a_body_that_is_cut_off_is_asked_for_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = says("Score: 10")[1]
    lengths = iter([len(whole) + 5, len(whole)])
    handler = server.server.RequestHandlerClass
    send = handler.send_header
    monkeypatch.setattr(
        handler,
        "send_header",
        lambda self, key, value: send(self, key, str(next(lengths)) if key == "Content-Length" else value),
    )
    server.answer = lambda request, before: (200, whole)
    assert judge(server)(IMAGES[:1], ROWS[:1]).values.tolist() == [1]
    assert len(server.requests) == 2


def test_a_row_without_the_questions_column_is_refused(server: Server) -> None:
    with pytest.raises(ValueError, match=r"row 1 has no 'style', which the question names; it has \['prompt'\]"):
        judge(server, question="{prompt} in {style}")(IMAGES[:2], [{"prompt": "a", "style": "b"}, {"prompt": "a"}])
    assert server.requests == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url is 'localhost:8000'; it begins with http"),
        ({"answer": "stars"}, "unknown answer 'stars'; allowed: number, yes-no, yes-probability, unified-reward"),
        ({"question": "{prompt"}, "the question cannot be read"),
        ({"question": "{}"}, "the question names {}; a column's name is needed"),
        ({"question": "{prompt.__class__}"}, "the question names {prompt.__class__}"),
        ({"pattern": "("}, r"pattern is '\(', which is no regular expression"),
        ({"pattern": r"\d"}, "has 0 groups; it needs one"),
        ({"low": 3, "high": 3}, "low is 3 and high 3; low must be below"),
        ({"answer": "yes-no", "high": 3}, "are for answers with a number; the answer is 'yes-no'"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"deadline": 0}, "deadline 0; at least 1, and seconds above 0"),
        ({"modl": "m"}, "unexpected keyword argument 'modl'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_reward("vlm-judge", **{"base_url": "http://localhost:1/v1", "model": "m", **settings})
