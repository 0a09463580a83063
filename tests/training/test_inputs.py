"""Inputs by name: each against the generator asked directly, shared forwards, guidance, and names that are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_var
from torch import Tensor

from align import sample, score
from align.generators import Generator
from align.training.inputs import FIELDS, VIEWS, Needs, Scoring, Term, conditions, field_inputs, model_inputs
from align.types import Condition, LossOutput, SamplingConfig

FAMILIES: dict[str, Callable[..., Any]] = {"llamagen": tiny_llamagen, "var": tiny_var}
ROWS, ACTIONS = 4, 3
GUIDED = {
    "constant": SamplingConfig(guidance_scale=2.5, seed=3),
    "linear": SamplingConfig(guidance_scale=3.0, guidance_schedule="linear", seed=3),
    "first-blocks": SamplingConfig(guidance_scale=2.5, guided_blocks=2, seed=3),
    "filtered": SamplingConfig(guidance_scale=1.5, temperature=0.8, top_k=7, top_p=0.9, seed=3),
    "unguided": SamplingConfig(temperature=0.7, top_k=5, seed=3),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Generator:
    return FAMILIES[request.param]()


def make_batch(generator: Generator, config: SamplingConfig | None = None) -> dict[str, Any]:
    """A batch with every field that a view reads; row 1 is dropped, row 2's negative is its own condition."""
    rng = torch.Generator().manual_seed(0)
    label = torch.tensor([0, 1, 2, 3])
    names = ("tokens", "fake", "chosen", "rejected", "context")
    size = generator.layout.length
    return {
        **{name: torch.randint(16, (ROWS, size), generator=rng) for name in names},
        "rollout": sample(generator, generator.encode_condition(label), config).tokens_BL,
        "actions": torch.randint(16, (ROWS, ACTIONS, size), generator=rng),
        "label": label,
        "negative_label": torch.tensor([3, 0, 2, 1]),
        "dropped": torch.tensor([False, True, False, False]),
    }


def compute(
    generator: Generator,
    batch: dict[str, Any],
    names: tuple[str, ...],
    scoring: Scoring | None = None,
    *,
    forward: Callable[..., Tensor] | None = None,
    reference: Callable[..., Tensor] | None = None,
    watch: str | None = None,
) -> dict[str, Tensor]:
    given, _ = conditions(generator, batch)
    wanted = Needs(names).of_model("policy")
    return model_inputs(forward or generator, generator, batch, given, wanted, scoring or Scoring(), reference, watch)


def expected_conditions(generator: Generator) -> dict[str, Condition]:
    """By hand: class 4 is the null class."""
    labels = {"own": [0, 4, 2, 3], "negative": [3, 4, 2, 1], "null": [4, 4, 4, 4]}
    return {name: Condition({"label": torch.tensor(values)}) for name, values in labels.items()}


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_equals_the_generator_asked_directly(family: Generator, view: str) -> None:
    batch, seen = make_batch(family), VIEWS[view]
    shapes = ("BGL",) if view == "actions" else ("B", "BL", "BLV", "entropy_BL")
    with torch.no_grad():
        found = compute(family, batch, tuple(f"policy_{view}_{shape}" for shape in shapes))
        logits = family(batch[seen.context or seen.tokens], expected_conditions(family)[seen.condition])
    probabilities = logits.double().softmax(dim=-1)
    if view == "actions":
        expected = torch.stack(
            [probabilities.gather(-1, batch["actions"][:, g, :, None]).log()[..., 0] for g in range(ACTIONS)], dim=1
        )
        torch.testing.assert_close(found["policy_actions_BGL"].double(), expected, atol=1e-5, rtol=1e-5)
        return
    logprobs_BL = probabilities.gather(-1, batch[seen.tokens].unsqueeze(-1)).squeeze(-1).log()
    expected_of = {
        "B": logprobs_BL.sum(dim=1),
        "BL": logprobs_BL,
        "BLV": probabilities.log(),
        "entropy_BL": -(probabilities * probabilities.log()).sum(dim=-1),
    }
    for shape in shapes:
        value = found[f"policy_{view}_{shape}"]
        value = value.log_softmax(dim=-1) if shape == "BLV" else value
        torch.testing.assert_close(value.double(), expected_of[shape], atol=3e-5, rtol=1e-5, msg=shape)


