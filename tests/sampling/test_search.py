"""Searches: what is drawn, what is kept, what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import tiny_infinity, tiny_janus, tiny_llamagen, tiny_llamagen_t2i, tiny_var
from torch import Tensor

from align.generators.base import Generator, evaluating
from align.sampling import SearchPlan, Selection, best_of_n, draw, generate, guided_search, sample, score, search
from align.sampling.loop import Drawing, random_stream
from align.types import Rollout, SamplingConfig

LABELS = [0, 1, 2, 3, 1]
GUIDED = SamplingConfig(guidance_scale=2.0, guided_blocks=2, seed=3)
FAMILIES: dict[str, Callable[[], Generator]] = {
    "llamagen": tiny_llamagen,
    "llamagen-t2i": tiny_llamagen_t2i,
    "var": tiny_var,
    "infinity": tiny_infinity,
    "janus": tiny_janus,
}


def never(images: Tensor, rows: list[Any]) -> Tensor:
    raise AssertionError("nothing is to be scored")


def brightness(images: Tensor, rows: list[Any]) -> Tensor:
    return images.float().mean(dim=(1, 2, 3))


def joined(rollouts: Iterable[Rollout]) -> Tensor:
    return torch.cat([rollout.tokens_BL for rollout in rollouts])


def candidate(generator: Generator, config: SamplingConfig, number: int) -> Tensor:
    """Tokens of that candidate of every sample, drawn alone."""
    with evaluating(generator):
        drawing = Drawing(
            generator, generator.encode_condition(LABELS), config, candidate_B=torch.full((len(LABELS),), number)
        )
        while not drawing.done:
            drawing.draw_block()
    return drawing.tokens_Bl


@pytest.fixture(params=["llamagen", "var"])
def generator(request: pytest.FixtureRequest) -> Generator:
    return FAMILIES[request.param]()


@pytest.mark.parametrize("config", [SamplingConfig(seed=3), GUIDED], ids=["plain", "guided"])
def test_one_candidate_is_plain_sampling(generator: Generator, config: SamplingConfig) -> None:
    plain = list(generate(generator, LABELS, config, batch_size=3))
    found = list(best_of_n(generator, LABELS, config, n=1, score=never, batch_size=3))
    assert len(found) == len(plain) == 2
    for one, other in zip(found, plain, strict=True):
        for name in ("tokens_BL", "logprobs_BL", "index_B"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert one.forwards_per_image == other.forwards_per_image


def test_the_best_candidate_of_each_image_is_kept(generator: Generator) -> None:
    """Each with the condition that it was drawn for. Of the fourth image no candidate can be scored, of the fifth two."""
    nan = math.nan
    values = torch.tensor([[1, 5, 2], [9, 8, 7], [-3, -2, -1], [nan, nan, nan], [nan, nan, -9.0]])
    seen = []

    def told(images: Tensor, rows: list[Any]) -> Tensor:
        seen.append((images, rows))
        return values.flatten()

    (found,) = best_of_n(generator, LABELS, GUIDED, n=3, score=told, batch_size=15)
    candidates = [candidate(generator, GUIDED, number) for number in range(3)]
    chosen = [1, 0, 2, 0, 2]
    assert torch.equal(found.tokens_BL, torch.stack([candidates[c][row] for row, c in enumerate(chosen)]))
    assert torch.equal(candidates[0], sample(generator, generator.encode_condition(LABELS), GUIDED).tokens_BL)
    assert not torch.equal(candidates[0], candidates[1])
    assert found.index_B.tolist() == [0, 1, 2, 3, 4]
    assert found.condition.tensors["label"].tolist() == LABELS
    ((images, rows),) = seen
    assert rows == [label for label in LABELS for _ in range(3)]
    assert torch.equal(images[1::3], generator.decode(candidates[1]))


def test_equal_scores_keep_the_first(generator: Generator) -> None:
    (found,) = best_of_n(
        generator, LABELS, GUIDED, n=3, score=lambda images, rows: torch.zeros(len(rows)), batch_size=15
    )
    assert torch.equal(found.tokens_BL, candidate(generator, GUIDED, 0))


PLANS = {
    "best of three": SearchPlan(3),
    "guided": SearchPlan(
        5, (Selection(1, 4, "potential"), Selection(2, 3, "diversity")), potential="diff", lambda_=0.1
    ),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_search_does_not_depend_on_its_batch(generator: Generator, plan: SearchPlan) -> None:
    ways = [
        joined(guided_search(generator, LABELS, GUIDED, plan=plan, score=brightness, batch_size=rows))
        for rows in (1, 2 * plan.candidates, 100)
    ]
    assert torch.equal(ways[0], ways[1])
    assert torch.equal(ways[0], ways[2])
    other = guided_search(generator, LABELS, replace(GUIDED, seed=4), plan=plan, score=brightness, batch_size=100)
    assert not torch.equal(ways[0], joined(other))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_a_candidate_consists_of_is_kept_together(family: str) -> None:
    """Caches, conditions and tokens: teacher forcing gives the kept ones the log-probs that they were drawn with."""
    generator = FAMILIES[family]()
    raw = LABELS if generator.num_classes else ["a red cube", "two balls", "green", "two balls on a box"]
    plan = SearchPlan(5, (Selection(1, 6, "potential"), Selection(2, 3, "diversity")), lambda_=0.1)
    (found,) = guided_search(generator, raw, GUIDED, plan=plan, score=brightness, batch_size=100)
    condition = generator.encode_condition(raw)
    assert found.condition.equals(condition).all()
    with torch.no_grad():
        scored = score(generator, found.tokens_BL, condition, GUIDED)
    torch.testing.assert_close(found.logprobs_BL, scored, atol=2e-5, rtol=1e-5)


# --- costs


@pytest.mark.parametrize(
    ("family", "config", "plan", "expected"),
    [
        # tiny LlamaGen draws 6 blocks, tiny VAR 3
        ("llamagen", SamplingConfig(), SearchPlan(4), 4 * 6),
        ("llamagen", GUIDED, SearchPlan(4), 4 * (6 + 2)),
        ("var", SamplingConfig(), SearchPlan(4), 4 * 3),
        (
            "var",
            SamplingConfig(),
            SearchPlan(6, (Selection(1, 4, "diversity"), Selection(2, 2, "potential"))),
            6 + 4 + 2,
        ),
        ("var", GUIDED, SearchPlan(6, (Selection(1, 4, "diversity"), Selection(2, 2, "potential"))), 12 + 8 + 2),
        ("var", SamplingConfig(), SearchPlan(2, (Selection(2, 5, "potential"),)), 2 + 2 + 5),
        # 4 candidates for 5 blocks and a look at the sixth, then one of them that draws it
        ("llamagen", SamplingConfig(), SearchPlan(4, (Selection(5, 1, "potential"),)), 4 * 5 + 4 + 1),
        # the look ahead after the first block is guided in the second one
        ("llamagen", GUIDED, SearchPlan(4, (Selection(1, 2, "diversity"),)), 4 * 2 + 4 * 6 + 2 * 6),
    ],
)
def test_forwards_are_those_that_run(
    family: str, config: SamplingConfig, plan: SearchPlan, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = FAMILIES[family]()
    rows = []
    for name in ("start", "step"):
        original = getattr(generator, name)

        def counted(first: Any, cache: Any, original: Any = original) -> Tensor:
            rows.append(len(first))
            return original(first, cache)

        monkeypatch.setattr(generator, name, counted)
    (found,) = guided_search(generator, LABELS, config, plan=plan, score=brightness, batch_size=100)
    assert found.forwards_per_image == sum(rows) / len(LABELS) == expected


# --- on the way


def test_copies_of_a_candidate_part_after_a_selection() -> None:
    """The third of three is taken twice; from then on the two draw as the first candidate and as the second."""
    generator = tiny_llamagen()
    config = SamplingConfig(seed=3)
    with evaluating(generator):
        rows = torch.tensor([0, 0, 0])
        condition = generator.encode_condition([1, 1, 1])
        drawing = Drawing(generator, condition, config, index_B=rows, candidate_B=torch.arange(3))
        for _ in range(2):
            drawing.draw_block()
        before = drawing.tokens_Bl[2]
        drawing.select(torch.tensor([2, 2]), torch.tensor([0, 1]))
        while not drawing.done:
            drawing.draw_block()
    first, second = drawing.tokens_Bl
    assert torch.equal(first[:2], before) and torch.equal(second[:2], before)
    assert not torch.equal(first, second)
    for number, tokens in enumerate((first, second)):
        with torch.no_grad():
            logprobs = generator(tokens[None], condition[:1])[0].log_softmax(-1)
        uniforms = torch.from_numpy(random_stream(3, 0, candidate=number).random(6))
        assert torch.equal(draw(logprobs, uniforms)[2:], tokens[2:])


def test_streams_never_meet() -> None:
    named = {
        (candidate, selection): random_stream(5, 7, candidate=candidate, selection=selection).random(1000)
        for candidate in range(3)
        for selection in range(3)
    }
    assert len({number for numbers in named.values() for number in numbers}) == 9 * 1000


def test_scores_of_the_past_follow_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A selection of any kind moves a candidate's past along with it."""
    generator = tiny_llamagen()
    told = iter([[1.0, 2.0, 4.0], [10.0, 20.0], [100.0]])
    chosen = iter([[[2, 0, 1]], [[1]]])
    found: list[list[list[float]]] = []
    numbers: list[Tensor] = []

    def recorded(potential_Bn: Tensor, uniforms_Bk: Tensor, *, lambda_: float) -> Tensor:
        assert lambda_ == 7.0
        numbers.append(uniforms_Bk[0])
        found.append(potential_Bn.tolist())
        return torch.tensor(next(chosen))

    monkeypatch.setattr(search, "resample", recorded)
    monkeypatch.setattr(search, "most_diverse", lambda features, keep: torch.tensor([[2, 0]]))
    plan = SearchPlan(
        3,
        (Selection(2, 3, "potential"), Selection(3, 2, "diversity"), Selection(4, 1, "potential")),
        potential="sum",
        lambda_=7.0,
    )
    list(guided_search(generator, [1], SamplingConfig(), plan=plan, score=lambda *_: next(told), batch_size=9))
    # after the first: the past is 4, 1, 2; after the second 2, 4
    assert found == [[[1.0, 2.0, 4.0]], [[12.0, 24.0]]]
    # each is drawn with numbers of its own
    assert [one.tolist() for one in numbers] == [
        random_stream(0, 0, selection=selection).random(keep).tolist() for selection, keep in ((1, 3), (3, 1))
    ]


