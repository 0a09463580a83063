"""What every generator promises. A new family is one more entry of GENERATORS."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, tiny_var

from align import SamplingConfig, load_generator, sample, score
from align.checkpoints import save_tokenizer
from align.generators import Janus, PublishedGenerator
from align.generators.base import evaluating
from align.generators.llamagen import LlamaGenDecoder
from align.sampling import graphs, jacobi
from align.types import Condition

GENERATORS: dict[str, Callable[[], PublishedGenerator]] = {
    **{f"{family}-tiny": make for family, make in FAMILIES.items()},
    "var-tiny-shared": lambda: tiny_var(l2_norm=False, shared_adaln=True),
    "mnist-llamagen": lambda: load_generator("mnist-llamagen"),
    "mnist-var": lambda: load_generator("mnist-var"),
}
# what a file may not tell, by family
UNTOLD = {
    "llamagen": ("grid", "num_heads"),
    "llamagen-t2i": ("grid", "num_heads"),
    "var": ("patch_nums", "num_heads"),
    "infinity": ("schedule", "num_scales"),
    "janus": ("num_heads", "pad_id"),
}
# conditions of families without classes; their captions differ in length
PROMPTS = ["a red cube", "two balls", "green", "a blue cone on a box", "two balls"]
SETTINGS = {
    "plain": SamplingConfig(seed=3),
    "guided": SamplingConfig(guidance_scale=2.5, seed=3),
    "guided-at-first": SamplingConfig(guidance_scale=2.5, guided_blocks=3, seed=3),
    "guided-more-and-more": SamplingConfig(guidance_scale=3.0, guidance_schedule="linear", seed=3),
    "filtered": SamplingConfig(guidance_scale=1.5, temperature=0.8, top_k=7, top_p=0.9, seed=3),
    "greedy": SamplingConfig(temperature=0, seed=3),
}


@pytest.fixture(params=GENERATORS, scope="module")
def any_generator(request: pytest.FixtureRequest) -> PublishedGenerator:
    return GENERATORS[request.param]()


def conditions(generator: PublishedGenerator, rows: Sequence[int]) -> Condition:
    return generator.encode_condition(rows if generator.num_classes else [PROMPTS[row] for row in rows])


@pytest.fixture
def condition(any_generator: PublishedGenerator) -> Condition:
    return conditions(any_generator, [0, 1, 2, 3, 1])


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_behaviour_logprobs_equal_teacher_forcing(
    any_generator: PublishedGenerator, condition: Condition, config: SamplingConfig
) -> None:
    """Also says that cached steps give the same logits as the full forward."""
    rollout = sample(any_generator, condition, config)
    with torch.no_grad():
        scored = score(any_generator, rollout.tokens_BL, condition, config)
    torch.testing.assert_close(rollout.logprobs_BL, scored, atol=2e-5, rtol=1e-5)
    assert rollout.logprobs_BL.isfinite().all()


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_a_sample_does_not_depend_on_its_batch(
    any_generator: PublishedGenerator, condition: Condition, config: SamplingConfig
) -> None:
    together = sample(any_generator, condition, config, index_B=torch.tensor([10, 11, 12, 13, 14])).tokens_BL
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled = sample(any_generator, condition[order], config, index_B=torch.tensor([14, 12, 10, 11, 13])).tokens_BL
    assert torch.equal(shuffled, together[order])
    alone = sample(any_generator, condition[2:3], config, index_B=torch.tensor([12])).tokens_BL
    assert torch.equal(alone, together[2:3])


@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_what_graphs_record_draws_what_the_eager_loop_draws(
    any_generator: PublishedGenerator, config: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run here without recording, and twice: the second images find the memory as the first left it."""
    monkeypatch.setattr(graphs, "BUCKET", 4)
    static = isinstance(any_generator, graphs.StaticSteps)
    kind = graphs.TokenByToken if static else graphs.WholeImage
    rows, index_B = [0, 1, 1], torch.tensor([10, 11, 12])
    with evaluating(any_generator):
        sampler = kind(any_generator, conditions(any_generator, rows), config, run_once)
        for given in (conditions(any_generator, rows), conditions(any_generator, rows[::-1])):
            found, expected = sampler(given, config, index_B), sample(any_generator, given, config, index_B=index_B)
            assert torch.equal(found.tokens_BL, expected.tokens_BL)
            torch.testing.assert_close(found.logprobs_BL, expected.logprobs_BL, atol=2e-5, rtol=1e-5)
            assert found.forwards_per_image == expected.forwards_per_image
    if static:
        steps = {id(work) for work in sampler.recorded}
        assert 2 < len(steps) < any_generator.layout.length


