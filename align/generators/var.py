"""VAR (Tian et al. 2024, arXiv 2404.02905), at any size, in its published file format.

A transformer that draws an image scale by scale: all tokens of a scale at once, given every smaller scale. It reads no
token embeddings of its own but the tokenizer's f_hat so far, shrunk to the scale that comes next; so it needs the
tokenizer even to score tokens. What is easy to get wrong: the norms have no affine parameters, the key has no bias,
and the logits' adaptive norm sees the class embedding itself, also where the blocks share one modulation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.generators.base import TokenLayout
from align.generators.deferred import DeferredLogits
from align.generators.labels import ClassConditional
from align.generators.next_scale import AdaptiveNorm, DropPath, FeedForward, modulate
from align.generators.published import describe
from align.generators.recompute import run_block
from align.tokenizers import MultiscaleVQTokenizer
from align.tokenizers.multiscale_vq import SCALES_256, SCALES_512, check_patch_nums, shrink
from align.types import Condition

# patch_nums of the published files by their number of tokens
PUBLISHED_SCALES = {680: SCALES_256, 2240: SCALES_512}
MAX_LOG_SCALE = math.log(100)


@dataclass(frozen=True)
class VARConfig:
    """Sizes of a VAR. `patch_nums`: tokens along each side, scale by scale; `num_classes` leaves out the null class.

    l2_norm: queries and keys are unit vectors with a learnt scale per head (all published files).
    shared_adaln: one modulation layer for all blocks (the 512 px model) instead of one each.
    dropout, drop_path: in train mode only; on the outputs of attention and feed-forward, and on whole branches, growing
        with depth up to `drop_path` (pretraining used none, and 0.1 depth / 24).
    """

    dim: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    vocab_size: int
    codebook_dim: int
    num_classes: int
    patch_nums: tuple[int, ...]
    l2_norm: bool = True
    shared_adaln: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_patch_nums(self.patch_nums)
        if self.dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide dim={self.dim}")

    @property
    def size_name(self) -> str | None:
        """Published sizes are 64 wide for each layer, with as many heads as layers."""
        published = self.num_layers in (16, 20, 24, 30, 36) and self.num_heads == self.num_layers
        return f"d{self.num_layers}" if published and self.dim == 64 * self.num_layers else None

    @staticmethod
    def infer(
        tensors: Mapping[str, Tensor],
        *,
        patch_nums: Sequence[int] | None = None,
        num_heads: int | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> VARConfig:
        """Read the sizes off a published state_dict.

        `patch_nums` are told by the level of every token, which files carry; else by the table of published sizes, else
        by the keyword. `num_heads` is asked for only without l2-normalised attention and at an unpublished width.

        Raises:
            ValueError: another family's file, or a keyword that is needed and not given, or contradicts the file.
        """
        try:
            vocab_size, dim = tensors["head.weight"].shape
            length = tensors["pos_1LC"].shape[1]
            num_rows = tensors["class_emb.weight"].shape[0]
            codebook_dim = tensors["word_embed.weight"].shape[1]
            hidden_dim = tensors["blocks.0.ffn.fc1.weight"].shape[0]
            levels = tensors["lvl_1L"]
        except KeyError as error:
            raise ValueError(f"this is not a VAR generator: it has no tensor {error}; {describe(tensors)}") from error
        num_layers = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
        scale = tensors.get("blocks.0.attn.scale_mul_1H11")
        return VARConfig(
            dim=dim,
            num_layers=num_layers,
            num_heads=_num_heads(dim, num_layers, None if scale is None else scale.shape[1], num_heads),
            hidden_dim=hidden_dim,
            vocab_size=vocab_size,
            codebook_dim=codebook_dim,
            num_classes=num_rows - 1,
            patch_nums=_patch_nums(levels, length, patch_nums),
            l2_norm=scale is not None,
            shared_adaln="blocks.0.ada_gss" in tensors,
            dropout=dropout,
            drop_path=drop_path,
        )


def _num_heads(dim: int, num_layers: int, told: int | None, given: int | None) -> int:
    if told is not None and given not in (None, told):
        raise ValueError(f"num_heads={given}, but the file has {told} heads")
    if told is None and given is None and dim != 64 * num_layers:
        raise ValueError("a VAR without l2-normalised attention does not tell its heads; pass num_heads=")
    return told or given or num_layers  # published models have as many heads as layers


def _patch_nums(levels: Tensor, length: int, given: Sequence[int] | None) -> tuple[int, ...]:
    told: tuple[int, ...] | None = PUBLISHED_SCALES.get(length)
    if levels.device.type != "meta":
        sides = [math.isqrt(count) for count in torch.bincount(levels.flatten()).tolist()]
        if len(sides) > 1 and sum(side * side for side in sides) == length:
            told = tuple(sides)
    if given is None and told is None:
        raise ValueError(f"this VAR has {length} tokens and does not tell their scales; pass patch_nums=(1, 2, ...)")
    patch_nums = told if given is None else tuple(int(side) for side in given)
    assert patch_nums is not None
    if sum(side * side for side in patch_nums) != length or told not in (None, patch_nums):
        raise ValueError(f"patch_nums={patch_nums} does not fit this file of {length} tokens, scales {told}")
    return patch_nums


@dataclass
class _BlockCache:
    """kv: a block's keys and values [2, B, heads, L, head_dim], preallocated.
    modulation: [B, 1, 6, C] from the first scale on. It depends on the class alone, and takes a third of the weights."""

    kv: Tensor
    modulation: Tensor | None = None


@dataclass
class VARCache:
    """What every block keeps, with keys and values of the first `position` tokens; and what the next scale is computed
    from."""

    blocks: list[_BlockCache]
    position: int = 0
    scale: int = 0
    class_BC: Tensor | None = None
    f_hat: Tensor | None = None


class VAR(ClassConditional[MultiscaleVQTokenizer]):
    family = "var"
    engines = ("graphs",)
    block_class = "_Block"
    undecayed = ("pos_start", "pos_1LC", "lvl_embed", "ada_gss", "scale_mul")
    lvl_1L: Tensor
    attn_bias_for_masking: Tensor

    def __init__(self, config: VARConfig, tokenizer: MultiscaleVQTokenizer | None = None) -> None:
        super().__init__(tokenizer)
        self.sizes = config  # not `config`: transformers.Trainer takes an attribute of that name for its own kind
        self.vocab_size = config.vocab_size
        self.size_name = config.size_name
        self.num_classes = config.num_classes
        self.layout = TokenLayout(tuple(side * side for side in config.patch_nums))
        length, first = self.layout.length, self.layout.block_sizes[0]
        self.pos_start = nn.Parameter(torch.zeros(1, first, config.dim))
        self.pos_1LC = nn.Parameter(torch.zeros(1, length, config.dim))
        # by numpy: comparing tensors on the meta device, where files are loaded, would import torch's compiler
        levels = np.repeat(np.arange(len(config.patch_nums)), self.layout.block_sizes)
        hidden = levels[:, None] < levels  # a token sees its own scale and the smaller ones
        mask = np.where(hidden, np.float32(-np.inf), np.float32(0))
        self.register_buffer("lvl_1L", torch.from_numpy(levels[None]))
        self.register_buffer("attn_bias_for_masking", torch.from_numpy(mask).view(1, 1, length, length))
        self.word_embed = nn.Linear(config.codebook_dim, config.dim)
        self.class_emb = nn.Embedding(config.num_classes + 1, config.dim)
        self.lvl_embed = nn.Embedding(len(config.patch_nums), config.dim)
        if config.shared_adaln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))
        last = max(config.num_layers - 1, 1)
        self.blocks = nn.ModuleList(_Block(config, config.drop_path * i / last) for i in range(config.num_layers))
        self.head_nm = AdaptiveNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size)

    def initialize(self, generator: torch.Generator) -> None:
        """VAR's initialisation for pretraining: truncated normals of variance 1/(3 dim); residual branches that start
        closed (gamma near 0), modulations at half size, and a small output layer."""
        dim, depth = self.sizes.dim, self.sizes.num_layers
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("scale_mul_1H11"):
                    parameter.fill_(math.log(4))
                elif name.endswith("ada_gss"):
                    parameter.normal_(std=dim**-0.5, generator=generator)
                elif parameter.dim() >= 2:
                    nn.init.trunc_normal_(parameter, std=(3 * dim) ** -0.5, generator=generator)
                else:
                    parameter.zero_()
                if name.endswith(("attn.proj.weight", "ffn.fc2.weight")):
                    parameter.div_(math.sqrt(2 * depth))
                elif name.startswith("blocks.") and name.endswith(("ada_gss", "ada_lin.1.weight")):
                    gamma, rest = parameter.view(6, dim, -1).split([2, 4])
                    gamma.mul_(1e-5)
                    rest.mul_(0.5)
                elif name == "head_nm.ada_lin.1.weight":
                    parameter.mul_(0.5)
                elif name == "head.weight":
                    parameter.mul_(0.02)

    # --- teacher forcing

    def teacher_force(self, inputs_BL: Tensor, condition: Condition) -> DeferredLogits:
        tokenizer = self._reader()
        # the tokenizer runs in full precision, as when it made the tokens
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            inputs = tokenizer.next_inputs(inputs_BL)
        class_BC = self.with_beta(self.class_emb(condition.tensors["label"]), condition)
        x = torch.cat([class_BC.unsqueeze(1) + self.pos_start, self._embed(inputs)], dim=1) + self._positions()
        modulation = self._modulation(class_BC)
        for block in self.blocks:
            x = run_block(self.gradient_checkpointing, block, x, modulation, self.attn_bias_for_masking)
        return DeferredLogits(x, partial(self._logits, class_BC=class_BC), self.vocab_size)

    @property
    def condition_width(self) -> int:
        return self.sizes.dim

    def _reader(self) -> MultiscaleVQTokenizer:
        return self.require_tokenizer(", which a VAR reads every scale through, also to score tokens")

    def _embed(self, inputs_BnD: Tensor) -> Tensor:
        return self.word_embed(inputs_BnD.to(self.word_embed.weight.dtype))

    def _positions(self) -> Tensor:
        return self.lvl_embed(self.lvl_1L) + self.pos_1LC

    def _modulation(self, class_BC: Tensor) -> Tensor:
        """What the blocks are modulated by: [B, 1, 6, C] if they share it, else the class embedding [B, C]."""
        if self.sizes.shared_adaln:
            return self.shared_ada_lin(class_BC).unflatten(-1, (1, 6, -1))
        return class_BC

    def _logits(self, x: Tensor, class_BC: Tensor) -> Tensor:
        return self.head(self.head_nm(x.float(), class_BC).to(self.head.weight.dtype)).float()

    # --- sampling

    def new_cache(self, rows: int) -> VARCache:
        heads, width = self.sizes.num_heads, self.sizes.dim // self.sizes.num_heads
        weight = self.head.weight
        return VARCache([_BlockCache(weight.new_empty(2, rows, heads, self.layout.length, width)) for _ in self.blocks])

    def start(self, condition: Condition, cache: VARCache) -> Tensor:
        cache.class_BC = self.with_beta(self.class_emb(condition.tensors["label"]), condition)
        return self._advance(cache.class_BC.unsqueeze(1) + self.pos_start, cache)

    def step(self, tokens_Bn: Tensor, cache: VARCache) -> Tensor:
        tokenizer = self._reader()
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            cache.f_hat = tokenizer.add_scale(cache.f_hat, tokens_Bn, cache.scale)
            cache.scale += 1
            inputs = shrink(cache.f_hat, self.sizes.patch_nums[cache.scale])
        return self._advance(self._embed(inputs), cache)

    def _advance(self, x: Tensor, cache: VARCache) -> Tensor:
        assert cache.class_BC is not None
        end = cache.position + x.shape[1]
        x = x + self._positions()[:, cache.position : end]
        modulation = self._modulation(cache.class_BC) if cache.position == 0 else None
        for block, kept in zip(self.blocks, cache.blocks, strict=True):
            x = block(x, modulation, None, kept, cache.position)
        cache.position = end
        return self._logits(x, cache.class_BC)

    def select_rows(self, cache: VARCache, rows_B: Tensor) -> None:
        assert cache.class_BC is not None
        for kept in cache.blocks:
            kept.kv = kept.kv[:, rows_B]
            kept.modulation = None if kept.modulation is None else kept.modulation[rows_B]
        cache.class_BC = cache.class_BC[rows_B]
        cache.f_hat = None if cache.f_hat is None else cache.f_hat[rows_B]

    # --- pixels

    @property
    def image_size(self) -> tuple[int, int]:
        side = self.sizes.patch_nums[-1] * self.require_tokenizer().config.downsampling
        return side, side

    def decode(self, tokens_BL: Tensor) -> Tensor:
        return self.require_tokenizer().decode_images(tokens_BL)

    def decode_first_blocks(self, tokens_Bl: Tensor) -> Tensor:
        return self.require_tokenizer().decode_first_scales(tokens_Bl)

    def decode_soft(self, weights_BLV: Tensor) -> Tensor:
        return self.require_tokenizer().decode_soft(weights_BLV)


class _Attention(nn.Module):
    zero_k_bias: Tensor

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        if config.l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, config.num_heads, 1, 1), math.log(4)))
        self.q_bias = nn.Parameter(torch.zeros(config.dim))
        self.v_bias = nn.Parameter(torch.zeros(config.dim))
        self.register_buffer("zero_k_bias", torch.zeros(config.dim))
        self.mat_qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.proj = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, kv: Tensor | None, position: int) -> Tensor:
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        qkv = (self.mat_qkv(x) + bias).unflatten(-1, (3, self.num_heads, -1))  # called, for adapters to take part
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scale = 0.25 / math.sqrt(q.shape[-1])
        if hasattr(self, "scale_mul_1H11"):
            q = q * (self.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp() / _norms(q))
            q, k, scale = q.to(v.dtype), (k / _norms(k)).to(v.dtype), 1.0
        if kv is not None:
            end = position + x.shape[1]
            kv[0, :, :, position:end], kv[1, :, :, position:end] = k, v
            k, v = kv[0, :, :, :end], kv[1, :, :, :end]
        bias_mask = None if mask is None else mask.to(q.dtype)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_mask, scale=scale)
        return self.dropout(self.proj(h.transpose(1, 2).flatten(2)))


class _Block(nn.Module):
    def __init__(self, config: VARConfig, drop_path: float) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)
        if config.shared_adaln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, config.dim))
        self.attn = _Attention(config)
        self.ffn = FeedForward(config.dim, config.hidden_dim, config.dropout)
        if not config.shared_adaln:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(config.dim, 6 * config.dim))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor | None,
        mask: Tensor | None,
        kept: _BlockCache | None = None,
        position: int = 0,
    ) -> Tensor:
        """`modulation` is None where `kept` has the block's own already."""
        if modulation is None:
            assert kept is not None and kept.modulation is not None
            parts = kept.modulation
        elif hasattr(self, "ada_gss"):
            parts = self.ada_gss + modulation
        else:
            parts = self.ada_lin(modulation).unflatten(-1, (1, 6, -1))
        if kept is not None:
            kept.modulation = parts
        gamma1, gamma2, scale1, scale2, shift1, shift2 = parts.unbind(2)
        kv = None if kept is None else kept.kv
        x = torch.addcmul(x, self.drop_path(self.attn(modulate(x, scale1, shift1), mask, kv, position)), gamma1)
        return torch.addcmul(x, self.drop_path(self.ffn(modulate(x, scale2, shift2))), gamma2)


def _norms(x: Tensor) -> Tensor:
    """Of the vectors along the last dimension, never 0."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