@pytest.mark.parametrize(
    ("names", "row_groups"),
    [
        (("policy_positive_B", "policy_negative_B", "policy_null_BLV"), 3),
        (("policy_positive_B", "policy_positive_BL", "policy_positive_entropy_BL"), 1),
        (("policy_actions_BGL", "policy_real_BL"), 1),  # both read the noised context
        (("policy_chosen_B", "policy_rejected_B", "policy_mismatched_B"), 3),
        (("policy_rollout_BL", "policy_unfiltered_BL"), 1),
        (("policy_positive_B", "policy_fake_B"), 2),
    ],
)
def test_one_forward_and_no_row_twice(names: tuple[str, ...], row_groups: int) -> None:
    generator, rows = tiny_llamagen(with_tokenizer=False), []

    def forward(tokens_BL: Tensor, condition: Condition, **readout: Any) -> Any:
        rows.append(len(tokens_BL))
        return generator(tokens_BL, condition, **readout)

    found = compute(generator, make_batch(generator), names, forward=forward)
    assert rows == [row_groups * ROWS]
    assert found.keys() == set(names)


def test_guidance_adds_the_null_rows_once_to_the_same_forward() -> None:
    generator, rows = tiny_llamagen(with_tokenizer=False), []

    def forward(tokens_BL: Tensor, condition: Condition, **readout: Any) -> Any:
        rows.append(len(tokens_BL))
        return generator(tokens_BL, condition, **readout)

    batch = make_batch(generator)
    compute(generator, batch, ("policy_rollout_BL",), Scoring(GUIDED["constant"]), forward=forward)
    names = ("policy_rollout_BL", "policy_unconditional_BL")
    both = compute(generator, batch, names, Scoring(GUIDED["constant"]), forward=forward)
    alone = compute(generator, batch, names, forward=forward)
    assert rows == [2 * ROWS, 2 * ROWS, 2 * ROWS]
    # the unconditional view stays what it is under guidance
    assert torch.equal(both["policy_unconditional_BL"], alone["policy_unconditional_BL"])
    assert not torch.allclose(both["policy_rollout_BL"], alone["policy_rollout_BL"])


def test_nothing_wanted_runs_nothing() -> None:
    generator = tiny_llamagen(with_tokenizer=False)
    batch = make_batch(generator)

    def forward(tokens_BL: Tensor, condition: Condition, **readout: Any) -> Any:
        raise AssertionError("a forward for nothing")

    assert compute(generator, batch, (), forward=forward) == {}


# --- the distribution that rollouts are scored under


@pytest.mark.parametrize("config", GUIDED.values(), ids=GUIDED)
def test_rollouts_are_scored_as_align_score_does(family: Generator, config: SamplingConfig) -> None:
    batch = make_batch(family, config)
    batch["dropped"] = torch.zeros(ROWS, dtype=torch.bool)
    condition = family.encode_condition(batch["label"])
    with torch.no_grad():
        found = compute(family, batch, ("policy_rollout_BL", "policy_unfiltered_BL"), Scoring(config))
        expected = score(family, batch["rollout"], condition, config)
        unfiltered = score(family, batch["rollout"], condition, replace(config, top_k=0, top_p=1.0))
    torch.testing.assert_close(found["policy_rollout_BL"], expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found["policy_unfiltered_BL"], unfiltered, atol=2e-5, rtol=1e-5)


def test_only_rollouts_are_guided() -> None:
    generator = tiny_llamagen(with_tokenizer=False)
    batch = make_batch(generator)
    plain, guided = (
        compute(generator, batch, ("policy_positive_B",), scoring) for scoring in (None, Scoring(GUIDED["constant"]))
    )
    assert torch.equal(plain["policy_positive_B"], guided["policy_positive_B"])