def test_half_way_images_are_the_scales_so_far_or_finished_greedily() -> None:
    for family in ("var", "llamagen"):
        generator = FAMILIES[family]()
        seen: list[Tensor] = []

        def kept(images: Tensor, rows: list[Any], seen: list[Tensor] = seen) -> Tensor:
            seen.append(images)
            return torch.zeros(len(rows))

        plan = SearchPlan(2, (Selection(2, 1, "potential"),))
        list(guided_search(generator, LABELS, SamplingConfig(seed=3), plan=plan, score=kept, batch_size=100))
        first = candidate(generator, SamplingConfig(seed=3), 0)
        if family == "var":
            expected = generator.decode_first_blocks(first[:, :5])
        else:
            tokens = first.clone()
            for place in range(2, 6):
                with torch.no_grad():
                    tokens[:, place] = generator(tokens, generator.encode_condition(LABELS))[:, place].argmax(-1)
            expected = generator.decode(tokens)
        assert expected is not None and torch.equal(seen[0][::2], expected)
        assert len(seen) == 1  # one candidate is left in the end, and needs no score


def test_a_look_ahead_changes_nothing() -> None:
    generator = tiny_llamagen()
    condition = generator.encode_condition(LABELS)
    with evaluating(generator):
        drawing = Drawing(generator, condition, GUIDED)
        while not drawing.done:
            drawing.draw_block()
            if not drawing.done:
                drawing.look_ahead()
    assert torch.equal(drawing.tokens_Bl, sample(generator, condition, GUIDED).tokens_BL)


