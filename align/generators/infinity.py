"""Infinity (Han et al. 2024, arXiv 2412.04431), at any size, in its published file format.

A next-scale transformer that draws an image as bits: all positions of a scale at once, and at each of them the d bits of
its code, each with a probability of its own. A token here is one bit, so that an image's log-prob is the sum over its
bits. Like a VAR it reads no token embeddings but the tokenizer's f_hat so far, so it needs the tokenizer even to score.

Captions are read twice: attention sums their features up for the first position and for the modulation of all norms, and
every block attends to them. Padding is never attended to: a caption is the features that it has. The null caption is a
learnt sequence of features, as many of them as the caption has itself. What is easy to get wrong: rotary positions are
those of the whole schedule's last scale, whatever is drawn; queries are scaled before they are rotated; and the next
scale is f_hat interpolated, where encoding averages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.generators.base import TokenLayout
from align.generators.captions import CaptionConditional, CaptionFeatures, null_beta
from align.generators.deferred import DeferredLogits
from align.generators.infinity_sizes import InfinityConfig, Scales
from align.generators.next_scale import NORM_EPS, AdaptiveNorm, DropPath, FeedForward, normalize
from align.generators.recompute import run_block
from align.tokenizers import BSQTokenizer
from align.types import Condition

MAX_LOG_SCALE = math.log(100)
ROPE_BASE = 10000.0


@dataclass
class _Caption:
    """What the network reads of captions: features [B, T, C] with their mask [B, T], their sum [B, C], and the modulation
    [B, 1, 6, C] that follows from it."""

    features_BTC: Tensor
    mask_BT: Tensor
    sum_BC: Tensor
    modulation: Tensor

    def rows(self, rows_B: Tensor) -> _Caption:
        return _Caption(self.features_BTC[rows_B], self.mask_BT[rows_B], self.sum_BC[rows_B], self.modulation[rows_B])


@dataclass
class InfinityCache:
    """Keys and values of every block, preallocated: [2, B, heads, N, head_dim] for the N positions of all scales but the
    last, which is read by none after it, filled up to `position`; and what the next scale is computed from."""

    blocks: list[Tensor]
    position: int = 0
    scale: int = 0
    caption: _Caption | None = None
    f_hat: Tensor | None = None


class Infinity(CaptionConditional[BSQTokenizer]):
    """Its conditions hold {"caption": float [B, T, D], "mask": bool [B, T], "null": bool [B]}: rows that are null are read
    as the null caption, with as many features as the mask has."""

    family = "infinity"
    block_class = "_Block"
    clean_captions = False
    undecayed = ("cfg_uncond", "pos_start", "lvl_embed", "ada_gss", "scale_mul", "text_proj_for_sos.ca.mat_q")

    def __init__(self, config: InfinityConfig, tokenizer: BSQTokenizer | None = None) -> None:
        super().__init__(tokenizer)
        self.sizes = config  # not `config`: transformers.Trainer takes an attribute of that name for its own kind
        self.vocab_size = config.vocab_size
        self.size_name = config.size_name
        self.layout = TokenLayout(tuple(height * width * config.codebook_dim for height, width in config.scales))
        ends = [end // config.codebook_dim for _, end in self.layout.spans()]
        self._spans = list(zip([0, *ends], ends, strict=False))  # of each scale's positions
        self._rope: Tensor | None = None
        dim = config.dim
        self.cfg_uncond = nn.Parameter(torch.zeros(config.text_tokens, config.text_dim))
        self.pos_start = nn.Parameter(torch.zeros(1, 1, dim))
        self.text_norm = _RMSNorm(config.text_dim)
        self.text_proj_for_sos = _Pool(config)
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.lvl_embed = nn.Embedding(config.levels, dim)
        self.word_embed = nn.Linear(config.codebook_dim, dim)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.head_nm = AdaptiveNorm(dim)
        self.head = nn.Linear(dim, 2 * config.codebook_dim)
        in_a_chunk, last = config.num_layers // config.chunks, max(config.num_layers - 1, 1)
        blocks = [_Block(config, config.drop_path * i / last) for i in range(config.num_layers)]
        self.block_chunks = nn.ModuleList(
            _Chunk(blocks[start : start + in_a_chunk]) for start in range(0, config.num_layers, in_a_chunk)
        )

    @property
    def blocks(self) -> list[_Block]:
        return [block for chunk in self.block_chunks if isinstance(chunk, _Chunk) for block in chunk]

    # --- conditions

    @property
    def caption_shape(self) -> tuple[int, int]:
        return self.sizes.text_tokens, self.sizes.text_dim

    def encode_condition(self, raw: Sequence[str] | CaptionFeatures) -> Condition:
        """Captions, or the features of captions as a text encoder gives them. Padding that no row needs is left out.

        Raises:
            ValueError: captions but no text encoder, features of another width than the model's, or a caption of none
                or too many.
        """
        features, mask = self.read_captions(raw)
        if features.shape[-1] != self.sizes.text_dim:
            raise ValueError(
                f"caption features are {features.shape[-1]} wide, and this generator reads {self.sizes.text_dim}: another text encoder"
            )
        counts = mask.sum(dim=1)
        if len(mask) and not 1 <= counts.min() <= counts.max() <= self.sizes.text_tokens:
            raise ValueError(
                f"captions have {counts.min()} to {counts.max()} features; this generator reads 1 to {self.sizes.text_tokens}. Give the text encoder max_length={self.sizes.text_tokens}"
            )
        used = mask.any(dim=0)
        tensors = {
            "caption": features[:, used],
            "mask": mask[:, used],
            "null": torch.zeros(len(features), dtype=torch.bool, device=self.device),
        }
        return Condition(tensors | self.beta_tensors(len(features)))

    def null_condition(self, like: Condition) -> Condition:
        # a mark, not features: these are weights, which every copy of the network trains for itself
        return Condition({**like.tensors, "null": torch.ones_like(like.tensors["null"])} | null_beta(like))

    @property
    def condition_width(self) -> int:
        return self.sizes.dim

    @contextmanager
    def _full_precision(self) -> Iterator[None]:
        """As the authors have it in training: autocast is for the blocks alone."""
        with torch.autocast(self.device.type, enabled=False):
            yield

    def _read(self, condition: Condition) -> _Caption:
        caption, mask = condition.tensors["caption"].to(self.cfg_uncond.dtype), condition.tensors["mask"]
        null = self.cfg_uncond[(mask.cumsum(dim=1) - 1).clamp_min(0)]
        features = self.text_norm(torch.where(condition.tensors["null"].view(-1, 1, 1), null, caption))
        sum_BC = self.with_beta(self.text_proj_for_sos(features, mask), condition)
        modulation = self.shared_ada_lin(sum_BC).unflatten(-1, (1, 6, -1))
        return _Caption(self.text_proj_for_ca(features), mask, sum_BC, modulation)

    # --- teacher forcing

    def teacher_force(self, inputs_BL: Tensor, condition: Condition) -> DeferredLogits:
        tokenizer = self._reader()
        with self._full_precision():
            with torch.no_grad():
                inputs = tokenizer.next_inputs(inputs_BL)
            caption = self._read(condition)
            x = torch.cat([self._start(caption), self._embed(inputs)], dim=1)
            sizes = torch.tensor([end - start for start, end in self._spans], device=self.device)
            x = x + self.lvl_embed.weight[: len(sizes)].repeat_interleave(sizes, dim=0)
        rope = self.rope()
        for block in self.blocks:
            x = run_block(self.gradient_checkpointing, block, x, caption, rope, self._spans)
        return DeferredLogits(x, partial(self._logits, caption=caption), self.vocab_size, self.sizes.codebook_dim)

    def _reader(self) -> BSQTokenizer:
        return self.require_tokenizer(", which an Infinity reads every scale through, also to score tokens")

    def _start(self, caption: _Caption) -> Tensor:
        return caption.sum_BC.unsqueeze(1) + self.pos_start

    def _embed(self, inputs_BnD: Tensor) -> Tensor:
        return self.word_embed(inputs_BnD.to(self.word_embed.weight.dtype))

    def _logits(self, x: Tensor, caption: _Caption) -> Tensor:
        """float32 [B, n d, 2]: the bits of a position one after the other."""
        with self._full_precision():
            h = self.head_nm(x.float(), caption.sum_BC).to(self.head.weight.dtype)
            return self.head(h).float().unflatten(-1, (-1, 2)).flatten(1, 2)

    def rope(self) -> Tensor:
        """Rotary table [N, head_dim/2, 2] of (cos, sin) for the N positions of all scales."""
        if self._rope is None or self._rope.device != self.device:
            table = rotary_table(self.sizes.schedule, self.sizes.dim // self.sizes.num_heads)
            self._rope = table[: self._spans[-1][1]].to(self.device)
        return self._rope

    # --- sampling

    def new_cache(self, rows: int) -> InfinityCache:
        heads, width = self.sizes.num_heads, self.sizes.dim // self.sizes.num_heads
        weight, positions = self.head.weight, self._spans[-1][0]
        return InfinityCache([weight.new_empty(2, rows, heads, positions, width) for _ in self.blocks])

    def start(self, condition: Condition, cache: InfinityCache) -> Tensor:
        with self._full_precision():
            cache.caption = self._read(condition)
            x = self._start(cache.caption)
        return self._advance(x, cache)

    def step(self, tokens_Bn: Tensor, cache: InfinityCache) -> Tensor:
        tokenizer = self._reader()
        with self._full_precision():
            with torch.no_grad():
                cache.f_hat = tokenizer.add_scale(cache.f_hat, tokens_Bn, cache.scale)
                cache.scale += 1
                inputs = tokenizer.next_input(cache.f_hat, cache.scale)
            x = self._embed(inputs)
        return self._advance(x, cache)

    def _advance(self, x: Tensor, cache: InfinityCache) -> Tensor:
        assert cache.caption is not None
        span = (cache.position, cache.position + x.shape[1])
        x = x + self.lvl_embed.weight[cache.scale]
        rope = self.rope()[slice(*span)]
        for block, kv in zip(self.blocks, cache.blocks, strict=True):
            x = block(x, cache.caption, rope, [span], kv)
        cache.position = span[1]
        return self._logits(x, cache.caption)

    def select_rows(self, cache: InfinityCache, rows_B: Tensor) -> None:
        assert cache.caption is not None
        for block, kv in enumerate(cache.blocks):  # one after another: 1.7 GB a row of 2B, 1024 px, bfloat16, in all
            cache.blocks[block] = kv[:, rows_B]
        cache.caption = cache.caption.rows(rows_B)
        cache.f_hat = None if cache.f_hat is None else cache.f_hat[rows_B]

    # --- pixels

    @property
    def image_size(self) -> tuple[int, int]:
        height, width = self.sizes.scales[-1]
        pixels = self.require_tokenizer().config.downsampling
        return height * pixels, width * pixels

    def decode(self, tokens_BL: Tensor) -> Tensor:
        return self.require_tokenizer().decode_images(tokens_BL)

    def decode_first_blocks(self, tokens_Bl: Tensor) -> Tensor:
        return self.require_tokenizer().decode_first_scales(tokens_Bl)

    def decode_soft(self, weights_BLV: Tensor) -> Tensor:
        return self.require_tokenizer().decode_soft(weights_BLV)


def rotary_table(schedule: Scales, head_dim: int) -> Tensor:
    """float32 [N, head_dim/2, 2] of (cos, sin) for all positions of a schedule, scale after scale.

    A scale's rows and columns stand at the nearest ones of the last scale's grid, spread evenly from its first. Half of
    the pairs turn with the row, half with the column.
    """
    rows, columns = schedule[-1]
    half = head_dim // 2
    frequencies = 1.0 / ROPE_BASE ** (torch.arange(0, half, 2).float() / half)
    tables = []
    for height, width in schedule:
        # in float32: where a row lies midway between two of the grid, its rounding decides
        row = (torch.arange(height) * (rows / height)).round().repeat_interleave(width)
        column = (torch.arange(width) * (columns / width)).round().repeat(height)
        angles = torch.cat([torch.outer(row, frequencies), torch.outer(column, frequencies)], dim=-1)
        tables.append(torch.stack([angles.cos(), angles.sin()], dim=-1))
    return torch.cat(tables)


def _rotate(x_BHnc: Tensor, rope: Tensor) -> Tensor:
    """Turn the pairs (x[2m], x[2m + 1]) by their angles, in float32."""
    a, b = x_BHnc.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class _RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS) * self.weight).to(x.dtype)


class _SelfAttention(nn.Module):
    zero_k_bias: Tensor

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.num_heads = heads = config.num_heads
        shape = (1, 1, heads, 1) if config.heads_last else (1, heads, 1, 1)
        self.scale_mul_1H11 = nn.Parameter(torch.full(shape, math.log(4)))
        self.q_bias = nn.Parameter(torch.zeros(config.dim))
        self.v_bias = nn.Parameter(torch.zeros(config.dim))
        self.register_buffer("zero_k_bias", torch.zeros(config.dim))
        self.mat_qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.proj = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rope: Tensor, spans: Sequence[tuple[int, int]], kv: Tensor | None) -> Tensor:
        qkv = self.mat_qkv(x) + torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scale = self.scale_mul_1H11.view(1, -1, 1, 1).clamp_max(MAX_LOG_SCALE).exp()
        q = _rotate(F.normalize(q, dim=-1) * scale, rope).to(v.dtype)
        k = _rotate(F.normalize(k, dim=-1), rope).to(v.dtype)
        first, last = spans[0][0], spans[-1][1]
        if kv is not None and last <= kv.shape[3]:
            kv[0, :, :, first:last], kv[1, :, :, first:last] = k, v
            k, v = kv
        elif kv is not None:
            k, v = torch.cat([kv[0], k], dim=2), torch.cat([kv[1], v], dim=2)
        # a scale sees itself and those before it, a prefix: so no mask is needed, for which kernels would be slower
        parts = [
            F.scaled_dot_product_attention(
                q[:, :, start - first : end - first], k[:, :, :end], v[:, :, :end], scale=1.0
            )
            for start, end in spans
        ]
        return self.dropout(self.proj(torch.cat(parts, dim=2).transpose(1, 2).flatten(2)))


class _CrossAttention(nn.Module):
    """Attention to a caption's features; of positions, or of one learnt query that sums the caption up."""

    zero_k_bias: Tensor

    def __init__(self, dim: int, text_dim: int, num_heads: int, *, pools: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.mat_q: nn.Parameter | nn.Linear
        self.mat_q = nn.Parameter(torch.zeros(1, num_heads, dim // num_heads)) if pools else nn.Linear(dim, dim)
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("zero_k_bias", torch.zeros(dim))
        self.mat_kv = nn.Linear(text_dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor | None, text_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        kv = self.mat_kv(text_BTC) + torch.cat([self.zero_k_bias, self.v_bias])
        k, v = kv.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if isinstance(self.mat_q, nn.Parameter):
            q = self.mat_q.unsqueeze(2).expand(len(text_BTC), -1, -1, -1)
        else:
            q = self.mat_q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        h = F.scaled_dot_product_attention(q.to(v.dtype), k, v, attn_mask=mask_BT[:, None, None])
        return self.dropout(self.proj(h.transpose(1, 2).flatten(2)))


class _Pool(nn.Module):
    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.ca = _CrossAttention(config.dim, config.text_dim, config.pool_heads, pools=True)

    def forward(self, text_BTC: Tensor, mask_BT: Tensor) -> Tensor:
        return self.ca(None, text_BTC, mask_BT).squeeze(1)


class _Block(nn.Module):
    def __init__(self, config: InfinityConfig, drop_path: float) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, config.dim))
        self.sa = _SelfAttention(config)
        self.ca = _CrossAttention(config.dim, config.dim, config.num_heads, dropout=config.dropout)
        self.ffn = FeedForward(config.dim, config.hidden_dim, config.dropout)
        self.ca_norm = nn.LayerNorm(config.dim, eps=NORM_EPS)

    def forward(
        self,
        x: Tensor,
        caption: _Caption,
        rope: Tensor,
        spans: Sequence[tuple[int, int]],
        kv: Tensor | None = None,
    ) -> Tensor:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (self.ada_gss + caption.modulation).unbind(2)
        x = x + self.drop_path(self.sa(normalize(x) * (1 + scale1) + shift1, rope, spans, kv) * gamma1)
        x = x + self.ca(self.ca_norm(x), caption.features_BTC, caption.mask_BT)
        return x + self.drop_path(self.ffn(normalize(x) * (1 + scale2) + shift2) * gamma2)


class _Chunk(nn.Module):
    """Blocks as the authors group them: a level in the tensors' names."""

    def __init__(self, blocks: Sequence[_Block]) -> None:
        super().__init__()
        self.module = nn.ModuleList(blocks)

    def __iter__(self) -> Iterator[_Block]:
        return iter(self.module)  # type: ignore[arg-type]
