"""LlamaGen's GPT (Sun et al. 2024, arXiv 2406.06525), at any size, in its published file format.

A Llama-like decoder over [condition, token 0, ..., token L-2] whose last L outputs predict the L tokens of an image in
raster order. Two things are easy to get wrong: the rotary table is all zeros (not the identity) at the condition's
positions, so that a condition token is attended to uniformly; and position T + t, after T condition tokens, carries the
angles of grid cell t while it predicts token t + 1. What is here serves both kinds of condition; `LlamaGen` is the
class-conditional one, with T = 1, and `llamagen_t2i` has the captions.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.generators.base import TokenLayout
from align.generators.cells import seen_from, store
from align.generators.decode import DecodeStep, StepSizes, StepWeights, bind
from align.generators.deferred import DeferredLogits
from align.generators.labels import ClassConditional
from align.generators.llamagen_config import LlamaGenConfig
from align.generators.published import PublishedGenerator
from align.generators.recompute import run_block
from align.tokenizers import VQTokenizer
from align.types import Condition

ROPE_BASE = 10000.0
EPSILON = 1e-5  # of the norms


@dataclass
class LlamaGenCache:
    """Keys and values of every layer, preallocated: [2, B, heads, T + L - 1, head_dim] each, filled up to `position`,
    zeros beyond (a NaN would show through a mask); visible_BS: which positions may be attended to (None: all)."""

    layers: list[Tensor]
    position: int = 0
    visible_BS: Tensor | None = None
    kernel: DecodeStep | None = None


class LlamaGenDecoder(PublishedGenerator[VQTokenizer]):
    """Everything but the condition's embedding `cls_embedding`, which comes first among the file's tensors."""

    wrapper = "model"
    engines = ("graphs", "native", "jacobi")
    block_class = "_Block"

    def __init__(self, config: LlamaGenConfig, cls_embedding: nn.Module, tokenizer: VQTokenizer | None = None) -> None:
        super().__init__(tokenizer)
        self.sizes = config  # not `config`: transformers.Trainer takes an attribute of that name for its own kind
        self.vocab_size = config.vocab_size
        self.size_name = config.size_name
        self.layout = TokenLayout((1,) * (config.grid[0] * config.grid[1]))
        self.cls_embedding = cls_embedding
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = _RMSNorm(config.dim)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self._rope: Tensor | None = None

    def initialize(self, generator: torch.Generator) -> None:
        """LlamaGen's initialisation for pretraining: normal(0, 0.02), and zeros for the output layer."""
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(
                    parameter, std=0.02, generator=generator
                ) if name != "output.weight" else nn.init.zeros_(parameter)

    @abstractmethod
    def prefix(self, condition: Condition) -> tuple[Tensor, Tensor | None]:
        """The condition's tokens [B, T, C], and which of them may be attended to, bool [B, T] (None: all)."""

    # --- teacher forcing

    def teacher_force(self, inputs_BL: Tensor, condition: Condition) -> DeferredLogits:
        prefix, visible_BT = self.prefix(condition)
        x = self.dropout(torch.cat([prefix, self.tok_embeddings(inputs_BL[:, :-1])], dim=1))
        rope, mask = self.rope(), None
        if visible_BT is not None:
            length = x.shape[1]
            causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            mask = (causal & _visible(visible_BT, length)[:, None]) | torch.eye(
                length, dtype=torch.bool, device=x.device
            )
            mask = mask[:, None]
        for layer in self.layers:
            x = run_block(self.gradient_checkpointing, layer, x, rope, mask)
        return DeferredLogits(x[:, prefix.shape[1] - 1 :], self._logits, self.vocab_size)

    def _logits(self, x: Tensor) -> Tensor:
        return self.output(self.norm(x)).float()

    @property
    def condition_width(self) -> int:
        return self.sizes.dim

    def rope(self) -> Tensor:
        """Rotary table [T + L - 1, head_dim/2, 2] of (cos, sin): zeros for the T condition tokens, then cells 0..L-2.

        Computed when needed rather than stored as a buffer, so that loading on the meta device cannot lose it.
        """
        if self._rope is None or self._rope.device != self.device:
            rows, columns = self.sizes.grid
            half = self.sizes.dim // self.sizes.num_heads // 2
            frequencies = 1.0 / ROPE_BASE ** (torch.arange(0, half, 2, device=self.device)[: half // 2].float() / half)
            row = torch.arange(rows, device=self.device).float().repeat_interleave(columns)
            column = torch.arange(columns, device=self.device).float().repeat(rows)
            angles = torch.cat([torch.outer(row, frequencies), torch.outer(column, frequencies)], dim=-1)
            table = torch.stack([angles.cos(), angles.sin()], dim=-1)
            self._rope = torch.cat([table.new_zeros(self.sizes.condition_tokens, *table.shape[1:]), table[:-1]])
        return self._rope

    # --- sampling

    def new_cache(self, rows: int) -> LlamaGenCache:
        heads, width = self.sizes.num_heads, self.sizes.dim // self.sizes.num_heads
        length = self.sizes.condition_tokens + self.layout.length - 1
        weight = self.tok_embeddings.weight
        return LlamaGenCache([weight.new_zeros(2, rows, heads, length, width) for _ in self.layers])

    def start(self, condition: Condition, cache: LlamaGenCache) -> Tensor:
        prefix, visible_BT = self.prefix(condition)
        length = prefix.shape[1]
        if length == 1 and visible_BT is None and self._has_kernel(cache):
            return self._kernel_step(prefix[:, 0], cache)
        if visible_BT is not None:
            cache.visible_BS = _visible(visible_BT, length + self.layout.length - 1)
        mask = torch.ones(length, length, dtype=torch.bool, device=prefix.device).tril()
        if cache.visible_BS is not None:
            eye = torch.eye(length, dtype=torch.bool, device=prefix.device)
            mask = ((mask & cache.visible_BS[:, None, :length]) | eye)[:, None]
        return self._append(prefix, cache, mask)

    def step(self, tokens_Bn: Tensor, cache: LlamaGenCache) -> Tensor:
        if self._has_kernel(cache):
            return self._kernel_step(self.tok_embeddings(tokens_Bn[:, 0]), cache)
        visible_BS = cache.visible_BS
        mask = None if visible_BS is None else visible_BS[:, None, None, : cache.position + tokens_Bn.shape[1]]
        return self._append(self.tok_embeddings(tokens_Bn), cache, mask)

    def static_step(self, tokens_Bn: Tensor, cache: LlamaGenCache, cells_Bn: Tensor, length: int) -> Tensor:
        mask = seen_from(cells_Bn, length)
        if cache.visible_BS is not None:
            mask = mask & cache.visible_BS[:, None, None, :length]
        return self._advance(self.tok_embeddings(tokens_Bn), cache, mask, cells_Bn, length)

    def _kernel_step(self, x_BC: Tensor, cache: LlamaGenCache) -> Tensor:
        assert cache.kernel is not None
        cache.position += 1
        return cache.kernel(x_BC, cache.position - 1, self.rope()[cache.position - 1])

    def _has_kernel(self, cache: LlamaGenCache) -> bool:
        """Whether the CPU's own step serves this cache, which is bound to it then."""
        if cache.kernel is None:
            config, (_, rows, _, capacity, _) = self.sizes, cache.layers[0].shape
            sizes = StepSizes(
                *(config.num_layers, rows, config.dim, config.num_heads, config.hidden_dim, self.vocab_size, capacity),
                halves=False,
            )
            modules = (*self.layers, self.norm, self.output)
            cache.kernel = bind(self, sizes, modules, lambda: self._step_weights(cache), cache.visible_BS)
        return cache.kernel is not None

    def _step_weights(self, cache: LlamaGenCache) -> StepWeights:
        layers, blocks = [], list[Any](self.layers)
        for block, kv in zip(blocks, cache.layers, strict=True):
            attention, ffn = block.attention, block.feed_forward
            layers.append(
                [
                    *(block.attention_norm.weight, *attention.wqkv.weight.chunk(3), attention.wo.weight),
                    *(block.ffn_norm.weight, ffn.w1.weight, ffn.w3.weight, ffn.w2.weight, kv),
                ]
            )
        return StepWeights(layers, self.norm.weight, self.output.weight, EPSILON)

    def _append(self, x: Tensor, cache: LlamaGenCache, mask: Tensor | None) -> Tensor:
        start, cache.position = cache.position, cache.position + x.shape[1]
        return self._advance(x, cache, mask, slice(start, cache.position), cache.position)

    def _advance(
        self, x: Tensor, cache: LlamaGenCache, mask: Tensor | None, cells: slice | Tensor, length: int
    ) -> Tensor:
        """Logits after x [B, n, C], which goes to these cells of the cache and sees its first `length`: after all of x
        where a tensor tells the cells, and after the last otherwise."""
        rope = self.rope()[cells]
        for layer, kv in zip(self.layers, cache.layers, strict=True):
            x = layer(x, rope, mask, kv[:, :, :, :length], cells)
        return self._logits(x if isinstance(cells, Tensor) else x[:, -1:])

    def select_rows(self, cache: LlamaGenCache, rows_B: Tensor) -> None:
        for layer, kv in enumerate(cache.layers):
            cache.layers[layer] = kv[:, rows_B]
        cache.kernel = None
        cache.visible_BS = None if cache.visible_BS is None else cache.visible_BS[rows_B]

    def first_rows(self, cache: LlamaGenCache, rows: int) -> LlamaGenCache:
        visible_BS = None if cache.visible_BS is None else cache.visible_BS[:rows]
        return LlamaGenCache([kv[:, :rows] for kv in cache.layers], cache.position, visible_BS)

    # --- pixels

    @property
    def image_size(self) -> tuple[int, int]:
        side = self.require_tokenizer().config.downsampling
        return self.sizes.grid[0] * side, self.sizes.grid[1] * side

    def decode(self, tokens_BL: Tensor) -> Tensor:
        return self.require_tokenizer().decode_images(tokens_BL, self.sizes.grid)

    def decode_soft(self, weights_BLV: Tensor) -> Tensor:
        return self.require_tokenizer().decode_soft(weights_BLV, self.sizes.grid)


def _visible(visible_BT: Tensor, length: int) -> Tensor:
    """bool [B, length]: the condition's own, then all image tokens."""
    return F.pad(visible_BT, (0, length - visible_BT.shape[1]), value=True)


class LlamaGen(ClassConditional[VQTokenizer], LlamaGenDecoder):
    """The class-conditional one."""

    family = "llamagen"

    def __init__(self, config: LlamaGenConfig, tokenizer: VQTokenizer | None = None) -> None:
        super().__init__(config, _LabelEmbedding(config.num_classes + 1, config.dim), tokenizer)
        self.num_classes = config.num_classes

    def prefix(self, condition: Condition) -> tuple[Tensor, None]:
        embedded = self.cls_embedding(condition.tensors["label"])
        return self.with_beta(embedded, condition).unsqueeze(1), None


class _LabelEmbedding(nn.Module):
    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, dim)

    def forward(self, labels_B: Tensor) -> Tensor:
        return self.embedding_table(labels_B)


class _RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:  # one kernel instead of seven; a bfloat16 result is rounded once instead of twice
            return F.rms_norm(x, self.weight.shape, self.weight, EPSILON)
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)).type_as(x) * self.weight


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the interleaved pairs of x [B, L, heads, head_dim] by rope [L or B, L, head_dim/2, 2], in float32."""
    pairs = x.float().unflatten(-1, (-1, 2))
    cos, sin = rope[..., None, :, 0], rope[..., None, :, 1]
    even, odd = pairs[..., 0], pairs[..., 1]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).type_as(x)


class _Attention(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rope: Tensor, mask: Tensor | None, kv: Tensor | None, cells: slice | Tensor | None
    ) -> Tensor:
        projected = self.wqkv(x).unflatten(-1, (3 * self.num_heads, -1))
        qk, v = projected[:, :, : 2 * self.num_heads], projected[:, :, 2 * self.num_heads :].transpose(1, 2)
        q, k = _rotate(qk, rope).transpose(1, 2).chunk(2, dim=1)
        if kv is not None and cells is not None:
            store(kv, cells, k, v)
            k, v = kv[0], kv[1]
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and kv is None)
        return self.dropout(self.wo(h.transpose(1, 2).flatten(2)))


class _FeedForward(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class _Block(nn.Module):
    def __init__(self, config: LlamaGenConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.feed_forward = _FeedForward(config)
        self.attention_norm = _RMSNorm(config.dim)
        self.ffn_norm = _RMSNorm(config.dim)

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        mask: Tensor | None = None,
        kv: Tensor | None = None,
        cells: slice | Tensor | None = None,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope, mask, kv, cells)
        return x + self.feed_forward(self.ffn_norm(x))