# --- refusals


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"candidates": 0}, "has 0 candidates an image"),
        ({"candidates": 2.5}, "has 2.5 candidates an image"),
        ({"candidates": 2, "potential": "mean"}, "unknown potential 'mean'; known: value, diff, max, sum"),
        ({"candidates": 2, "lambda_": math.inf}, "lambda_ is inf"),
        ({"candidates": 2, "lambda_": -1.0}, "lambda_ is -1.0"),
        (
            {"candidates": 2, "selections": (Selection(1, 3, "diversity"),)},
            "keeps 3 of 2 candidates; only one by potential",
        ),
        (
            {"candidates": 4, "selections": (Selection(1, 2, "potential"), Selection(2, 3, "diversity"))},
            "keeps 3 of 2 candidates",
        ),
        (
            {"candidates": 4, "selections": (Selection(2, 2, "potential"), Selection(2, 1, "potential"))},
            "order them",
        ),
    ],
)
def test_wrong_plans_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SearchPlan(**settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ((1, 2, "luck"), "by 'luck'; known: diversity, potential"),
        ((0, 2, "potential"), "after=0"),
        ((1, 0, "potential"), "keep=0"),
    ],
)
def test_wrong_selections_are_refused(settings: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Selection(*settings)


def test_what_does_not_fit_is_refused_before_anything_is_drawn() -> None:
    plan = SearchPlan(2, (Selection(3, 1, "potential"),))
    with pytest.raises(ValueError, match="after 3 blocks, and this generator draws 3; selections come after 1 to 2"):
        guided_search(tiny_var(), LABELS, SamplingConfig(), plan=plan, score=never, batch_size=1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        best_of_n(tiny_var(), LABELS, SamplingConfig(), n=2, score=never, batch_size=0)
    with pytest.raises(ValueError, match="has 0 candidates"):
        best_of_n(tiny_var(), LABELS, SamplingConfig(), n=0, score=never, batch_size=1)


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        (torch.zeros(9), r"gave shape \[9\] for 10 images"),
        (torch.full((10,), math.inf), "gave infinite numbers for 10"),
    ],
)
def test_wrong_scores_are_refused(scores: Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        list(best_of_n(tiny_var(), LABELS, SamplingConfig(), n=2, score=lambda *_: scores, batch_size=10))


def test_wrong_features_are_refused() -> None:
    plan = SearchPlan(2, (Selection(1, 1, "diversity"),))
    with pytest.raises(ValueError, match=r"features of 10 images are \[10\]"):
        list(
            guided_search(
                tiny_var(),
                LABELS,
                SamplingConfig(),
                plan=plan,
                score=never,
                features=lambda images: torch.zeros(len(images)),
                batch_size=10,
            )
        )
