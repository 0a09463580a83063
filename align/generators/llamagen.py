"""LlamaGen's GPT (Sun et al. 2024, arXiv 2406.06525), at any size, in its published file format.

A Llama-like decoder over [condition, token 0, ..., token L-2] whose last L outputs predict the L tokens of an image in
raster order. Two things are easy to get wrong: the rotary table is all zeros (not the identity) at the condition's
positions, so that a condition token is attended to uniformly; and position T + t, after T condition tokens, carries the
angles of grid cell t while it predicts token t + 1. What is here serves both kinds of condition; `LlamaGen` is the
class-conditional one, with T = 1, and `llamagen_t2i` has the captions.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.generators.base import TokenLayout
from align.generators.decode import MAX_ROWS, DecodeStep, StepSizes, missing
from align.generators.deferred import DeferredLogits
from align.generators.labels import ClassConditional
from align.generators.published import PublishedGenerator, describe
from align.generators.recompute import run_block
from align.tokenizers import VQTokenizer
from align.types import Condition

# the published sizes by model width: name, layers, and heads, which shapes cannot tell
PUBLISHED = {768: ("B", 12, 12), 1024: ("L", 24, 16), 1280: ("XL", 36, 20), 1536: ("XXL", 48, 24), 3200: ("3B", 24, 32)}
ROPE_BASE = 10000.0
# of a layer, in the order that the kernel takes them
KERNEL_WEIGHTS = (
    *("attention_norm", "attention.wqkv", "attention.wo"),
    *("ffn_norm", "feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
)


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
    engines = ("graphs", "compile", "native")
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

    def static_step(self, tokens_B1: Tensor, cache: LlamaGenCache, cell_1: Tensor, length: int) -> Tensor:
        mask = (torch.arange(length, device=cell_1.device) <= cell_1)[None]
        if cache.visible_BS is not None:
            mask = (mask & cache.visible_BS[:, :length])[:, None, None]
        return self._advance(self.tok_embeddings(tokens_B1), cache, mask, cell_1, length)

    def _kernel_step(self, x_BC: Tensor, cache: LlamaGenCache) -> Tensor:
        assert cache.kernel is not None
        cache.position += 1
        return cache.kernel(x_BC.float().contiguous(), cache.position - 1)

    def _has_kernel(self, cache: LlamaGenCache) -> bool:
        """Whether the CPU's own step serves this cache; bound to it if so.

        Raises:
            ValueError: engine=native, and it does not.
        """
        if cache.kernel is not None:
            return True
        problem = self._no_kernel(cache)
        if problem is None:
            state = self.state_dict(keep_vars=True)
            names = [f"{name}.weight" for name in KERNEL_WEIGHTS]
            layers = [[*(state[f"layers.{i}.{name}"] for name in names), kv] for i, kv in enumerate(cache.layers)]
            cache.kernel = DecodeStep(
                *(self._step_sizes(cache), layers, state["norm.weight"], state["output.weight"], self.rope()),
                cache.visible_BS,
            )
        elif self.engine == "native":
            raise ValueError(f"engine=native cannot be used: {problem}. Use engine=auto, or engine=eager")
        return cache.kernel is not None

    def _no_kernel(self, cache: LlamaGenCache) -> str | None:
        weight, sizes = self.output.weight, self._step_sizes(cache)
        if weight.device.type != "cpu" or self.engine not in ("auto", "native"):
            return f"it is for the CPU, and this generator is on {weight.device}"
        if not sizes.supported():
            return f"it is for up to {MAX_ROWS} rows and heads of 16 to 128 in steps of 16, and these are {sizes}"
        if self.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return "it is for sampling alone, without dropout, gradients or autocast"
        parts = [part for part in (*self.layers.modules(), self.norm, self.output) if not list(part.children())]
        plain = all(type(part) in (nn.Linear, nn.Dropout, _RMSNorm) for part in parts)
        if not plain or any(weight.dtype != parameter.dtype for parameter in self.layers.parameters()):
            return "its layers are not plain ones of one dtype (adapters are on?)"
        if weight.dtype not in (torch.float32, torch.bfloat16):
            return f"it is for float32 and bfloat16, and the weights are {weight.dtype}"
        return missing()

    def _step_sizes(self, cache: LlamaGenCache) -> StepSizes:
        sizes, rows, capacity = self.sizes, cache.layers[0].shape[1], cache.layers[0].shape[3]
        return StepSizes(
            *(sizes.num_layers, rows, sizes.dim, sizes.num_heads, sizes.hidden_dim, self.vocab_size, capacity)
        )

    def _append(self, x: Tensor, cache: LlamaGenCache, mask: Tensor | None) -> Tensor:
        start, cache.position = cache.position, cache.position + x.shape[1]
        return self._advance(x, cache, mask, slice(start, cache.position), cache.position)

    def _advance(
        self, x: Tensor, cache: LlamaGenCache, mask: Tensor | None, cells: slice | Tensor, length: int
    ) -> Tensor:
        """Logits after x [B, n, C], which goes to these cells of the cache and sees its first `length`."""
        rope = self.rope()[cells]
        for layer, kv in zip(self.layers, cache.layers, strict=True):
            run = self.fused(layer) if isinstance(cells, Tensor) else layer
            x = run(x, rope, mask, kv[:, :, :, :length], cells)
        return self._logits(x[:, -1:])

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
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).type_as(x) * self.weight


def _rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the interleaved pairs of x [B, L, heads, head_dim] by rope [L, head_dim/2, 2], in float32."""
    # as complex numbers: the same bits as by their parts, in one pass over memory instead of eight
    turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * torch.view_as_complex(rope)[:, None]
    return torch.view_as_real(turned).flatten(-2).type_as(x)


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
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in self.wqkv(x).chunk(3, dim=-1))
        q, k, v = _rotate(q, rope).transpose(1, 2), _rotate(k, rope).transpose(1, 2), v.transpose(1, 2)
        if kv is not None:
            kv[0, :, :, cells], kv[1, :, :, cells] = k, v
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
