"""The loop that one writes first: eager, one token or scale at a time, keys and values concatenated to the ones before,
and both branches always, whatever the guidance. It reads the published weights, and knows none of our tricks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from align.generators import VAR, Janus, LlamaGen
from align.generators.published import PublishedGenerator
from align.sampling import block_scales, guide, top_k_filter
from align.tokenizers.multiscale_vq import shrink
from align.types import Condition, SamplingConfig

# (raw logits [rows, n, V]) of each block in turn; the null branch's rows come after the conditional ones
Watch = Callable[[Tensor], None]


def plain_loop(generator: PublishedGenerator[Any]) -> Callable[[Condition, SamplingConfig, Watch | None], Tensor]:
    """Draws int64 [B, L] from the generator's weights."""
    loops: dict[str, Callable[..., Tensor]] = {"llamagen": _llamagen, "var": _var, "janus": _janus}
    weights = generator.published_state()

    @torch.no_grad()
    def draw(condition: Condition, sampling: SamplingConfig, watch: Watch | None = None) -> Tensor:
        return loops[generator.family](generator, weights, condition, sampling, watch)

    return draw


def _choose(logits: Tensor, sampling: SamplingConfig, scale: float, watch: Watch | None) -> Tensor:
    """Tokens [B, n] of both branches' logits [2B, n, V]."""
    if watch is not None:
        watch(logits)
    cond, null = logits.chunk(2)
    guided = guide(cond, null, scale)
    if sampling.temperature == 0:
        return guided.argmax(dim=-1)
    probabilities = top_k_filter(guided / sampling.temperature, sampling.top_k).softmax(dim=-1)
    return torch.multinomial(probabilities.flatten(0, 1), 1).view(guided.shape[:2])


def _attend(q: Tensor, k: Tensor, v: Tensor, kept: list[Tensor], scale: float | None = None) -> Tensor:
    """Of [B, heads, n, D] over all before and themselves; `kept` holds keys and values, and grows."""
    if kept:
        k, v = torch.cat([kept[0], k], dim=2), torch.cat([kept[1], v], dim=2)
    kept[:] = [k, v]
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def _llamagen(
    generator: LlamaGen, w: dict[str, Tensor], condition: Condition, sampling: SamplingConfig, watch: Watch | None
) -> Tensor:
    heads, layers = generator.sizes.num_heads, range(generator.sizes.num_layers)
    labels = condition.tensors["label"]
    both = torch.cat([labels, torch.full_like(labels, generator.sizes.num_classes)])
    x = w["cls_embedding.embedding_table.weight"][both].unsqueeze(1)
    kept: list[list[Tensor]] = [[] for _ in layers]
    table, tokens = generator.rope(), []

    def norm(x: Tensor, name: str) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * w[name]

    def rotate(x: Tensor, place: int) -> Tensor:
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = table[place].unbind(-1)
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)

    for place in range(generator.layout.length):
        for index in layers:
            layer = f"layers.{index}"
            h = norm(x, f"{layer}.attention_norm.weight")
            q, k, v = (
                part.unflatten(-1, (heads, -1)).transpose(1, 2)
                for part in F.linear(h, w[f"{layer}.attention.wqkv.weight"]).chunk(3, dim=-1)
            )
            h = _attend(rotate(q, place), rotate(k, place), v, kept[index])
            x = x + F.linear(h, w[f"{layer}.attention.wo.weight"])
            h = norm(x, f"{layer}.ffn_norm.weight")
            gate = F.silu(F.linear(h, w[f"{layer}.feed_forward.w1.weight"]))
            h = gate * F.linear(h, w[f"{layer}.feed_forward.w3.weight"])
            x = x + F.linear(h, w[f"{layer}.feed_forward.w2.weight"])
        logits = F.linear(norm(x, "norm.weight"), w["output.weight"]).float()
        tokens.append(_choose(logits, sampling, sampling.guidance_scale, watch))
        x = w["tok_embeddings.weight"][tokens[-1].repeat(2, 1)]
    return torch.cat(tokens, dim=1)


