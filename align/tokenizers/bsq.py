"""Infinity's multi-scale tokenizer of binary spherical quantisation (Han et al. 2024, arXiv 2412.04431; Zhao et al. 2024,
arXiv 2406.07548): an image as bits, on maps of growing size.

An encoder's latent map f of d channels is approximated by a sum over scales: what is still missing is averaged down to
the scale's size, and the signs of its d numbers are the position's bits; that is the nearest corner of a cube in the unit
sphere, so that a code is d times +-1/sqrt(d) and no codebook is stored. The codes are enlarged to the full size and added
to f_hat. A token is one bit here: positions in row-major order, and d tokens, the channels, at each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.tokenizers.blocks import Downsample, ResBlock, Upsample, count_modules, norm

# the tensors that a file must hold; beside them lie the quantiser's constants, and perhaps the losses of its training
PARTS = ("encoder.", "decoder.")
# pixels that pass through a network at once, as few images as make them up: bounds its memory
CHUNK_PIXELS = 16 * 256 * 256


@dataclass(frozen=True)
class BSQConfig:
    """Sizes of a BSQ tokenizer.

    scales: (height, width) of each scale's map; the last is the latent map's.
    channel_multipliers: one entry per resolution, finest first.
    codebook_dim: bits at a position.
    """

    scales: tuple[tuple[int, int], ...]
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    num_res_blocks: int = 2
    codebook_dim: int = 32

    def __post_init__(self) -> None:
        check_scales(self.scales)

    @property
    def codebook_size(self) -> int:
        return 2

    @property
    def downsampling(self) -> int:
        """Pixels per position of the last scale, along each side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @staticmethod
    def infer(tensors: Mapping[str, Tensor], *, scales: Sequence[Sequence[int]] | None = None) -> BSQConfig:
        """Read the sizes off a published state_dict, which serves any scales.

        Raises:
            ValueError: the tensors are no BSQ tokenizer, or `scales` is not given.
        """
        try:
            channels = tensors["encoder.conv_in.conv.weight"].shape[0]
            levels = count_modules(tensors, "encoder.down.{}.block.0.conv1.conv.weight")
            multipliers = tuple(
                tensors[f"encoder.down.{level}.block.0.conv1.conv.weight"].shape[0] // channels
                for level in range(levels)
            )
            bits = tensors["encoder.conv_out.conv.weight"].shape[0]
        except KeyError as error:
            raise ValueError(
                f"this is not Infinity's tokenizer: it has no tensor {error}; its first tensors are {list(tensors)[:4]}"
            ) from error
        if scales is None:
            raise ValueError(
                "Infinity's tokenizer file does not say its scales; pass scales=[(1, 1), (2, 2), ...], (height, width) each"
            )
        return BSQConfig(
            scales=tuple((int(height), int(width)) for height, width in scales),
            channels=channels,
            channel_multipliers=multipliers,
            num_res_blocks=count_modules(tensors, "encoder.down.0.block.{}.conv1.conv.weight"),
            codebook_dim=bits,
        )


def check_scales(scales: Sequence[tuple[int, int]]) -> None:
    """Raises ValueError unless there are at least two maps, each larger than the one before and nowhere smaller."""
    grow = all(a[0] <= b[0] and a[1] <= b[1] and a != b for a, b in pairwise(scales))
    if len(scales) < 2 or min(scales[0]) < 1 or not grow:
        raise ValueError(f"scales are {list(scales)}; they must be two or more growing maps, (height, width) each")


