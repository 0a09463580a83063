"""The sizes of a LlamaGen, and how they are read off its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from align.generators.published import describe

# the published sizes by model width: name, layers, and heads, which shapes cannot tell
PUBLISHED = {768: ("B", 12, 12), 1024: ("L", 24, 16), 1280: ("XL", 36, 20), 1536: ("XXL", 48, 24), 3200: ("3B", 24, 32)}


@dataclass(frozen=True)
class LlamaGenConfig:
    """Sizes of a LlamaGen. `grid` is (rows, columns) of tokens.

    num_classes: of a class-conditional one, without the null class; 0 for captions.
    caption_tokens, caption_dim: of a text-to-image one, how many text features of which width it reads; 0 for classes.
    dropout acts on embeddings, attention output and feed-forward output, in train mode only (pretraining used 0.1).
    """

    dim: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    vocab_size: int
    grid: tuple[int, int]
    num_classes: int = 0
    caption_tokens: int = 0
    caption_dim: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 4:
            raise ValueError(
                f"num_heads={self.num_heads} does not divide dim={self.dim} into heads whose width is a multiple of 4 "
                "(two axes of rotary pairs)"
            )

    @property
    def condition_tokens(self) -> int:
        return self.caption_tokens or 1

    @property
    def size_name(self) -> str | None:
        name, *sizes = PUBLISHED.get(self.dim, (None,))
        return name if sizes == [self.num_layers, self.num_heads] else None

    @staticmethod
    def hidden(dim: int) -> int:
        """Width of the feed-forward layer in published models: 8/3 dim rounded up to a multiple of 256."""
        return -(-int(2 * 4 * dim / 3) // 256) * 256

    @staticmethod
    def infer(
        tensors: Mapping[str, Tensor],
        *,
        grid: tuple[int, int] | None = None,
        num_heads: int | None = None,
        dropout: float = 0.0,
    ) -> LlamaGenConfig:
        """Read the sizes off a published state_dict; what shapes cannot tell comes from the table or the keywords.

        The grid is also told by the rotary table that some files carry, whose length is the sequence's.

        Raises:
            ValueError: another family's file, `grid` / `num_heads` is needed and not given, or the grid contradicts it.
        """
        condition: dict[str, int]
        try:
            if "cls_embedding.uncond_embedding" in tensors:
                length, width = tensors["cls_embedding.uncond_embedding"].shape
                condition = {"caption_tokens": length, "caption_dim": width}
            else:
                condition = {"num_classes": tensors["cls_embedding.embedding_table.weight"].shape[0] - 1}
            hidden_dim = tensors["layers.0.feed_forward.w1.weight"].shape[0]
            vocab_size, dim = tensors["tok_embeddings.weight"].shape
        except KeyError as error:
            raise ValueError(
                f"this is not a LlamaGen generator: it has no tensor {error}; {describe(tensors)}"
            ) from error
        if num_heads is None and dim not in PUBLISHED:
            raise ValueError(f"no published LlamaGen is {dim} wide, and shapes do not tell the heads; pass num_heads=")
        rope = tensors.get("freqs_cis")
        told = None if rope is None else rope.shape[0] - condition.get("caption_tokens", 1)
        return LlamaGenConfig(
            dim=dim,
            num_layers=len({name.split(".")[1] for name in tensors if name.startswith("layers.")}),
            num_heads=num_heads or PUBLISHED[dim][2],
            hidden_dim=hidden_dim,
            vocab_size=vocab_size,
            grid=_grid(grid, told),
            dropout=dropout,
            **condition,
        )


def _grid(given: tuple[int, int] | None, told: int | None) -> tuple[int, int]:
    """`told`: number of tokens that the file speaks of."""
    if given is None and told is not None and math.isqrt(told) ** 2 == told:
        return math.isqrt(told), math.isqrt(told)
    if given is None:
        raise ValueError(
            "a LlamaGen file does not say its token grid; pass grid=(16, 16) for the 256 px models, grid=(24, 24) for 384 px, grid=(32, 32) for 512 px"
        )
    rows, columns = int(given[0]), int(given[1])
    if told not in (None, rows * columns):
        raise ValueError(
            f"grid=({rows}, {columns}) is {rows * columns} tokens, but the file's rotary table is of {told}"
        )
    return rows, columns
