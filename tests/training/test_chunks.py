"""Log-probs by chunks of tokens: the same numbers and gradients as from whole logits, which are then never made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import FAMILIES, tiny_llamagen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from align import sample, score
from align.generators import Generator, LlamaGen, LlamaGenConfig, deferred
from align.training.inputs import VIEWS, Needs, Scoring, conditions, model_inputs
from align.types import SamplingConfig

ROWS = 3
PLAIN = Scoring()
FILTERED = SamplingConfig(guidance_scale=1.5, guidance_schedule="linear", temperature=0.8, top_k=2, seed=3)
EVERY_VIEW = tuple(
    f"policy_{view}_{shape}"
    for view in VIEWS
    for shape in (("BGL",) if view == "actions" else ("B", "BL", "entropy_BL"))
)
OF_ROLLOUTS = ("policy_rollout_B", "policy_rollout_entropy_BL", "policy_unfiltered_BL", "policy_unconditional_BL")


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> Generator:
    return FAMILIES[request.param]()


def chunks_of(generator: Generator, row_groups: int, positions: int) -> int:
    """The CHUNK_BYTES by which so many positions are read at once."""
    each = 4 * row_groups * ROWS * generator.vocab_size
    return each * positions * (generator.sizes.codebook_dim if generator.family == "infinity" else 1)


def make_batch(generator: Generator) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(0)
    length, vocabulary = generator.layout.length, generator.vocab_size
    names = ("tokens", "fake", "chosen", "rejected", "context", "rollout")
    labels: dict[str, Any] = {"label": torch.tensor([0, 1, 2]), "negative_label": torch.tensor([3, 0, 2])}
    if generator.num_classes is None:
        labels = {"label": ["a red cube", "two balls", "green"], "negative_label": ["two balls", "a", "green"]}
    return {
        **{name: torch.randint(vocabulary, (ROWS, length), generator=rng) for name in names},
        "actions": torch.randint(vocabulary, (ROWS, 2, length), generator=rng),
        "dropped": torch.tensor([False, True, False]),
        **labels,
    }


def values_and_gradients(
    generator: Generator, names: tuple[str, ...], scoring: Scoring, reference: Any = None
) -> tuple[dict[str, Tensor], list[Tensor]]:
    batch = make_batch(generator)
    given, _ = conditions(generator, batch)
    wanted = Needs(names).of_model("policy")
    found = model_inputs(generator, generator, batch, given, wanted, scoring, reference, watch=wanted[0].view_name)
    watched = found.pop("watched_entropy_BL")
    assert not watched.requires_grad
    # a loss that weighs every number differently
    loss = sum((value.sin() * torch.linspace(0.5, 1.5, value.numel()).view_as(value)).sum() for value in found.values())
    parameters = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {**found, "watched": watched}, [torch.zeros(()) if g is None else g for g in gradients]


@pytest.mark.parametrize(
    ("names", "scoring"),
    [
        (EVERY_VIEW, PLAIN),
        (OF_ROLLOUTS, Scoring(FILTERED)),
        (OF_ROLLOUTS, Scoring(FILTERED, "detached")),
        (OF_ROLLOUTS, Scoring(FILTERED, "reference")),
    ],
    ids=["every-view", "trains", "detached", "reference"],
)
@pytest.mark.parametrize("positions", [1, 2])
def test_chunks_give_the_numbers_and_gradients_of_whole_logits(
    family: Generator, names: tuple[str, ...], scoring: Scoring, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, whole_gradients = values_and_gradients(family, names, scoring, family)
    monkeypatch.setattr(deferred, "CHUNK_BYTES", chunks_of(family, 1, positions))
    chunked, chunked_gradients = values_and_gradients(family, names, scoring, family)
    assert chunked.keys() == whole.keys()
    if scoring.config.top_k and family.vocab_size > 2:
        assert (whole["policy_rollout_B"] < -1e4).any(), "the filter excludes some tokens"
    for name, value in whole.items():
        torch.testing.assert_close(chunked[name], value, atol=1e-6, rtol=1e-6, msg=name)
    for one, other in zip(chunked_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [SamplingConfig(seed=3), FILTERED], ids=["plain", "filtered"])
def test_a_score_by_chunks_is_that_of_whole_logits(
    family: Generator, config: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    condition = family.encode_condition(make_batch(family)["label"])
    tokens = sample(family, condition, config).tokens_BL
    parameters = [parameter for parameter in family.parameters() if parameter.requires_grad]
    found = []
    for limit in (deferred.CHUNK_BYTES, chunks_of(family, 1, 2)):
        monkeypatch.setattr(deferred, "CHUNK_BYTES", limit)
        logprobs_BL = score(family, tokens, condition, config)
        found.append([logprobs_BL, *torch.autograd.grad(logprobs_BL.sin().sum(), parameters, allow_unused=True)])
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)


class Largest(TorchDispatchMode):
    """The most elements that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("scoring", [PLAIN, Scoring(FILTERED), Scoring(FILTERED, "detached")])
def test_the_logits_are_never_whole(scoring: Scoring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the forward nor in the backward pass: nothing is even half as large."""
    sizes = LlamaGenConfig(dim=16, num_layers=1, num_heads=2, hidden_dim=32, vocab_size=512, num_classes=4, grid=(6, 4))
    generator = LlamaGen(sizes)
    names = ("policy_rollout_BL", "policy_rollout_entropy_BL")
    logits = ROWS * generator.layout.length * generator.vocab_size
    with Largest() as seen:
        values_and_gradients(generator, names, scoring)
    assert seen.elements >= logits
    monkeypatch.setattr(deferred, "CHUNK_BYTES", chunks_of(generator, 2, 2))
    with Largest() as seen:
        values_and_gradients(generator, names, scoring)
    assert seen.elements < logits / 2


def test_only_what_is_wanted_whole_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = tiny_llamagen(with_tokenizer=False)
    monkeypatch.setattr(deferred, "CHUNK_BYTES", 1)
    found, _ = values_and_gradients(generator, ("policy_positive_BLV", "policy_positive_B"), PLAIN)
    logprobs_BLV = found["policy_positive_BLV"].log_softmax(dim=-1)
    tokens = make_batch(generator)["tokens"]
    expected = logprobs_BLV.gather(-1, tokens.unsqueeze(-1)).squeeze(-1).sum(dim=1)
    torch.testing.assert_close(found["policy_positive_B"], expected)