def _var(
    generator: VAR, w: dict[str, Tensor], condition: Condition, sampling: SamplingConfig, watch: Watch | None
) -> Tensor:
    sizes, tokenizer = generator.sizes, generator.require_tokenizer()
    labels = condition.tensors["label"]
    class_BC = w["class_emb.weight"][torch.cat([labels, torch.full_like(labels, sizes.num_classes)])]
    positions = w["lvl_embed.weight"][w["lvl_1L"]] + w["pos_1LC"]
    kept: list[list[Tensor]] = [[] for _ in range(sizes.num_layers)]
    tokens, f_hat = [], None

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift

    scales = block_scales(sampling, len(sizes.patch_nums))
    x = class_BC.unsqueeze(1) + w["pos_start"]
    for scale_index, (start, end) in enumerate(generator.layout.spans()):
        x = x + positions[:, start:end]
        for index in range(sizes.num_layers):
            block = f"blocks.{index}"
            if sizes.shared_adaln:
                parts = w[f"{block}.ada_gss"] + linear(F.silu(class_BC), "shared_ada_lin.1").unflatten(-1, (1, 6, -1))
            else:
                parts = linear(F.silu(class_BC), f"{block}.ada_lin.1").unflatten(-1, (1, 6, -1))
            gamma1, gamma2, scale1, scale2, shift1, shift2 = parts.unbind(2)
            bias = torch.cat([w[f"{block}.attn.{name}"] for name in ("q_bias", "zero_k_bias", "v_bias")])
            qkv = F.linear(norm(x, scale1, shift1), w[f"{block}.attn.mat_qkv.weight"], bias)
            q, k, v = qkv.unflatten(-1, (3, sizes.num_heads, -1)).permute(2, 0, 3, 1, 4)
            factor = 0.25 / math.sqrt(q.shape[-1])
            if sizes.l2_norm:
                limit = w[f"{block}.attn.scale_mul_1H11"].clamp_max(math.log(100)).exp()
                q, k, factor = (F.normalize(q, dim=-1) * limit).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype), 1.0
            x = x + linear(_attend(q, k, v, kept[index], factor), f"{block}.attn.proj") * gamma1
            hidden = F.gelu(linear(norm(x, scale2, shift2), f"{block}.ffn.fc1"), approximate="tanh")
            x = x + linear(hidden, f"{block}.ffn.fc2") * gamma2
        scale, shift = linear(F.silu(class_BC), "head_nm.ada_lin.1").unflatten(-1, (1, 2, -1)).unbind(2)
        logits = linear(norm(x.float(), scale, shift).to(x.dtype), "head").float()
        tokens.append(_choose(logits, sampling, scales[scale_index], watch))
        if end < generator.layout.length:
            f_hat = tokenizer.add_scale(f_hat, tokens[-1], scale_index)
            inputs = shrink(f_hat, sizes.patch_nums[scale_index + 1]).to(x.dtype)
            x = linear(inputs, "word_embed").repeat(2, 1, 1)
    return torch.cat(tokens, dim=1)


def _janus(
    generator: Janus, w: dict[str, Tensor], condition: Condition, sampling: SamplingConfig, watch: Watch | None
) -> Tensor:
    """transformers' own language model with its growing cache, as in the loop that Janus' authors show."""
    from transformers import DynamicCache

    model = generator.model
    both = Condition.cat([condition, generator.null_condition(condition)])
    mask = both.tensors["mask"]
    x, cache, tokens = model.language_model.embed_tokens(both.tensors["ids"]), DynamicCache(), []
    for _ in range(generator.layout.length):
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -x.shape[1] :]
        found = model.language_model(
            inputs_embeds=x,
            attention_mask=mask.long(),
            position_ids=places,
            use_cache=True,
            **{model.cache_argument: cache},
        )
        logits = model.generation_head(found.last_hidden_state)[:, -1:].float()
        tokens.append(_choose(logits, sampling, sampling.guidance_scale, watch))
        x = model.generation_aligner(model.generation_embeddings(tokens[-1].repeat(2, 1)))
        mask = F.pad(mask, (0, 1), value=True)
    return torch.cat(tokens, dim=1)