def test_filters_leave_everything_finite() -> None:
    """Also for tokens that the filter excludes: they have no probability, no gradient, and break no sum."""
    generator = tiny_llamagen(with_tokenizer=False)
    batch = make_batch(generator)  # drawn without the filter
    names = ("policy_rollout_B", "policy_rollout_BL", "policy_rollout_entropy_BL")
    found = compute(generator, batch, names, Scoring(SamplingConfig(top_k=2)), watch="rollout")
    excluded_BL = found["policy_rollout_BL"] < -100
    assert excluded_BL.any()
    assert not excluded_BL.all()
    assert all(value.isfinite().all() for value in found.values())
    for name in names:
        gradients = torch.autograd.grad(found[name].sum(), list(generator.parameters()), retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients), name
        assert any((gradient != 0).any() for gradient in gradients), name
    # of two tokens left, the entropy is at most log 2
    assert found["watched_entropy_BL"].max() <= 0.6932
    assert not found["watched_entropy_BL"].requires_grad


def null_gradient(generator: Generator, loss: Tensor) -> float:
    """Of the null class's embedding, which only the null branch reads."""
    (gradient,) = torch.autograd.grad(loss, [generator.cls_embedding.embedding_table.weight], retain_graph=True)
    return gradient[4].abs().max().item()


def test_the_null_branch_trains_or_is_detached_or_comes_from_the_reference() -> None:
    generator, other = tiny_llamagen(with_tokenizer=False), tiny_llamagen(with_tokenizer=False, seed=1)
    batch = make_batch(generator, GUIDED["constant"])
    batch["dropped"] = torch.zeros(ROWS, dtype=torch.bool)
    found = {
        name: compute(
            generator, batch, ("policy_rollout_BL",), Scoring(GUIDED["constant"], branch), reference=reference
        )["policy_rollout_BL"]
        for name, branch, reference in (
            ("trains", "trains", None),
            ("detached", "detached", None),
            ("reference", "reference", generator),
            ("other", "reference", other),
        )
    }
    for name in ("detached", "reference"):
        torch.testing.assert_close(found[name], found["trains"], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found["other"], found["trains"], atol=0.1)
    assert null_gradient(generator, found["trains"].sum()) > 1e-3
    assert all(null_gradient(generator, found[name].sum()) == 0 for name in ("detached", "reference", "other"))
    # the other model's logits are an input: they get no gradient
    weight = other.output.weight
    assert torch.autograd.grad(found["other"].sum(), [weight], retain_graph=True, allow_unused=True) == (None,)


def test_a_null_branch_of_the_reference_needs_one() -> None:
    generator = tiny_llamagen(with_tokenizer=False)
    with pytest.raises(ValueError, match="null_branch=reference needs a reference; set reference.kind=frozen"):
        compute(generator, make_batch(generator), ("policy_rollout_BL",), Scoring(GUIDED["constant"], "reference"))
    with pytest.raises(ValueError, match="null_branch is 'frozen'; known: trains, detached, reference"):
        Scoring(null_branch="frozen")


@pytest.mark.parametrize("config", [SamplingConfig(guidance_scale=2.5, guided_blocks=0), SamplingConfig(top_k=4)])
def test_guidance_that_never_acts_runs_no_null_branch(config: SamplingConfig) -> None:
    generator, rows = tiny_llamagen(with_tokenizer=False), []

    def forward(tokens_BL: Tensor, condition: Condition, **readout: Any) -> Any:
        rows.append(len(tokens_BL))
        return generator(tokens_BL, condition, **readout)

    compute(generator, make_batch(generator), ("policy_rollout_BL",), Scoring(config), forward=forward)
    assert rows == [ROWS]


# --- conditions and fields


def test_conditions_share_one_drop_mask_and_know_collisions() -> None:
    generator = tiny_llamagen(with_tokenizer=False)
    batch = make_batch(generator)
    given, collision_B = conditions(generator, batch)
    for name, expected in expected_conditions(generator).items():
        assert torch.equal(given[name].tensors["label"], expected.tensors["label"]), name
    assert collision_B.tolist() == [False, False, True, False]
    del batch["negative_label"]
    given, collision_B = conditions(generator, batch)
    assert given.keys() == {"own", "null"}
    assert not collision_B.any()