class BSQTokenizer(nn.Module):
    """Images float [B, 3, H, W] in [-1, 1] to tokens int64 [B, L], all scales one after the other, and back."""

    def __init__(self, config: BSQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)

    def latents(self, images_BCHW: Tensor) -> Tensor:
        """float [B, d, h, w], of the last scale's size: what the scales approximate."""
        return self.encoder(images_BCHW)

    def encode(self, images_BCHW: Tensor) -> Tensor:
        latents = self.latents(images_BCHW)
        f_hat, tokens = torch.zeros_like(latents), []
        for scale, size in enumerate(self.config.scales):
            rest = F.interpolate(latents - f_hat, size=size, mode="area")
            tokens.append((rest > 0).permute(0, 2, 3, 1).flatten(1).long())
            f_hat = self.add_scale(f_hat, tokens[-1], scale)
        return torch.cat(tokens, dim=1)

    def decode(self, tokens_BL: Tensor) -> Tensor:
        """float [B, 3, H, W], about [-1, 1] and not clamped."""
        return self._decode_signs(_signs(tokens_BL))

    def decode_soft(self, weights_BLV: Tensor) -> Tensor:
        """`decode` of mixtures of both values of each bit, differentiable: convex weights for every token."""
        zero_BL, one_BL = weights_BLV.float().unbind(-1)
        return self._decode_signs(one_BL - zero_BL)

    def _decode_signs(self, signs_BL: Tensor) -> Tensor:
        *_, f_hat = self._partial_sums(signs_BL)
        return self.decode_latents(f_hat)

    def decode_latents(self, f_hat_BDhw: Tensor) -> Tensor:
        return self.decoder(f_hat_BDhw)

    def next_inputs(self, tokens_BL: Tensor) -> Tensor:
        """float [B, N - h_1 w_1, d] for N positions: what a network reads when it predicts the second scale and all after
        it, given the bits before. The last scale's do not matter."""
        sums = self._partial_sums(_signs(tokens_BL))
        scales = range(1, len(self.config.scales))
        return torch.cat([self.next_input(f_hat, scale) for f_hat, scale in zip(sums, scales, strict=False)], dim=1)

    def next_input(self, f_hat_BDhw: Tensor, scale: int) -> Tensor:
        """float [B, h_k w_k, d]: f_hat at a scale's positions. Interpolated, while what is encoded is averaged."""
        return _resize(f_hat_BDhw, self.config.scales[scale]).flatten(2).transpose(1, 2)

    def add_scale(self, f_hat_BDhw: Tensor | None, tokens_Bn: Tensor, scale: int) -> Tensor:
        """f_hat with one scale more; None is the empty one."""
        step = self._contribution(_signs(tokens_Bn), scale)
        return step if f_hat_BDhw is None else f_hat_BDhw + step

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """The number that each bit is in its position's code, float [B, L, 1]."""
        return _signs(tokens_BL).unsqueeze(-1) / math.sqrt(self.config.codebook_dim)

    def encode_images(self, images_BHWC: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] to tokens [B, L], a few images at a time, without gradient."""
        pixels = images_BHWC.to(next(self.parameters()).device).permute(0, 3, 1, 2)
        with torch.no_grad():
            return torch.cat([self.encode(part.float() / 255 * 2 - 1) for part in pixels.split(self._chunk)])

    def decode_images(self, tokens_BL: Tensor) -> Tensor:
        """Tokens to uint8 [B, H, W, 3], a few images at a time, without gradient; truncated, as by the authors' sampler."""
        return self._images(self.decode, tokens_BL)

    def decode_first_scales(self, tokens_Bl: Tensor) -> Tensor:
        """The same of the bits of the first scales alone, whole ones: f_hat as far as it has come, blurred images.

        Raises:
            ValueError: bits that end within a scale.
        """
        return self._images(self._decode_first_scales, tokens_Bl)

    def _decode_first_scales(self, tokens_Bl: Tensor) -> Tensor:
        ends = list(accumulate(height * width * self.config.codebook_dim for height, width in self.config.scales))
        if tokens_Bl.shape[1] not in ends:
            raise ValueError(f"got {tokens_Bl.shape[1]} bits an image; whole scales end at {ends}")
        f_hat = None
        for scale, (start, end) in enumerate(pairwise([0, *ends[: ends.index(tokens_Bl.shape[1]) + 1]])):
            f_hat = self.add_scale(f_hat, tokens_Bl[:, start:end], scale)
        assert f_hat is not None
        return self.decode_latents(f_hat)

    def _images(self, decode: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        chunks = tokens.to(next(self.parameters()).device).split(self._chunk)
        with torch.no_grad():
            pixels = torch.cat([decode(part) for part in chunks])
        return ((pixels.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1)

    @property
    def _chunk(self) -> int:
        height, width = self.config.scales[-1]
        return max(1, CHUNK_PIXELS // (height * width * self.config.downsampling**2))

    def _contribution(self, signs_Bn: Tensor, scale: int) -> Tensor:
        """float [B, d, h, w]: what a scale's codes add to f_hat."""
        height, width = self.config.scales[scale]
        codes = signs_Bn.unflatten(1, (height, width, -1)) / math.sqrt(self.config.codebook_dim)
        return _resize(codes.permute(0, 3, 1, 2), self.config.scales[-1])

    def _partial_sums(self, signs_BL: Tensor) -> Iterator[Tensor]:
        """f_hat after the first scale, the second, ..."""
        sizes = [height * width * self.config.codebook_dim for height, width in self.config.scales]
        f_hat: Tensor | None = None
        for scale, block in enumerate(signs_BL.split(sizes, dim=1)):
            step = self._contribution(block, scale)
            f_hat = step if f_hat is None else f_hat + step
            yield f_hat


def _signs(tokens: Tensor) -> Tensor:
    return tokens.float() * 2 - 1


def _resize(maps_BDhw: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps_BDhw.shape[-2:]) == size:
        return maps_BDhw
    return F.interpolate(maps_BDhw, size=size, mode="bilinear")


class _Conv(nn.Module):
    """A convolution under the name it has in the file."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Norm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class _Level(nn.Module):
    """One resolution: residual blocks, then an optional change of size."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int) -> None:
        super().__init__()
        widths = [in_channels, *[out_channels] * blocks]
        self.block = nn.ModuleList(ResBlock(a, b, _Conv, _Norm) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for resize in ("downsample", "upsample"):
            if hasattr(self, resize):
                x = getattr(self, resize)(x)
        return x


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, _Conv, _Norm)
        self.block_2 = ResBlock(channels, channels, _Conv, _Norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class _Encoder(nn.Module):
    def __init__(self, config: BSQConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        self.conv_in = _Conv(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for before, width in zip([config.channels, *widths], widths, strict=False):
            level = _Level(before, width, config.num_res_blocks)
            if len(self.down) < len(widths) - 1:
                level.downsample = Downsample(width, _Conv)
            self.down.append(level)
        self.mid = _Middle(widths[-1])
        self.norm_out = _Norm(widths[-1])
        self.conv_out = _Conv(widths[-1], config.codebook_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class _Decoder(nn.Module):
    def __init__(self, config: BSQConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        self.conv_in = _Conv(config.codebook_dim, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1])
        # index 0 is the finest resolution, which comes last; one residual block more per level than the encoder
        self.up = nn.ModuleList()
        for before, width in zip([*widths[1:], widths[-1]], widths, strict=True):
            level = _Level(before, width, config.num_res_blocks + 1)
            if len(self.up):
                level.upsample = Upsample(width, _Conv)
            self.up.append(level)
        self.norm_out = _Norm(widths[0])
        self.conv_out = _Conv(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