# all others draw many tokens at once already
by_token = pytest.mark.parametrize(
    "any_generator", ["llamagen-tiny", "llamagen-t2i-tiny", "janus-tiny", "mnist-llamagen"], indirect=True
)


@pytest.fixture
def jacobi_generator(any_generator: PublishedGenerator) -> Iterator[PublishedGenerator]:
    any_generator.engine = "jacobi"
    yield any_generator
    any_generator.engine = "auto"


@by_token
@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_jacobi_decoding_keeps_the_contract(
    jacobi_generator: PublishedGenerator, condition: Condition, config: SamplingConfig
) -> None:
    """Log-probs as of teacher forcing, and samples that do not depend on their batch, though rows go at their own pace."""
    index_B, order = torch.tensor([10, 11, 12, 13, 14]), torch.tensor([4, 2, 0, 1, 3])
    together = sample(jacobi_generator, condition, config, index_B=index_B)
    with torch.no_grad():
        scored = score(jacobi_generator, together.tokens_BL, condition, config)
    torch.testing.assert_close(together.logprobs_BL, scored, atol=2e-5, rtol=1e-5)
    assert together.logprobs_BL.isfinite().all()
    shuffled = sample(jacobi_generator, condition[order], config, index_B=index_B[order])
    assert torch.equal(shuffled.tokens_BL, together.tokens_BL[order])
    alone = sample(jacobi_generator, condition[2:3], config, index_B=index_B[2:3])
    assert torch.equal(alone.tokens_BL, together.tokens_BL[2:3])
    jacobi_generator.engine = "eager"
    eager = sample(jacobi_generator, condition, config, index_B=index_B)
    assert together.forwards_per_image <= eager.forwards_per_image
    if config.temperature == 0:
        assert torch.equal(together.tokens_BL, eager.tokens_BL)


@by_token
@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_what_is_recorded_of_jacobi_draws_what_it_draws(
    jacobi_generator: PublishedGenerator, config: SamplingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jacobi, "BUCKET", 4)
    rows, index_B = [0, 1, 1], torch.tensor([10, 11, 12])
    with evaluating(jacobi_generator):
        sampler = jacobi.Jacobi(jacobi_generator, conditions(jacobi_generator, rows), config, run_once)
        for given in (conditions(jacobi_generator, rows), conditions(jacobi_generator, rows[::-1])):
            found, expected = sampler(given, config, index_B), sample(jacobi_generator, given, config, index_B=index_B)
            assert torch.equal(found.tokens_BL, expected.tokens_BL)
            torch.testing.assert_close(found.logprobs_BL, expected.logprobs_BL, atol=2e-5, rtol=1e-5)
            assert found.forwards_per_image == expected.forwards_per_image


def run_once(work: Callable[[], None]) -> Callable[[], None]:
    work()
    return work


