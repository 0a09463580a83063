"""VAR's multi-scale VQVAE (Tian et al. 2024, arXiv 2404.02905): an image as token maps of growing size.

An encoder's latent map f is approximated by a sum over scales: scale k's p_k x p_k tokens are the nearest codes to
what is still missing, shrunk to p_k x p_k; their codes are enlarged to the full size, pass a convolution phi, and are
added to f_hat. What a VAR network reads before it predicts scale k + 1 is the f_hat so far, shrunk to that scale.
Architecture and tensor names are those of the published file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.tokenizers.blocks import PIXEL_CHUNK, Downsample, ResBlock, Upsample, count_modules, norm

# convolutions phi that the scales share, and the weight of the convolved part, in the published file
NUM_PHI = 4
PHI_RATIO = 0.5
# patch_nums of the published generators
SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@dataclass(frozen=True)
class MultiscaleVQConfig:
    """Sizes of a multi-scale VQ tokenizer.

    `patch_nums`: tokens along each side, scale by scale; the last is the size of the latent map.
    `channel_multipliers`: one entry per resolution, finest first.
    """

    patch_nums: tuple[int, ...] = SCALES_256
    channels: int = 160
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    codebook_size: int = 4096
    codebook_dim: int = 32

    def __post_init__(self) -> None:
        check_patch_nums(self.patch_nums)

    @property
    def downsampling(self) -> int:
        """Pixels per token of the last scale, along each side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @staticmethod
    def infer(tensors: Mapping[str, Tensor], *, patch_nums: Sequence[int] | None = None) -> MultiscaleVQConfig:
        """Read the sizes off a published state_dict, which serves any patch_nums.

        Raises:
            ValueError: the tensors are no multi-scale tokenizer, or `patch_nums` is not given.
        """
        try:
            channels = tensors["encoder.conv_in.weight"].shape[0]
            levels = count_modules(tensors, "encoder.down.{}.block.0.conv1.weight")
            codebook_size, codebook_dim = tensors["quantize.embedding.weight"].shape
            multipliers = tuple(
                tensors[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] // channels for level in range(levels)
            )
            tensors["quantize.quant_resi.qresi_ls.0.weight"]
        except KeyError as error:
            raise ValueError(
                f"this is not VAR's multi-scale tokenizer: it has no tensor {error}; its first tensors are {list(tensors)[:4]}"
            ) from error
        if patch_nums is None:
            raise ValueError(
                f"VAR's tokenizer file does not say its scales; pass patch_nums={SCALES_256} for 256 px, {SCALES_512} for 512 px"
            )
        return MultiscaleVQConfig(
            patch_nums=tuple(int(side) for side in patch_nums),
            channels=channels,
            channel_multipliers=multipliers,
            num_res_blocks=count_modules(tensors, "encoder.down.0.block.{}.conv1.weight"),
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
        )


def check_patch_nums(patch_nums: tuple[int, ...]) -> None:
    """Raises ValueError unless there are at least two scales that grow."""
    if len(patch_nums) < 2 or patch_nums[0] < 1 or any(a >= b for a, b in pairwise(patch_nums)):
        raise ValueError(
            f"patch_nums is {patch_nums}; it must be two or more growing side lengths, such as {SCALES_256}"
        )


