"""The sizes of an Infinity, and the published schedules of scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from align.generators.published import describe
from align.tokenizers.blocks import count_modules
from align.tokenizers.bsq import check_scales

Scales = tuple[tuple[int, int], ...]

# (height, width) of each scale for upright images, by how much taller than wide; lying ones swap the two. An image of
# about 0.06, 0.25, 0.6 or 1 megapixels takes the first 7, 10, 12 or all 13, and has 16 pixels a position at the last
_SCHEDULES = (
    "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
)
_LENGTHS = (7, 10, 12, 13)
_PIXELS_PER_POSITION = 16
_BITS_8B = 56
_FIRST_LAYER = "block_chunks.0.module.0"


def published_schedules() -> dict[tuple[int, int], tuple[Scales, int]]:
    """The whole schedule, and how many of its scales are drawn, of every published image size (height, width)."""
    found = {}
    for row in _SCHEDULES:
        upright = tuple((int(a), int(b)) for a, b in (size.split("x") for size in row.split()))
        for schedule in (upright, tuple((width, height) for height, width in upright)):
            for length in _LENGTHS:
                height, width = schedule[length - 1]
                size = (height * _PIXELS_PER_POSITION, width * _PIXELS_PER_POSITION)
                found[size] = (schedule, length)
    return found


@dataclass(frozen=True)
class InfinityConfig:
    """Sizes of an Infinity.

    codebook_dim: bits at a position.
    text_dim, text_tokens: width of the text features, and how many a caption has at most.
    pool_heads: of the attention that sums a caption up.
    levels: rows of the scales' embedding; there may be more of them than scales.
    chunks: groups that the blocks come in, in the file.
    schedule, num_scales: (height, width) of each scale, and how many of them are drawn. Positions are laid out on the
        grid of the schedule's last scale, also where fewer are drawn: a network for several image sizes sees each scale
        at one place.
    heads_last: how the file stores the attention scales, [1, 1, H, 1] instead of [1, H, 1, 1].
    dropout, drop_path: in train mode only; on the outputs of attention and feed-forward, and on whole branches, growing
        with depth up to `drop_path` (pretraining used 0 and 0.1).
    """

    dim: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    codebook_dim: int
    text_dim: int
    text_tokens: int
    pool_heads: int
    levels: int
    chunks: int
    schedule: Scales
    num_scales: int
    heads_last: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_scales(self.schedule)
        if self.schedule[0] != (1, 1):
            raise ValueError(f"the schedule starts at {self.schedule[0]}; an Infinity's first scale is (1, 1)")
        if not 2 <= self.num_scales <= len(self.schedule):
            raise ValueError(f"num_scales is {self.num_scales}; it must be 2 to {len(self.schedule)}, the schedule's")
        if self.num_scales > self.levels:
            raise ValueError(f"num_scales is {self.num_scales}, and this Infinity knows {self.levels} scales")
        if self.dim % (4 * self.num_heads):
            raise ValueError(
                f"num_heads={self.num_heads} does not divide dim={self.dim} into heads of a multiple of 4 (two axes of "
                "rotary pairs)"
            )

    @property
    def scales(self) -> Scales:
        """(height, width) of each scale that is drawn."""
        return self.schedule[: self.num_scales]

    @property
    def vocab_size(self) -> int:
        return 2

    @property
    def size_name(self) -> str | None:
        return {(2048, 32, 16): "2B", (768, 12, 8): "125M"}.get((self.dim, self.num_layers, self.num_heads))

    @staticmethod
    def infer(
        tensors: Mapping[str, Tensor],
        *,
        image_size: int | Sequence[int] | None = None,
        schedule: Sequence[Sequence[int]] | None = None,
        num_scales: int | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> InfinityConfig:
        """Read the sizes off a published state_dict.

        Args:
            image_size: (height, width) in pixels, or the side of a square, of a published schedule; files do not tell.
            schedule, num_scales: any other schedule, and how many of its scales are drawn (None: all).

        Raises:
            ValueError: another family's file, or keywords that are needed and not given, or contradict each other.
        """
        try:
            text_tokens, text_dim = tensors["cfg_uncond"].shape
            dim, codebook_dim = tensors["word_embed.weight"].shape
            scale = tensors[f"{_FIRST_LAYER}.sa.scale_mul_1H11"]
            hidden_dim = tensors[f"{_FIRST_LAYER}.ffn.fc1.weight"].shape[0]
            pool_heads = tensors["text_proj_for_sos.ca.mat_q"].shape[1]
            levels = tensors["lvl_embed.weight"].shape[0]
        except KeyError as error:
            raise ValueError(
                f"this is not an Infinity generator: it has no tensor {error}; {describe(tensors)}"
            ) from error
        if codebook_dim == _BITS_8B:
            raise ValueError(
                f"this Infinity draws {codebook_dim} bits a position: those of 2x2 positions of its tokenizer, as Infinity-8B "
                "does, which is not supported. Infinity-2B is, and any other that draws its tokenizer's own positions"
            )
        chunks = count_modules(tensors, "block_chunks.{}.module.0.ada_gss")
        in_a_chunk = count_modules(tensors, "block_chunks.0.module.{}.ada_gss")
        return InfinityConfig(
            dim=dim,
            num_layers=chunks * in_a_chunk,
            num_heads=scale.numel(),
            hidden_dim=hidden_dim,
            codebook_dim=codebook_dim,
            text_dim=text_dim,
            text_tokens=text_tokens,
            pool_heads=pool_heads,
            levels=levels,
            chunks=chunks,
            heads_last=scale.shape[2] > scale.shape[1],
            dropout=dropout,
            drop_path=drop_path,
            **_schedule(image_size, schedule, num_scales),
        )


def _schedule(
    image_size: int | Sequence[int] | None, schedule: Sequence[Sequence[int]] | None, num_scales: int | None
) -> dict[str, Any]:
    if (image_size is None) == (schedule is None):
        raise ValueError(
            "an Infinity's file does not say its scales; pass image_size=1024 (256, 512, or (height, width)) for a "
            "published schedule, or a schedule=[(1, 1), (2, 2), ...] of your own, and not both"
        )
    if schedule is not None:
        scales = tuple((int(height), int(width)) for height, width in schedule)
        return {"schedule": scales, "num_scales": len(scales) if num_scales is None else num_scales}
    if num_scales is not None:
        raise ValueError("image_size says how many scales are drawn; num_scales= goes with schedule=")
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size or ())
    known = published_schedules()
    if sides not in known:
        squares = ", ".join(str(height) for height, width in known if height == width)
        raise ValueError(
            f"no published schedule of Infinity draws {'x'.join(map(str, sides))} pixels (height x width); squares: "
            f"{squares}; others near it: {', '.join(_near(sides, known))}"
        )
    return dict(zip(("schedule", "num_scales"), known[sides], strict=True))


def _near(sides: Sequence[int], known: Mapping[tuple[int, int], Any]) -> list[str]:
    def distance(size: tuple[int, int]) -> float:
        return abs(size[0] - sides[0]) + abs(size[1] - sides[-1])

    return [f"{height}x{width}" for height, width in sorted(known, key=distance)[:4]]