@pytest.mark.gpu
@by_token
@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_recorded_rounds_draw_what_eager_ones_draw(
    jacobi_generator: PublishedGenerator, config: SamplingConfig
) -> None:
    jacobi_generator.to("cuda")
    index_B = torch.tensor([10, 11, 12])
    try:
        for rows in ([0, 1, 1], [1, 0, 2]):
            condition = conditions(jacobi_generator, rows)
            recorded = sample(jacobi_generator, condition, config, index_B=index_B)
            with evaluating(jacobi_generator):
                draw = jacobi.Jacobi(jacobi_generator, condition, config, None)
                eager = draw(condition, config, index_B)
            assert torch.equal(recorded.tokens_BL, eager.tokens_BL)
            torch.testing.assert_close(recorded.logprobs_BL, eager.logprobs_BL, atol=1e-3, rtol=1e-3)
    finally:
        jacobi_generator.cpu()


@pytest.mark.gpu
@pytest.mark.parametrize("any_generator", [name for name in GENERATORS if name != "infinity-tiny"], indirect=True)
@pytest.mark.parametrize("config", SETTINGS.values(), ids=SETTINGS)
def test_graphs_draw_what_the_eager_loop_draws(any_generator: PublishedGenerator, config: SamplingConfig) -> None:
    any_generator.to("cuda")
    try:
        assert graphs.can_record(any_generator)
        for rows in ([0, 1, 1], [1, 0, 2]):
            condition, index_B = conditions(any_generator, rows), torch.tensor([10, 11, 12])
            rollouts = {}
            for any_generator.engine in ("eager", "graphs"):
                rollouts[any_generator.engine] = sample(any_generator, condition, config, index_B=index_B)
            assert torch.equal(rollouts["graphs"].tokens_BL, rollouts["eager"].tokens_BL)
            found, expected = rollouts["graphs"].logprobs_BL, rollouts["eager"].logprobs_BL
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    finally:
        any_generator.engine = "auto"
        any_generator.cpu()


def test_an_engine_that_is_not_to_be_had_is_refused(any_generator: PublishedGenerator, condition: Condition) -> None:
    try:
        any_generator.engine = "graphs"
        expected = "engine=graphs needs whole weights on an NVIDIA GPU; .* is on cpu. Use engine=auto"
        if any_generator.family == "infinity":
            expected = "infinity cannot be sampled with engine=graphs; it has auto, eager"
        with pytest.raises(ValueError, match=expected):
            sample(any_generator, condition)
        any_generator.engine = "fast"
        with pytest.raises(ValueError, match="unknown engine 'fast'; known: auto, eager, graphs, native, jacobi"):
            sample(any_generator, condition)
    finally:
        any_generator.engine = "auto"


def test_seeds_and_indices_change_samples(any_generator: PublishedGenerator) -> None:
    condition = conditions(any_generator, [1, 1])
    tokens = sample(any_generator, condition, SamplingConfig(seed=0)).tokens_BL
    assert not torch.equal(tokens[0], tokens[1])
    assert not torch.equal(tokens, sample(any_generator, condition, SamplingConfig(seed=1)).tokens_BL)