class MultiscaleVQTokenizer(nn.Module):
    """Images float [B, 3, H, W] in [-1, 1] to tokens int64 [B, L], all scales one after the other, and back."""

    def __init__(self, config: MultiscaleVQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quantize = _Quantizer(config)
        self.quant_conv = nn.Conv2d(config.codebook_dim, config.codebook_dim, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.codebook_dim, 3, padding=1)

    def latents(self, images_BCHW: Tensor) -> Tensor:
        """float [B, codebook_dim, p, p], p being the last scale's side: what the scales approximate."""
        return self.quant_conv(self.encoder(images_BCHW))

    def encode(self, images_BCHW: Tensor) -> Tensor:
        steps = self.quantize.residual_steps(self.latents(images_BCHW))
        return torch.cat([tokens_Bn for tokens_Bn, _ in steps], dim=1)

    def decode(self, tokens_BL: Tensor) -> Tensor:
        """float [B, 3, H, W], about [-1, 1] and not clamped."""
        return self._decode_codes(self.quantize.embedding(tokens_BL))

    def decode_soft(self, weights_BLV: Tensor) -> Tensor:
        """`decode` of mixtures of codes, differentiable: convex weights over the codebook for every token."""
        return self._decode_codes(weights_BLV.float() @ self.quantize.embedding.weight)

    def _decode_codes(self, codes_BLD: Tensor) -> Tensor:
        *_, f_hat = self.quantize.partial_sums(codes_BLD)
        return self.decode_latents(f_hat)

    def decode_latents(self, f_hat_BDpp: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(f_hat_BDpp))

    def next_inputs(self, tokens_BL: Tensor) -> Tensor:
        """float [B, L - p_1^2, codebook_dim]: what a network reads when it predicts the second scale and all after it,
        given the tokens before. The last scale's tokens do not matter."""
        sides = self.config.patch_nums
        sums = self.quantize.partial_sums(self.quantize.embedding(tokens_BL))
        return torch.cat([shrink(f_hat, side) for f_hat, side in zip(sums, sides[1:], strict=False)], dim=1)

    def add_scale(self, f_hat_BDpp: Tensor | None, tokens_Bn: Tensor, scale: int) -> Tensor:
        """f_hat with one scale more; None is the empty one."""
        step = self.quantize.contribution(self.quantize.embedding(tokens_Bn), scale)
        return step if f_hat_BDpp is None else f_hat_BDpp + step

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """Codebook vectors, float [B, L, codebook_dim]."""
        return self.quantize.embedding(tokens_BL)

    def encode_images(self, images_BHWC: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] to tokens [B, L], a few images at a time, without gradient."""
        pixels = images_BHWC.to(self.quant_conv.weight.device).permute(0, 3, 1, 2)
        with torch.no_grad():
            return torch.cat([self.encode(part.float() / 255 * 2 - 1) for part in pixels.split(PIXEL_CHUNK)])

    def decode_images(self, tokens_BL: Tensor) -> Tensor:
        """Tokens to uint8 [B, H, W, 3], a few images at a time, without gradient.

        Truncated, not rounded, as images are when the authors' sampler saves them; FIDs depend on it.
        """
        return self._images(self.decode, tokens_BL)

    def decode_first_scales(self, tokens_Bl: Tensor) -> Tensor:
        """The same of the tokens of the first scales alone, whole ones: f_hat as far as it has come, blurred images.

        Raises:
            ValueError: tokens that end within a scale.
        """
        return self._images(self._decode_first_scales, tokens_Bl)

    def _decode_first_scales(self, tokens_Bl: Tensor) -> Tensor:
        ends = list(accumulate(side * side for side in self.config.patch_nums))
        if tokens_Bl.shape[1] not in ends:
            raise ValueError(f"got {tokens_Bl.shape[1]} tokens an image; whole scales end at {ends}")
        f_hat = None
        for scale, (start, end) in enumerate(pairwise([0, *ends[: ends.index(tokens_Bl.shape[1]) + 1]])):
            f_hat = self.add_scale(f_hat, tokens_Bl[:, start:end], scale)
        assert f_hat is not None
        return self.decode_latents(f_hat)

    def _images(self, decode: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        chunks = tokens.to(self.quant_conv.weight.device).split(PIXEL_CHUNK)
        with torch.no_grad():
            pixels = torch.cat([decode(part) for part in chunks])
        return ((pixels.clamp(-1, 1) + 1) * 0.5 * 255).to(torch.uint8).permute(0, 2, 3, 1)


def shrink(f_hat_BDpp: Tensor, side: int) -> Tensor:
    """float [B, side^2, D]: a latent map averaged down to a scale, in row-major order."""
    return F.interpolate(f_hat_BDpp, size=(side, side), mode="area").flatten(2).transpose(1, 2)


class _Quantizer(nn.Module):
    def __init__(self, config: MultiscaleVQConfig) -> None:
        super().__init__()
        self.patch_nums = config.patch_nums
        # usage statistics of the authors' training; kept so that exported files stay complete
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(config.patch_nums), config.codebook_size))
        self.quant_resi = _Phis(config.codebook_dim)
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)

    def contribution(self, codes_BnD: Tensor, scale: int) -> Tensor:
        """float [B, D, p, p]: what a scale's codes add to f_hat."""
        side, full = self.patch_nums[scale], self.patch_nums[-1]
        h = codes_BnD.transpose(1, 2).unflatten(2, (side, side))
        if side != full:
            h = F.interpolate(h, size=(full, full), mode="bicubic")
        return self.quant_resi(h, scale / (len(self.patch_nums) - 1))

    def partial_sums(self, codes_BLD: Tensor) -> Iterator[Tensor]:
        """f_hat after the first scale, the second, ..."""
        blocks = codes_BLD.split([side * side for side in self.patch_nums], dim=1)
        f_hat = self.contribution(blocks[0], 0)
        yield f_hat
        for scale, block in enumerate(blocks[1:], start=1):
            f_hat = f_hat + self.contribution(block, scale)
            yield f_hat

    def residual_steps(self, latents_BDpp: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each scale's tokens [B, p_k^2] and contribution to f_hat, chosen greedily.

        The contributions carry gradient to the codebook and to phi, and none to the latents.
        """
        rest = latents_BDpp.detach()
        for scale, side in enumerate(self.patch_nums):
            tokens_Bn = self.nearest(shrink(rest, side))
            step = self.contribution(self.embedding(tokens_Bn), scale)
            rest = rest - step.detach()
            yield tokens_Bn, step

    def nearest(self, latents_BnD: Tensor) -> Tensor:
        """int64 [B, n]: the code at the smallest Euclidean distance."""
        codes = self.embedding.weight.detach()
        squares = latents_BnD.square().sum(-1, keepdim=True) + codes.square().sum(-1)
        return (squares - 2 * latents_BnD @ codes.T).argmin(dim=-1)


class _Phis(nn.Module):
    """The convolutions after enlarging. Fewer than the scales, each serves those nearest to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(NUM_PHI))

    def forward(self, h: Tensor, progress: float) -> Tensor:
        # float64 as in the authors' code: with ten scales two of them lie exactly between two convolutions
        ticks = np.linspace(1 / 3 / NUM_PHI, 1 - 1 / 3 / NUM_PHI, NUM_PHI)
        phi = self.qresi_ls[int(np.argmin(np.abs(ticks - progress)))]
        return (1 - PHI_RATIO) * h + PHI_RATIO * phi(h)


class _Attention(nn.Module):
    """Single-head self-attention over the positions, with one projection for query, key and value."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).view_as(x))


class _Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.attn_1 = _Attention(channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Level(nn.Module):
    """One resolution: residual blocks, with attention after each at the coarsest, then an optional change of size."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, attention: bool) -> None:
        super().__init__()
        widths = [in_channels, *[out_channels] * blocks]
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(_Attention(out_channels) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for resize in ("downsample", "upsample"):
            if hasattr(self, resize):
                x = getattr(self, resize)(x)
        return x


class _Encoder(nn.Module):
    def __init__(self, config: MultiscaleVQConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for before, width in zip([config.channels, *widths], widths, strict=False):
            last = len(self.down) == len(widths) - 1
            level = _Level(before, width, config.num_res_blocks, attention=last)
            if not last:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = _Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.codebook_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class _Decoder(nn.Module):
    def __init__(self, config: MultiscaleVQConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        self.conv_in = nn.Conv2d(config.codebook_dim, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1])
        # index 0 is the finest resolution, which comes last; one residual block more per level than the encoder
        self.up = nn.ModuleList()
        for before, width in zip([*widths[1:], widths[-1]], widths, strict=True):
            level = _Level(before, width, config.num_res_blocks + 1, attention=len(self.up) == len(widths) - 1)
            if len(self.up):
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
