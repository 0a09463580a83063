"""What every objective promises: exact gradients, micro-batches that add up, and no dead knob and no dead input."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from objectives.toy import means
from torch import Tensor

from align import objectives
from align.types import LossOutput

ROWS, TOKENS, VOCABULARY = 6, 5, 3
SHAPES = {"B": (ROWS,), "BL": (ROWS, TOKENS), "BLV": (ROWS, TOKENS, VOCABULARY)}


@dataclass(frozen=True)
class Case:
    """An objective at a point where everything matters.

    settings: its hyper-parameters; changes: another value for each of them, with what must be set beside it.
    differentiable: the inputs that it sends gradients to.
    """

    objective: Callable[..., LossOutput]
    differentiable: tuple[str, ...]
    settings: dict[str, Any]
    changes: dict[str, Any]


PAIR = ("policy_chosen_B", "policy_rejected_B")
REAL_AND_FAKE = ("policy_positive_B", "policy_fake_B")
WEIGHTS, OTHER_WEIGHTS = {"nll_weight": 0.2, "null_weight": 0.7}, {"nll_weight": 0.0, "null_weight": 1.0}
SPIN = {"beta": 1.0, "loss_type": "sigmoid", "length_normalized": False, **WEIGHTS}
OTHER_SPIN = {"beta": 2.0, "loss_type": "hinge", "length_normalized": True, **OTHER_WEIGHTS}
DPO, OTHER_DPO = {"label_smoothing": 0.0, **SPIN}, {"label_smoothing": 0.2, **OTHER_SPIN}
CASES = {
    "ddo": Case(objectives.ddo, REAL_AND_FAKE, {"beta": 0.3, "alpha": 2.0}, {"beta": 0.4, "alpha": 0.5}),
    "dpo": Case(objectives.dpo, PAIR, DPO, OTHER_DPO),
    "dpo-ipo": Case(objectives.dpo, PAIR, {**DPO, "loss_type": "ipo"}, {**OTHER_DPO, "loss_type": "hinge"}),
    "dpo-hinge": Case(objectives.dpo, PAIR, {**DPO, "loss_type": "hinge"}, {**OTHER_DPO, "loss_type": "ipo"}),
    "spin": Case(objectives.spin, REAL_AND_FAKE, SPIN, OTHER_SPIN),
    "simpo": Case(
        objectives.simpo,
        PAIR,
        {"beta": 2.0, "simpo_gamma": 0.5, **WEIGHTS},
        {"beta": 2.5, "simpo_gamma": 0.0, **OTHER_WEIGHTS},
    ),
    "kto": Case(
        objectives.kto,
        PAIR,
        {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.0, "null_weight": 0.7},
        {"beta": 0.4, "desirable_weight": 1.3, "undesirable_weight": 0.5, "null_weight": 1.0},
    ),
    "gft": Case(objectives.gft, ("policy_positive_BLV",), {"beta": 0.6}, {"beta": 0.7}),
    "gft_sampled": Case(objectives.gft_sampled, ("policy_positive_BLV",), {}, {}),
    "erasure": Case(
        objectives.erasure,
        ("policy_positive_BLV", "policy_negative_BLV"),
        {"eta": 1.0, "keep_weight": 0.5, "window": 2, "threshold": 1.5},
        {"eta": 1.5, "keep_weight": 1.0, "window": None, "threshold": 0.0},
    ),
}
# (case, knob) that is refused, because it would do nothing there
REFUSED = {("dpo-ipo", "label_smoothing"), ("dpo-ipo", "length_normalized"), ("dpo-hinge", "label_smoothing")}
# (case, input) that changes what is logged and not the gradient
LOGGED = {("ddo", "dropped_B")}


def make_inputs(objective: Callable[..., LossOutput]) -> dict[str, Any]:
    """Random float64 inputs by name; two rows dropped, two collisions."""
    rng = torch.Generator().manual_seed(0)
    special: dict[str, Any] = {
        "tokens_BL": torch.randint(VOCABULARY, (ROWS, TOKENS), generator=rng),
        "dropped_B": torch.tensor([False, True, False, False, True, False]),
        "collision_B": torch.tensor([False, False, True, False, False, True]),
        "beta_B": torch.rand(ROWS, generator=rng, dtype=torch.float64),
        "mismatched_gap": torch.tensor(1.5, dtype=torch.float64),
        "num_tokens": TOKENS,
    }
    return {
        name: special[name]
        if name in special
        else torch.randn(SHAPES[name.rsplit("_", 1)[1]], generator=rng, dtype=torch.float64)
        for name, parameter in inspect.signature(objective).parameters.items()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    }


def gradients(case: Case, inputs: dict[str, Any], settings: dict[str, Any]) -> Tensor:
    leaves = {name: inputs[name].clone().requires_grad_() for name in case.differentiable}
    loss = case.objective(**{**inputs, **leaves}, **settings).loss
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(leaves.values()))])


def other_value(value: Any) -> Any:
    if isinstance(value, int):
        return value + 1
    if value.dtype == torch.bool:
        return ~value
    return (value + 1) % VOCABULARY if value.dtype == torch.long else -4 * value


@pytest.mark.parametrize("name", CASES)
def test_gradient_by_finite_differences(name: str) -> None:
    case = CASES[name]
    inputs = make_inputs(case.objective)
    leaves = [inputs[leaf].clone().requires_grad_() for leaf in case.differentiable]

    def loss(*values: Tensor) -> Tensor:
        return case.objective(**{**inputs, **dict(zip(case.differentiable, values, strict=True))}, **case.settings).loss

    assert torch.autograd.gradcheck(loss, tuple(leaves))


@pytest.mark.parametrize("name", CASES)
def test_the_normalizer_makes_micro_batches_add_up(name: str) -> None:
    """Loss and every metric of one batch equal those of three micro-batches."""
    case = CASES[name]
    inputs = make_inputs(case.objective)
    whole = case.objective(**inputs, **case.settings)
    parts = [
        case.objective(
            **{
                key: value[i : i + 2] if torch.is_tensor(value) and value.dim() else value
                for key, value in inputs.items()
            },
            **case.settings,
            normalizer=ROWS,
        )
        for i in (0, 2, 4)
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss)
    for key, average in whole.metrics.items():
        total = sum(part.metrics[key].total for part in parts)
        count = sum(part.metrics[key].count for part in parts)
        torch.testing.assert_close(total / count, average.total / average.count, msg=key)


@pytest.mark.parametrize(
    ("name", "knob"),
    [(name, knob) for name, case in CASES.items() for knob in case.changes if (name, knob) not in REFUSED],
)
def test_no_knob_is_dead(name: str, knob: str) -> None:
    case = CASES[name]
    inputs = make_inputs(case.objective)
    changed = {**case.settings, knob: case.changes[knob]}
    assert not torch.allclose(gradients(case, inputs, changed), gradients(case, inputs, case.settings))


@pytest.mark.parametrize("name", CASES)
def test_every_knob_is_tested(name: str) -> None:
    case = CASES[name]
    parameters = inspect.signature(case.objective).parameters.values()
    knobs = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY} - {"normalizer"}
    assert knobs == set(case.settings) == set(case.changes)


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, case in CASES.items() for key in make_inputs(case.objective)]
)
def test_no_input_is_dead(name: str, key: str) -> None:
    """Another reference, other tokens, another mask: each changes the gradient. So does the policy itself."""
    case = CASES[name]
    inputs = make_inputs(case.objective)
    changed = {**inputs, key: other_value(inputs[key])}
    if (name, key) in LOGGED:
        assert means(case.objective(**changed, **case.settings)) != means(case.objective(**inputs, **case.settings))
    else:
        assert not torch.allclose(gradients(case, changed, case.settings), gradients(case, inputs, case.settings))


@pytest.mark.parametrize("name", CASES)
def test_metrics_carry_no_gradient(name: str) -> None:
    case = CASES[name]
    inputs = make_inputs(case.objective)
    leaves = {leaf: inputs[leaf].clone().requires_grad_() for leaf in case.differentiable}
    for key, average in case.objective(**{**inputs, **leaves}, **case.settings).metrics.items():
        assert not average.total.requires_grad, key
        assert torch.isfinite(average.total / average.count), key
