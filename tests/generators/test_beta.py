"""The extra input of guidance-free training with a sampled beta: nothing changes by adding it, and files keep it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_var

from align import SamplingConfig, sample, score
from align.checkpoints import load_generator
from align.tensor_files import read_tensors

TINY = {"llamagen": tiny_llamagen, "var": tiny_var}
TOLD = {"llamagen": {"grid": (3, 2), "num_heads": 2}, "var": {}}


@pytest.fixture(params=TINY)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A generator, and the same with the input."""
    plain, extended = TINY[request.param](), TINY[request.param]()
    extended.add_beta_embedding(0.5)
    return plain, extended


def test_adding_it_changes_nothing(pair: tuple[Any, Any]) -> None:
    plain, extended = pair
    labels, tokens = [0, 1], torch.zeros(2, plain.layout.length, dtype=torch.long)
    with torch.no_grad():
        expected = plain(tokens, plain.encode_condition(labels))
        assert torch.equal(extended(tokens, extended.encode_condition(labels)), expected)


def trained(extended: Any) -> Any:
    torch.manual_seed(0)
    torch.nn.init.normal_(extended.beta_embedding.outer.weight)
    return extended


def test_conditions_carry_beta_and_the_null_one_is_1(pair: tuple[Any, Any]) -> None:
    extended = trained(pair[1])
    condition = extended.encode_condition([0, 1, 2])
    assert condition.tensors["beta"].tolist() == [0.5, 0.5, 0.5]
    assert extended.null_condition(condition).tensors["beta"].tolist() == [1.0, 1.0, 1.0]


def test_beta_moves_the_logits_and_the_sampler_knows(pair: tuple[Any, Any]) -> None:
    plain, extended = pair[0], trained(pair[1])
    condition = extended.encode_condition([0, 1])
    config = SamplingConfig(guidance_scale=1.5, seed=4)
    rollout = sample(extended, condition, config)
    with torch.no_grad():
        torch.testing.assert_close(
            score(extended, rollout.tokens_BL, condition, config), rollout.logprobs_BL, atol=2e-5, rtol=1e-5
        )
        moved = extended(rollout.tokens_BL, condition)
        assert not torch.allclose(moved, plain(rollout.tokens_BL, plain.encode_condition([0, 1])))


def test_files_keep_it(pair: tuple[Any, Any], tmp_path: Path) -> None:
    extended = trained(pair[1])
    extended.save_published(tmp_path / "g.pt")
    tokenizer = tmp_path / "t.pt"
    from align.checkpoints import save_tokenizer

    save_tokenizer(extended.tokenizer, tokenizer)
    again = load_generator(extended.family, tmp_path / "g.pt", tokenizer, **TOLD[extended.family])
    assert set(read_tensors(tmp_path / "g.pt").tensors) - set(pair[0].state_dict()) == {
        *("beta_embedding.sampling_beta", "beta_embedding.inner.weight", "beta_embedding.inner.bias"),
        *("beta_embedding.outer.weight", "beta_embedding.outer.bias"),
    }
    tokens = sample(extended, extended.encode_condition([0, 1])).tokens_BL
    with torch.no_grad():
        assert torch.equal(
            again(tokens, again.encode_condition([0, 1])), extended(tokens, extended.encode_condition([0, 1]))
        )


@pytest.mark.parametrize("beta", [0.0, 1.5])
def test_a_beta_that_is_no_temperature_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=r"sampling_beta is .*; it must be in \(0, 1\]"):
        tiny_llamagen().add_beta_embedding(beta)
