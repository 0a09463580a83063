"""LlamaGen's VQ tokenizer (VQ-16, VQ-8 and any smaller size): a convolutional autoencoder around a unit-norm codebook.

Architecture and tensor names are those of the published files (Sun et al. 2024, "Autoregressive Model Beats Diffusion",
arXiv 2406.06525), so that one state_dict serves their code and ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.tokenizers.blocks import PIXEL_CHUNK, Downsample, ResBlock, Upsample, count_modules, norm


@dataclass(frozen=True)
class VQConfig:
    """Sizes of a VQ tokenizer. `channel_multipliers` has one entry per resolution, finest first."""

    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 256
    codebook_size: int = 16384
    codebook_dim: int = 8

    @property
    def downsampling(self) -> int:
        """Pixels per token along each side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @staticmethod
    def infer(tensors: Mapping[str, Tensor]) -> VQConfig:
        """Read the sizes off a published state_dict.

        Raises:
            ValueError: the tensors are no LlamaGen VQ tokenizer.
        """
        try:
            channels = tensors["encoder.conv_in.weight"].shape[0]
            levels = count_modules(tensors, "encoder.conv_blocks.{}.res.0.conv1.weight")
            multipliers = tuple(
                tensors[f"encoder.conv_blocks.{level}.res.0.conv1.weight"].shape[0] // channels
                for level in range(levels)
            )
            codebook_size, codebook_dim = tensors["quantize.embedding.weight"].shape
            return VQConfig(
                channels=channels,
                channel_multipliers=multipliers,
                num_res_blocks=count_modules(tensors, "encoder.conv_blocks.0.res.{}.conv1.weight"),
                z_channels=tensors["encoder.conv_out.weight"].shape[0],
                codebook_size=codebook_size,
                codebook_dim=codebook_dim,
            )
        except KeyError as error:
            raise ValueError(
                f"this is not a LlamaGen VQ tokenizer: it has no tensor {error}; its first tensors are {list(tensors)[:4]}"
            ) from error


class VQTokenizer(nn.Module):
    """Images float [B, 3, H, W] in [-1, 1] to tokens int64 [B, H/d * W/d] in row-major order, and back."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quantize = _Quantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    def latents(self, images_BCHW: Tensor) -> Tensor:
        """float [B, codebook_dim, h, w]: what the quantiser sees, before normalisation."""
        return self.quant_conv(self.encoder(images_BCHW))

    def encode(self, images_BCHW: Tensor) -> Tensor:
        return self.quantize.nearest(self.latents(images_BCHW)).flatten(1)

    def decode(self, tokens_BL: Tensor, grid: tuple[int, int]) -> Tensor:
        """float [B, 3, H, W], about [-1, 1] and not clamped."""
        return self._decode_codes(self.quantize.lookup(tokens_BL), grid)

    def decode_soft(self, weights_BLV: Tensor, grid: tuple[int, int]) -> Tensor:
        """`decode` of mixtures of codes, differentiable: convex weights over the (unit-norm) codebook for every token."""
        return self._decode_codes(weights_BLV.float() @ self.quantize.codes, grid)

    def _decode_codes(self, codes_BLD: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.decode_latents(codes_BLD.transpose(1, 2).unflatten(2, grid))

    def embed(self, tokens_BL: Tensor) -> Tensor:
        """Unit-norm codebook vectors, float [B, L, codebook_dim]."""
        return self.quantize.lookup(tokens_BL)

    def encode_images(self, images_BHWC: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] to tokens [B, L], a few images at a time, without gradient."""
        pixels = images_BHWC.to(self.quant_conv.weight.device).permute(0, 3, 1, 2)
        with torch.no_grad():
            return torch.cat([self.encode((part.float() / 255 - 0.5) / 0.5) for part in pixels.split(PIXEL_CHUNK)])

    def decode_images(self, tokens_BL: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens to uint8 [B, H, W, 3], a few images at a time, without gradient.

        Truncation after +128 is the authors' sampler's rounding; FIDs depend on it.
        """
        chunks = tokens_BL.to(self.quant_conv.weight.device).split(PIXEL_CHUNK)
        with torch.no_grad():
            pixels = torch.cat([self.decode(part, grid) for part in chunks])
        return (127.5 * pixels + 128.0).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def decode_latents(self, codes_BChw: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(codes_BChw))


class _Quantizer(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        # usage statistics of the authors' training; kept so that exported files stay complete
        self.register_buffer("codebook_used", torch.zeros(65536))

    @property
    def codes(self) -> Tensor:
        """Unit-norm codebook [V, D]; the rows in the file need not be."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, latents_BDhw: Tensor) -> Tensor:
        """int64 [B, h, w]. Between unit vectors the smallest distance is the largest cosine."""
        unit = F.normalize(latents_BDhw.movedim(1, -1), dim=-1)
        return (unit @ self.codes.T).argmax(dim=-1)

    def lookup(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.codes)


class _Attention(nn.Module):
    """Single-head self-attention over the positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).view_as(x))


class _Level(nn.Module):
    """One resolution: residual blocks, with attention after each at the coarsest, then an optional change of size."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, attention: bool, resize: nn.Module | None
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(blocks))
        self.attn = nn.ModuleList(_Attention(out_channels) for _ in range(blocks if attention else 0))
        if isinstance(resize, Downsample):
            self.downsample = resize
        elif isinstance(resize, Upsample):
            self.upsample = resize

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        if hasattr(self, "downsample"):
            return self.downsample(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


def _middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(channels, channels), _Attention(channels), ResBlock(channels, channels)])


class _Encoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            _Level(
                widths[level - 1] if level else config.channels,
                width,
                config.num_res_blocks,
                attention=level == last,
                resize=Downsample(width) if level < last else None,
            )
            for level, width in enumerate(widths)
        )
        self.mid = _middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.conv_blocks:
            h = level(h)
        for layer in self.mid:
            h = layer(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class _Decoder(nn.Module):
    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in reversed(config.channel_multipliers)]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = _middle(widths[0])
        # index 0 is the coarsest resolution; the decoder has one residual block more per level than the encoder
        self.conv_blocks = nn.ModuleList(
            _Level(
                widths[max(level - 1, 0)],
                width,
                config.num_res_blocks + 1,
                attention=level == 0,
                resize=Upsample(width) if level < last else None,
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for layer in self.mid:
            h = layer(h)
        for level in self.conv_blocks:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