def test_scale_one_runs_no_null_branch(
    any_generator: PublishedGenerator, condition: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = len(any_generator.layout.block_sizes)
    assert sample(any_generator, condition, SamplingConfig(guidance_scale=2.0)).forwards_per_image == 2 * blocks
    # dropping the null rows after the third block leaves one forward a block
    assert sample(any_generator, condition, SETTINGS["guided-at-first"]).forwards_per_image == blocks + 3
    monkeypatch.setattr(any_generator, "null_condition", None)
    assert sample(any_generator, condition, SamplingConfig()).forwards_per_image == blocks


@pytest.mark.parametrize("fed", [0, 1], ids=["after-the-condition", "after-a-block"])
def test_selected_rows_go_on_as_if_they_had_been_alone(any_generator: PublishedGenerator, fed: int) -> None:
    """In another order, and with one of them twice, which is then fed two different blocks."""
    condition, rows = conditions(any_generator, [0, 1, 2, 3]), torch.tensor([3, 1, 1])
    numbers = torch.Generator().manual_seed(0)
    blocks = [
        torch.randint(any_generator.vocab_size, (3, size), generator=numbers)
        for size in any_generator.layout.block_sizes[: fed + 1]
    ]
    for block in blocks[:fed]:
        block[2] = block[1]  # until they are selected the two are one
    before = [torch.zeros(4, block.shape[1], dtype=torch.long) for block in blocks[:fed]]
    for all_rows, block in zip(before, blocks, strict=False):
        all_rows[rows] = block
    with torch.no_grad():
        cache, alone = any_generator.new_cache(4), any_generator.new_cache(3)
        any_generator.start(condition, cache)
        any_generator.start(condition[rows], alone)
        for all_rows, block in zip(before, blocks, strict=False):
            any_generator.step(all_rows, cache)
            any_generator.step(block, alone)
        any_generator.select_rows(cache, rows)
        found = any_generator.step(blocks[fed], cache)
        torch.testing.assert_close(found, any_generator.step(blocks[fed], alone), atol=2e-5, rtol=1e-5)
    assert not torch.allclose(found[1], found[2])


def test_the_first_blocks_show_an_image_where_a_generator_says_so(
    any_generator: PublishedGenerator, condition: Condition
) -> None:
    tokens = sample(any_generator, condition).tokens_BL
    ends = [end for _, end in any_generator.layout.spans()]
    shown = [any_generator.decode_first_blocks(tokens[:, :end]) for end in ends]
    if isinstance(any_generator, LlamaGenDecoder | Janus):
        assert shown == [None] * len(ends)
        return
    whole = any_generator.decode(tokens)
    assert shown[-1] is not None and torch.equal(shown[-1], whole)
    for image in shown:
        assert image is not None and image.dtype == torch.uint8 and image.shape == whole.shape
    assert shown[0] is not None and not torch.equal(shown[0], whole)
    with pytest.raises(ValueError, match="whole scales end at"):
        any_generator.decode_first_blocks(tokens[:, : ends[1] - 1])


def test_sampling_leaves_the_mode_as_it_was(any_generator: PublishedGenerator, condition: Condition) -> None:
    any_generator.train()
    try:
        sample(any_generator, condition)
        assert any_generator.training
    finally:
        any_generator.eval()


def test_the_null_condition_is_another_condition(any_generator: PublishedGenerator, condition: Condition) -> None:
    tokens = torch.zeros(5, any_generator.layout.length, dtype=torch.long)
    with torch.no_grad():
        assert not torch.allclose(
            any_generator(tokens, condition), any_generator(tokens, any_generator.null_condition(condition))
        )


def test_pixels_are_uint8_at_the_border(any_generator: PublishedGenerator, condition: Condition) -> None:
    images = any_generator.decode(sample(any_generator, condition).tokens_BL)
    assert images.dtype == torch.uint8
    assert tuple(images.shape) == (5, *any_generator.image_size, 3)
    assert any_generator.encode(images).shape == (5, any_generator.layout.length)
    for wrong in (images[:, :-1], images.float(), images[0]):
        with pytest.raises(ValueError, match="images must be uint8"):
            any_generator.encode(wrong)


def test_soft_decoding_of_hard_choices_is_decoding(any_generator: PublishedGenerator, condition: Condition) -> None:
    tokens = sample(any_generator, condition).tokens_BL
    weights = torch.nn.functional.one_hot(tokens, any_generator.vocab_size).float().requires_grad_()
    pixels = any_generator.decode_soft(weights)
    difference = (pixels.detach().clamp(-1, 1) + 1) * 127.5 - any_generator.decode(tokens).permute(0, 3, 1, 2)
    assert difference.abs().max() <= 1.01  # the families round differently
    # every token's weights are felt by the pixels
    (gradient,) = torch.autograd.grad(pixels.square().sum(), weights)
    assert (gradient.abs().amax(dim=-1) > 0).all()


def test_soft_decoding_mixes_codes(any_generator: PublishedGenerator, condition: Condition) -> None:
    a, b = (sample(any_generator, condition, SamplingConfig(seed=seed)).tokens_BL for seed in (0, 1))
    hard_a, hard_b = (torch.nn.functional.one_hot(x, any_generator.vocab_size).float() for x in (a, b))
    with torch.no_grad():
        ends = any_generator.decode_soft(hard_a), any_generator.decode_soft(hard_b)
        middle = any_generator.decode_soft((hard_a + hard_b) / 2)
    assert not any(torch.allclose(middle, end) for end in ends)


def test_the_context_replaces_the_inputs(any_generator: PublishedGenerator, condition: Condition) -> None:
    """Tokens are scored as if the context stood before them; what stands at their own place is not seen."""
    length = any_generator.layout.length
    randomly = torch.Generator().manual_seed(0)
    tokens, context = torch.randint(0, any_generator.vocab_size, (2, 5, length), generator=randomly)
    with torch.no_grad():
        given = any_generator(tokens, condition, context_BL=context)
        assert torch.equal(given, any_generator(context, condition))
        assert not torch.allclose(given, any_generator(tokens, condition))
        start, end = list(any_generator.layout.spans())[-2]
        changed = context.clone()
        changed[:, start:end] = (changed[:, start:end] + 1) % any_generator.vocab_size
        moved = (any_generator(tokens, condition, context_BL=changed) - given).abs().amax(dim=(0, 2))
    assert (moved[:end] == 0).all()
    assert (moved[end:] > 0).any()


def test_a_copy_scores_alike_and_is_independent(any_generator: PublishedGenerator, condition: Condition) -> None:
    """The reference is such a copy."""
    tokens = sample(any_generator, condition).tokens_BL
    twin = copy.deepcopy(any_generator)
    with torch.no_grad():
        before = any_generator(tokens, condition)
        assert torch.equal(twin(tokens, condition), before)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(any_generator(tokens, condition), before)


def test_the_tokenizer_is_neither_trained_nor_saved(any_generator: PublishedGenerator) -> None:
    assert not any("quantize" in name for name, _ in any_generator.named_parameters())
    assert not any("quantize" in name for name in any_generator.state_dict())


def test_saved_weights_give_the_same_logits(
    any_generator: PublishedGenerator, condition: Condition, tmp_path: Path
) -> None:
    any_generator.save_published(tmp_path / "generator.pt")
    save_tokenizer(any_generator.tokenizer, tmp_path / "tokenizer.pt")
    untold: dict[str, Any] = {name: getattr(any_generator.sizes, name) for name in UNTOLD[any_generator.family]}
    again = load_generator(any_generator.family, tmp_path / "generator.pt", tmp_path / "tokenizer.pt", **untold)
    tokens = sample(any_generator, condition).tokens_BL
    with torch.no_grad():
        assert torch.equal(any_generator(tokens, condition), again(tokens, condition))
    assert torch.equal(any_generator.decode(tokens), again.decode(tokens))
    # and a module on the meta device, filled with the saved tensors alone, has lost nothing
    with torch.device("meta"):
        empty = type(any_generator)(any_generator.sizes)
    empty.to_empty(device="cpu").load_state_dict(any_generator.state_dict())
    empty.attach(any_generator.tokenizer)
    with torch.no_grad():
        assert torch.equal(any_generator(tokens, condition), empty.eval()(tokens, condition))


@pytest.mark.gpu
def test_a_gpu_draws_the_same_distribution(any_generator: PublishedGenerator) -> None:
    """Random numbers come from the CPU, so that only rounding can differ between devices."""
    condition = conditions(any_generator, [0, 1, 2, 3])
    rollout = sample(any_generator, condition, SETTINGS["filtered"])
    any_generator.to("cuda")
    try:
        scored = (
            score(any_generator, rollout.tokens_BL.cuda(), condition.to("cuda"), SETTINGS["filtered"]).detach().cpu()
        )
    finally:
        any_generator.to("cpu")
    torch.testing.assert_close(rollout.logprobs_BL, scored, atol=1e-3, rtol=1e-3)
