"""Generators of published sizes with random weights, and what they are asked to draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from align.checkpoints import load_generator
from align.generators import VAR, Generator, Janus, JanusConfig, LlamaGen, LlamaGenConfig, LlamaGenT2I, VARConfig
from align.generators.janus_keys import ORIGINAL
from align.generators.llamagen_config import PUBLISHED
from align.generators.published import PublishedGenerator
from align.tokenizers import MultiscaleVQConfig, MultiscaleVQTokenizer, VQConfig, VQTokenizer
from align.tokenizers.multiscale_vq import SCALES_256
from align.types import Condition
from align.zoo_entries import zoo_entries

MEASURED = ("llamagen", "var", "janus")  # those that there is a plain loop of
PROMPT_TOKENS = 32  # of a Janus' prompts here
# of a Janus' pixels: small, as what is measured ends with tokens or has them decoded on both sides
PIXELS = VQConfig(channels=32, channel_multipliers=(1, 1, 1), num_res_blocks=1)
# of its random weights: what a prompt begins and ends with, and what the null prompt consists of
BOS, BOI, PAD = range(3)


def published_sizes(
    family: str, size: str, *, grid: Sequence[int] = (16, 16), patch_nums: Sequence[int] = SCALES_256
) -> LlamaGenConfig | VARConfig | JanusConfig:
    """Of a published model, at a number of tokens that may be another.

    Args:
        grid: (rows, columns) of tokens, of all but a VAR; patch_nums: the scales of a VAR.

    Raises:
        ValueError: no published size.
    """
    if family == "janus":
        _known(family, size, ["1B"])
        language = {
            "vocab_size": 102400, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
            "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 16384,
        }  # fmt: skip
        return JanusConfig(
            language, vocab_size=16384, codebook_dim=8, aligner_layers=2, head_width=2048, grid=_pair(grid),
            key_layout=ORIGINAL,
        )  # fmt: skip
    if family == "var":
        _known(family, size, [f"d{depth}" for depth in (16, 20, 24, 30, 36)])
        depth = int(size.removeprefix("d"))
        return VARConfig(
            dim=64 * depth, num_layers=depth, num_heads=depth, hidden_dim=256 * depth, vocab_size=4096, codebook_dim=32,
            num_classes=1000, patch_nums=tuple(patch_nums), l2_norm=True, shared_adaln=False,
        )  # fmt: skip
    _known(family, size, [name for name, *_ in PUBLISHED.values()])
    dim, (_, layers, heads) = next((dim, row) for dim, row in PUBLISHED.items() if row[0] == size)
    condition = {"num_classes": 1000} if family == "llamagen" else {"caption_tokens": 120, "caption_dim": 2048}
    return LlamaGenConfig(
        dim=dim, num_layers=layers, num_heads=heads, hidden_dim=LlamaGenConfig.hidden(dim), vocab_size=16384,
        grid=_pair(grid), **condition,
    )  # fmt: skip


def small_janus(grid: Sequence[int]) -> JanusConfig:
    """Of no published size: a Janus that a CPU trains, with the published vocabulary of images."""
    language = {
        "vocab_size": 512, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 1024,
    }  # fmt: skip
    return JanusConfig(language, vocab_size=16384, codebook_dim=8, aligner_layers=2, head_width=512, grid=_pair(grid))


def _known(family: str, size: str, names: list[str]) -> None:
    if size not in names:
        raise ValueError(f"no published {family} has the size {size!r}; known: {', '.join(names)}")


def _pair(grid: Sequence[int]) -> tuple[int, int]:
    rows, columns = grid
    return rows, columns


@torch.no_grad()
def spread(generator: PublishedGenerator[Any]) -> PublishedGenerator[Any]:
    """Random weights of a spread that keeps activations and logits in the range of trained ones."""
    for name, parameter in generator.named_parameters():
        if parameter.dim() >= 2 and "scale_mul" not in name:
            parameter.normal_(std=0.02)
    return generator


def random_generator(
    sizes: LlamaGenConfig | VARConfig | JanusConfig, device: torch.device | str = "cpu"
) -> PublishedGenerator[Any]:
    """In eval mode, always with the same weights; a LlamaGen has no tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with torch.device(device):
            if isinstance(sizes, VARConfig):
                tokenizer = MultiscaleVQTokenizer(MultiscaleVQConfig(patch_nums=sizes.patch_nums))
                return spread(VAR(sizes, tokenizer)).eval()
            if isinstance(sizes, JanusConfig):
                return spread(Janus(replace(sizes, pad_id=PAD), VQTokenizer(PIXELS))).eval()
            return spread((LlamaGenT2I if sizes.caption_tokens else LlamaGen)(sizes)).eval()


def make_model(
    model: str,
    size: str | None,
    length: int | None,
    *,
    checkpoint: str | None = None,
    tokenizer_checkpoint: str | None = None,
    device: torch.device | str = "cpu",
) -> PublishedGenerator[Any]:
    """A zoo entry, a family's checkpoint, or a family's random weights, in float32 and eval mode.

    Args:
        size: of random weights, a published one; length: of random weights, the number of tokens of an image.

    Raises:
        ValueError: an unknown name or size, a length that is no square, or settings that would not be used.
    """
    if checkpoint is not None or model in zoo_entries():
        if size is not None or length is not None:
            raise ValueError(
                f"size and length are those of random weights; {checkpoint or model} has its own: set both to [null]"
            )
        generator = load_generator(model, checkpoint, tokenizer_checkpoint, device=device, dtype=torch.float32)
    elif model in MEASURED and size is not None:
        generator = random_generator(_sizes(model, size, length), device)
    elif model in MEASURED:
        raise ValueError(f"which size of {model}? Set size=[B] or the like, or checkpoint= for weights of your own")
    else:
        raise ValueError(f"unknown model {model!r}; known: {', '.join((*MEASURED, *zoo_entries()))}")
    if generator.family not in MEASURED:
        raise ValueError(
            f"{model} is a {generator.family}, which there is no plain loop of; measured are {', '.join(MEASURED)}"
        )
    assert isinstance(generator, PublishedGenerator)
    return generator


def _sizes(family: str, size: str, length: int | None) -> LlamaGenConfig | VARConfig | JanusConfig:
    if family == "var":
        sizes = published_sizes(family, size)
        assert isinstance(sizes, VARConfig)
        own = sum(side * side for side in sizes.patch_nums)
        if length not in (None, own):
            raise ValueError(f"a VAR of random weights has {own} tokens, got length {length}; set length=[null]")
        return sizes
    side = math.isqrt(length or 256)
    if length is not None and side * side != length:
        raise ValueError(f"length is {length}; it must be a square number, as 64, 144, 256 or 576")
    if (family, size) == ("janus", "S"):
        return small_janus((side, side))
    return published_sizes(family, size, grid=(side, side))


def conditions(generator: Generator, rows: int) -> Condition:
    """Of so many images: classes one after the other, or prompts of random words of one length."""
    if generator.num_classes is not None:
        return generator.encode_condition([row % generator.num_classes for row in range(rows)])
    assert isinstance(generator, Janus)
    length = min(PROMPT_TOKENS, generator.sizes.max_prompt_tokens)
    stream = torch.Generator().manual_seed(0)
    ids = torch.randint(PAD + 1, generator.sizes.text_vocab_size, (rows, length), generator=stream)
    ids[:, 0], ids[:, -1] = BOS, BOI
    return generator.encode_condition({"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)})