def test_a_sampled_beta_goes_to_the_condition_and_not_to_the_null_one() -> None:
    generator = tiny_llamagen(with_tokenizer=False)
    generator.add_beta_embedding(0.6)
    batch = make_batch(generator)
    given, _ = conditions(generator, batch)
    torch.testing.assert_close(given["own"].tensors["beta"], torch.tensor([0.6, 1.0, 0.6, 0.6]))
    given, _ = conditions(generator, {**batch, "beta": torch.tensor([0.1, 0.2, 0.3, 0.4])})
    torch.testing.assert_close(given["own"].tensors["beta"], torch.tensor([0.1, 1.0, 0.3, 0.4]))
    assert (given["null"].tensors["beta"] == 1).all()


def test_a_field_that_the_data_lacks_is_named() -> None:
    assert field_inputs(("policy_positive_B", "dropped_B"), {"dropped": 1}) == {"dropped_B": 1}
    with pytest.raises(ValueError, match="the data does not supply beta_B; it has dropped, tokens"):
        field_inputs(("beta_B", "dropped_B"), {"tokens": 0, "dropped": 1})


# --- names


def objective(*names: str) -> Callable[..., LossOutput]:
    """A function of these parameters."""
    scope: dict[str, Any] = {}
    exec(f"def made({', '.join(names)}, *, normalizer=None): ...", scope)
    return scope["made"]


@pytest.mark.parametrize(
    "name", ["rewards_B", "policy_positve_B", "policy_positive_BX", "teacher_positive_B", "policy_positive", "beta"]
)
def test_an_unknown_name_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"takes {name}, which nothing supplies; set them.*positive, negative.*tokens_BL"
    ):
        Needs.of(objective("policy_positive_B", name))


def test_an_objective_takes_the_normalizer() -> None:
    def forgetful(policy_positive_B: Tensor) -> LossOutput: ...

    with pytest.raises(ValueError, match="must take normalizer="):
        Needs.of(forgetful)


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (("policy_positive_B", "reference_negative_B", "dropped_B"), "real"),
        (("policy_positive_B", "policy_fake_B"), "fakes"),
        (("policy_chosen_B", "mismatched_gap"), "pairs"),
        (("policy_rollout_BL", "old_rollout_BL", "advantages_BL"), "rollouts"),
        (("policy_actions_BGL", "old_actions_BGL", "advantages_BG", "policy_real_BL"), "actions"),
    ],
)
def test_the_names_tell_the_data(names: tuple[str, ...], source: str) -> None:
    assert Needs.of(objective(*names)).source == source


@pytest.mark.parametrize(
    "names",
    [
        ("policy_fake_B", "policy_chosen_B"),
        ("policy_rollout_BL", "policy_rejected_B"),
        ("policy_fake_B", "advantages_BL"),
        ("policy_actions_BGL", "policy_fake_B"),
        ("policy_actions_BGL", "policy_rollout_BL"),
    ],
)
def test_data_of_two_kinds_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="cannot mix data of"):
        _ = Needs.of(objective(*names)).source


def test_the_primary_view_is_the_first_of_the_policy() -> None:
    assert Needs(("reference_null_BLV", "tokens_BL", "policy_chosen_B", "policy_rejected_B")).primary == "chosen"
    with pytest.raises(ValueError, match="never scores the policy"):
        _ = Needs(("tokens_BL",)).primary


def test_only_some_inputs_need_the_reference() -> None:
    assert not Needs(("policy_positive_B", "tokens_BL")).reference
    assert Needs(("policy_positive_B", "reference_positive_B")).reference
    assert Needs(("policy_chosen_B", "mismatched_gap")).reference


def test_a_term_reads_its_parameters_where_it_is_told() -> None:
    def penalty(policy_BL: Tensor, reference_BL: Tensor, *, normalizer: float) -> LossOutput:
        return LossOutput((policy_BL - reference_BL).sum() / normalizer)

    term = Term(penalty, {"policy_BL": "policy_positive_BL", "reference_BL": "reference_positive_BL"})
    known = {"policy_positive_BL": torch.tensor([[5.0]]), "reference_positive_BL": torch.tensor([[1.0]]), "other": 0}
    assert term(known, 2.0).loss.item() == 2.0
    assert set(term.needs.names) == {"policy_positive_BL", "reference_positive_BL"}


def test_every_name_has_a_meaning() -> None:
    assert all(view.meaning for view in VIEWS.values())
    assert all(meaning for _, meaning in FIELDS.values())
