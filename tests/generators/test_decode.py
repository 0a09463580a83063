"""The CPU's own step: the same logits and images as PyTorch's operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from align import SamplingConfig, sample
from align.generators import Janus, JanusConfig, LlamaGen, LlamaGenConfig, LlamaGenT2I, decode
from align.generators.base import evaluating
from align.generators.llamagen import LlamaGenDecoder
from align.types import Condition

pytestmark = pytest.mark.skipif(decode.missing() is not None, reason=f"no kernel here: {decode.missing()}")
SIZES = {"dim": 96, "num_layers": 2, "num_heads": 2, "hidden_dim": 112, "vocab_size": 101, "grid": (5, 5)}


def classes() -> LlamaGenDecoder:
    return spread(LlamaGen(LlamaGenConfig(**SIZES, num_classes=10)))


def captions() -> LlamaGenDecoder:
    return spread(LlamaGenT2I(LlamaGenConfig(**SIZES, caption_tokens=3, caption_dim=8)))


def spread(generator: LlamaGenDecoder) -> LlamaGenDecoder:
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=0.3, generator=numbers)
    return generator.eval()


def condition(generator: LlamaGenDecoder, rows: int) -> Condition:
    if isinstance(generator, LlamaGen):
        return generator.encode_condition([row % 10 for row in range(rows)])
    numbers = torch.Generator().manual_seed(1)
    caption, mask = torch.randn(rows, 3, 8, generator=numbers), torch.ones(rows, 3, dtype=torch.bool)
    mask[::2, 0] = False
    return Condition({"caption": caption * mask.unsqueeze(-1), "mask": mask})


def all_logits(generator: LlamaGenDecoder, given: Condition, tokens_BL: Tensor, kernel: bool) -> Tensor:
    """[L, B, V]; halfway the rows are turned round."""
    generator.engine = "native" if kernel else "eager"
    with evaluating(generator):
        cache = generator.new_cache(len(given))
        found = [generator.start(given, cache)]
        for place in range(tokens_BL.shape[1] - 1):
            if place == 12:
                turned = torch.arange(len(given)).flip(0)
                generator.select_rows(cache, turned)
            found.append(generator.step(tokens_BL[:, place : place + 1], cache))
        assert (cache.kernel is not None) == kernel
    return torch.cat(found, dim=1).transpose(0, 1)


@pytest.mark.parametrize("rows", [1, 4, 5, 8, 19])
@pytest.mark.parametrize("make", [classes, captions])
def test_logits_are_those_of_pytorch(make: Callable[[], LlamaGenDecoder], rows: int) -> None:
    generator = make()
    given = condition(generator, rows)
    tokens_BL = torch.randint(101, (rows, 25), generator=torch.Generator().manual_seed(2))
    found, expected = (all_logits(generator, given, tokens_BL, kernel) for kernel in (True, False))
    torch.testing.assert_close(found, expected, atol=1e-4 * expected.abs().max().item(), rtol=1e-4)


def test_bfloat16_weights_are_read_as_they_are_and_summed_in_float32() -> None:
    """Closer to float32 arithmetic on the same weights than PyTorch's bfloat16 is."""
    generator = classes().bfloat16()
    exact = classes().bfloat16().float()
    given = condition(generator, 3)
    tokens_BL = torch.randint(101, (3, 25), generator=torch.Generator().manual_seed(2))
    truth = all_logits(exact, given, tokens_BL, kernel=False)
    ours, theirs = (all_logits(generator, given, tokens_BL, kernel) - truth for kernel in (True, False))
    assert ours.abs().mean() < 0.5 * theirs.abs().mean()
    assert ours.abs().mean() < 0.01 * truth.abs().mean()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_images_are_the_same_with_any_number_of_threads(threads: int) -> None:
    generator = classes()
    before = torch.get_num_threads()
    rollouts = {}
    config = SamplingConfig(guidance_scale=2.0, guided_blocks=9, top_k=50, seed=4)
    try:
        torch.set_num_threads(threads)
        for generator.engine in ("eager", "native"):
            rollouts[generator.engine] = sample(generator, condition(generator, 6), config)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(rollouts["native"].tokens_BL, rollouts["eager"].tokens_BL)
    torch.testing.assert_close(rollouts["native"].logprobs_BL, rollouts["eager"].logprobs_BL, atol=1e-3, rtol=1e-3)


def test_what_the_kernel_is_not_for_is_drawn_without_it_or_refused() -> None:
    generator = classes()
    many = condition(generator, decode.MAX_ROWS + 1)
    assert sample(generator, many).tokens_BL.shape == (33, 25)
    generator.engine = "native"
    with pytest.raises(ValueError, match=r"engine=native cannot be used: it is for up to 32 rows .* batch=33"):
        sample(generator, many)
    with pytest.raises(ValueError, match="float32 and bfloat16, and the weights are torch.float16"):
        sample(generator.half(), condition(generator, 2))
    generator.float().layers[0].attention.wo = torch.nn.Sequential(generator.layers[0].attention.wo, torch.nn.ReLU())
    with pytest.raises(ValueError, match="not plain ones of one dtype .adapters are on"):
        sample(generator, condition(generator, 2))


def test_without_a_compiler_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = classes()
    expected = sample(generator, condition(generator, 2)).tokens_BL
    monkeypatch.setattr(decode, "_library", decode._library.__wrapped__)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert torch.equal(sample(generator, condition(generator, 2)).tokens_BL, expected)
    generator.engine = "native"
    with pytest.raises(ValueError, match="no C.. compiler: neither .CXX nor g.. is found. Use engine=auto"):
        sample(generator, condition(generator, 2))


def test_janus_has_it_too() -> None:
    """With prompts of several lengths, whose rotations differ at one place; and not where heads share keys."""
    language = {
        "vocab_size": 40,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    janus = janus_of(language)
    ids = torch.arange(24).view(3, 8)
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[1, :3] = False
    given = Condition({"ids": ids, "mask": mask})
    rollouts = {}
    for janus.engine in ("eager", "native"):
        rollouts[janus.engine] = sample(janus, given, SamplingConfig(guidance_scale=2.0, guided_blocks=7))
    assert torch.equal(rollouts["native"].tokens_BL, rollouts["eager"].tokens_BL)
    torch.testing.assert_close(rollouts["native"].logprobs_BL, rollouts["eager"].logprobs_BL, atol=1e-4, rtol=1e-4)
    sharing = janus_of({**language, "num_key_value_heads": 1})
    assert sample(sharing, given).tokens_BL.shape == (3, 25)
    sharing.engine = "native"
    with pytest.raises(ValueError, match="cannot be used: several of the 2 heads share one of 1 keys"):
        sample(sharing, given)


def janus_of(language: dict[str, int]) -> Janus:
    config = JanusConfig(
        language, vocab_size=50, codebook_dim=4, aligner_layers=2, head_width=32, grid=(5, 5), pad_id=0
    )
    numbers, janus = torch.Generator().manual_seed(0), Janus(config)
    with torch.no_grad():
        for parameter in janus.parameters():
            parameter.normal_(std=0.3, generator=numbers)
    return janus.eval()
