"""What every generator promises. A new family is one more entry of GENERATORS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import tiny_llamagen

from align import SamplingConfig, load_generator, sample, score
from align.generators import Generator
from align.types import Condition

GENERATORS: dict[str, Callable[[], Generator]] = {
    "llamagen-tiny": tiny_llamagen,
    "mnist-llamagen": lambda: load_generator("mnist-llamagen"),
}
SETTINGS = {
    "plain": SamplingConfig(seed=3),
    "guided": SamplingConfig(guidance_scale=2.5, seed=3),
    "guided-at-first": SamplingConfig(guidance_scale=2.5, guided_blocks=3, seed=3),
    "filtered": SamplingConfig(guidance_scale=1.5, temperature=0.8, top_k=7, top_p=0.9, seed=3),
    "greedy": SamplingConfig(temperature=0, seed=3),
}


@pytest.fixture(params=GENERATORS, scope="module")
def any_generator(request: pytest.FixtureRequest) -> Generator:
    return GENERATORS[request.param]()


@pytest.fixture
def condition(any_generator: Generator) -> Condition:
    return any_generator.encode_condition([0, 1, 2, 3, 1])


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_behaviour_logprobs_equal_teacher_forcing(
    any_generator: Generator, condition: Condition, config: SamplingConfig
) -> None:
    """Also says that cached steps give the same logits as the full forward."""
    rollout = sample(any_generator, condition, config)
    with torch.no_grad():
        scored = score(any_generator, rollout.tokens_BL, condition, config)
    torch.testing.assert_close(rollout.logprobs_BL, scored, atol=2e-5, rtol=1e-5)
    assert rollout.logprobs_BL.isfinite().all()


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_a_sample_does_not_depend_on_its_batch(
    any_generator: Generator, condition: Condition, config: SamplingConfig
) -> None:
    together = sample(any_generator, condition, config, index_B=torch.tensor([10, 11, 12, 13, 14])).tokens_BL
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled = sample(any_generator, condition[order], config, index_B=torch.tensor([14, 12, 10, 11, 13])).tokens_BL
    assert torch.equal(shuffled, together[order])
    alone = sample(any_generator, condition[2:3], config, index_B=torch.tensor([12])).tokens_BL
    assert torch.equal(alone, together[2:3])


def test_seeds_and_indices_change_samples(any_generator: Generator) -> None:
    condition = any_generator.encode_condition([1, 1])
    tokens = sample(any_generator, condition, SamplingConfig(seed=0)).tokens_BL
    assert not torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens, sample(any_generator, condition, SamplingConfig(seed=1)).tokens_BL)


def test_scale_one_runs_no_null_branch(
    any_generator: Generator, condition: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = len(any_generator.layout.block_sizes)
    assert sample(any_generator, condition, SamplingConfig(guidance_scale=2.0)).forwards_per_image == 2 * blocks
    # dropping the null rows after the third block leaves one forward a block
    assert sample(any_generator, condition, SETTINGS["guided-at-first"]).forwards_per_image == blocks + 3
    monkeypatch.setattr(any_generator, "null_condition", None)
    assert sample(any_generator, condition, SamplingConfig()).forwards_per_image == blocks


def test_sampling_leaves_the_mode_as_it_was(any_generator: Generator, condition: Condition) -> None:
    any_generator.train()
    try:
        sample(any_generator, condition)
        assert any_generator.training
    finally:
        any_generator.eval()


def test_the_null_condition_is_another_condition(any_generator: Generator, condition: Condition) -> None:
    tokens = torch.zeros(5, any_generator.layout.length, dtype=torch.long)
    with torch.no_grad():
        assert not torch.allclose(
            any_generator(tokens, condition), any_generator(tokens, any_generator.null_condition(condition))
        )


def test_pixels_are_uint8_at_the_border(any_generator: Generator, condition: Condition) -> None:
    images = any_generator.decode(sample(any_generator, condition).tokens_BL)
    assert images.dtype == torch.uint8
    assert images.shape[0] == 5
    assert images.shape[3] == 3
    assert any_generator.encode(images).shape == (5, any_generator.layout.length)


def test_the_tokenizer_is_neither_trained_nor_saved(any_generator: Generator) -> None:
    assert not any("quantize" in name for name, _ in any_generator.named_parameters())
    assert not any("quantize" in name for name in any_generator.state_dict())


def test_saved_weights_give_the_same_logits(any_generator: Generator, condition: Condition, tmp_path: Path) -> None:
    any_generator.save_published(tmp_path / "generator.pt")
    sizes = any_generator.sizes
    again = load_generator(any_generator.family, tmp_path / "generator.pt", grid=sizes.grid, num_heads=sizes.num_heads)
    tokens = sample(any_generator, condition).tokens_BL
    with torch.no_grad():
        assert torch.equal(any_generator(tokens, condition), again(tokens, condition))


@pytest.mark.gpu
def test_a_gpu_draws_the_same_distribution(any_generator: Generator) -> None:
    """Random numbers come from the CPU, so that only rounding can differ between devices."""
    condition = any_generator.encode_condition([0, 1, 2, 3])
    rollout = sample(any_generator, condition, SETTINGS["filtered"])
    any_generator.to("cuda")
    try:
        scored = (
            score(any_generator, rollout.tokens_BL.cuda(), condition.to("cuda"), SETTINGS["filtered"]).detach().cpu()
        )
    finally:
        any_generator.to("cpu")
    torch.testing.assert_close(rollout.logprobs_BL, scored, atol=1e-3, rtol=1e-3)
