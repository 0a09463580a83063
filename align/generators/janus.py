"""Janus-Pro (Chen et al. 2025, arXiv 2501.17811) as a generator of images: a Llama that reads a prompt, then image tokens.

The language model is transformers' own. Image tokens come in through an embedding of their codes and a small network,
and go out through a head of their own; the last prompt token, <begin_of_image>, predicts the first of them. Prompts of
different lengths are left-padded: nothing attends to padding, and positions count what is not padding, so that it
changes nothing. The null condition is the prompt with every token but its first and last one replaced by the pad token,
and these are attended to: they are no padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.generators.base import TokenLayout
from align.generators.captions import null_beta
from align.generators.cells import seen_from, store
from align.generators.decode import DecodeStep, StepSizes, StepWeights, bind
from align.generators.deferred import DeferredLogits
from align.generators.janus_config import JanusConfig
from align.generators.janus_keys import published_name
from align.generators.janus_prompts import PromptTokenizer
from align.generators.published import PublishedGenerator
from align.generators.recompute import run_block
from align.text.features import prepare_captions
from align.tokenizers import VQTokenizer
from align.tokenizers.blocks import PIXEL_CHUNK
from align.types import Condition


class Janus(PublishedGenerator[VQTokenizer]):
    """Its conditions hold {"ids": int64 [B, T], "mask": bool [B, T]}; ids are 0 where the mask is False."""

    family = "janus"
    engines = ("graphs", "native", "jacobi")
    block_class = "LlamaDecoderLayer"
    prompt_tokenizer: PromptTokenizer | None = None

    def __init__(self, config: JanusConfig, tokenizer: VQTokenizer | None = None) -> None:
        super().__init__(tokenizer)
        self.sizes = config  # not `config`: transformers.Trainer takes an attribute of that name for its own kind
        self.size_name = config.size_name
        self.vocab_size = config.vocab_size
        self.layout = TokenLayout((1,) * (config.grid[0] * config.grid[1]))
        self.model = _Model(config)

    def attach_prompts(self, tokenizer: PromptTokenizer | None) -> None:
        """Give it a text tokenizer, which is no part of the module; its pad token is what the null condition consists of,
        unless the sizes tell another one."""
        self.prompt_tokenizer = tokenizer

    def companions(self) -> list[Any]:
        return [*super().companions(), *([] if self.prompt_tokenizer is None else [self.prompt_tokenizer])]

    # --- conditions

    def encode_condition(self, raw: Sequence[str] | Mapping[str, Tensor]) -> Condition:
        """Prompts, or their ids with what belongs to the image prompt around them, as {"ids": [B, T], "mask": [B, T]}.

        Raises:
            ValueError: prompts but no text tokenizer, one that is too long, or ids that are no left-padded prompts.
        """
        ids, mask = self._checked(raw) if isinstance(raw, Mapping) else self._read(raw)
        tensors = {"ids": ids.masked_fill(~mask, 0).to(self.device), "mask": mask.to(self.device)}
        return Condition(tensors | self.beta_tensors(len(ids)))

    def _read(self, raw: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokenizer = self.prompt_tokenizer
        if isinstance(raw, (str, Tensor)):
            raise ValueError(f"prompts must be a list of texts, got {raw!r:.80}")
        prompts = prepare_captions(raw, clean=False)
        if tokenizer is None:
            raise ValueError(
                "this generator was loaded without a text tokenizer: there is no tokenizer.json beside its weights. Load "
                'the whole published folder, or pass ids as {"ids": [B, T], "mask": [B, T]}'
            )
        rows = tokenizer.encode(prompts)
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > self.sizes.max_prompt_tokens:
                raise ValueError(
                    f"a prompt is {len(row)} tokens long; this model reads up to {self.sizes.max_prompt_tokens} before the "
                    f"{self.layout.length} of an image. Shorten it. It begins {prompt[:60]!r}"
                )
        length = max(map(len, rows))
        ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
        filled = torch.tensor([len(row) for row in rows]).unsqueeze(1)
        return ids, torch.arange(length) >= length - filled

    def _checked(self, raw: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if raw.keys() != {"ids", "mask"}:
            raise ValueError(f"prompts are a list of texts, or ids with their mask; got a mapping with {sorted(raw)}")
        ids, mask = raw["ids"].long(), raw["mask"].bool()
        limit = self.sizes.max_prompt_tokens
        if ids.dim() != 2 or ids.shape != mask.shape or not 2 <= ids.shape[1] <= limit:
            raise ValueError(
                f"ids and mask must be [B, T] with T from 2 to {limit}, got {list(ids.shape)} and {list(mask.shape)}"
            )
        if not mask[:, -2:].all() or not (mask[:, 1:] >= mask[:, :-1]).all():
            raise ValueError(
                "prompts must be left-padded: each row of the mask is False, then True at two places or more"
            )
        taken = ids[mask]
        if taken.min() < 0 or taken.max() >= self.sizes.text_vocab_size:
            raise ValueError(
                f"ids reach from {taken.min()} to {taken.max()}; the text vocabulary has {self.sizes.text_vocab_size}"
            )
        return ids, mask

    def null_condition(self, like: Condition) -> Condition:
        ids, mask = like.tensors["ids"], like.tensors["mask"]
        inner = mask & F.pad(mask, (1, 0))[:, :-1]  # not the first
        inner[:, -1] = False
        return Condition({"ids": ids.masked_fill(inner, self.pad_id), "mask": mask} | null_beta(like))

    @property
    def pad_id(self) -> int:
        """The text token that the null condition consists of. Raises ValueError where nothing tells."""
        if self.sizes.pad_id is not None:
            return self.sizes.pad_id
        if self.prompt_tokenizer is None:
            raise ValueError(
                "the null condition consists of pad tokens, and neither tokenizer.json nor generation_config.json beside "
                "the weights tells their id; load the whole published folder, or pass pad_id= to load_generator"
            )
        return self.prompt_tokenizer.pad_id

    def _embed_prompt(self, condition: Condition) -> Tensor:
        return self.with_beta(self.model.language_model.embed_tokens(condition.tensors["ids"]), condition)

    @property
    def condition_width(self) -> int:
        return self.sizes.dim

    # --- teacher forcing

    def teacher_force(self, inputs_BL: Tensor, condition: Condition) -> DeferredLogits:
        prompt = self._embed_prompt(condition)
        places = _Places.of(condition.tensors["mask"], self.layout.length - 1)
        x = torch.cat([prompt, self._embed(inputs_BL[:, :-1])], dim=1)
        x = self._run(x, places.positions_BS, places.square_mask(x.shape[1]))
        return DeferredLogits(x[:, prompt.shape[1] - 1 :], self._logits, self.vocab_size)

    def _embed(self, tokens_Bn: Tensor) -> Tensor:
        return self.model.generation_aligner(self.model.generation_embeddings(tokens_Bn))

    def _logits(self, x: Tensor) -> Tensor:
        return self.model.generation_head(x).float()

    def _run(self, x: Tensor, positions: Tensor, mask: Tensor, cache: JanusCache | None = None) -> Tensor:
        """The language model's layers over x [B, n, C]; mask: bool [B, 1, n, S]."""
        llama = self.model.language_model
        settings = {"attention_mask": mask, "position_embeddings": llama.rotary_emb(x, positions)}
        for layer in llama.layers:
            if cache is None:
                x = run_block(self.gradient_checkpointing, layer, x, **settings)
            else:
                x = layer(x, **settings, **{self.model.cache_argument: cache})
        return llama.norm(x)

    # --- sampling

    def new_cache(self, rows: int) -> JanusCache:
        return JanusCache()  # the rows and the prompt's length are known when it starts

    def start(self, condition: Condition, cache: JanusCache) -> Tensor:
        prompt = self._embed_prompt(condition)
        cache.places = _Places.of(condition.tensors["mask"], self.layout.length - 1)
        return self._append(prompt, cache, cache.places.square_mask(prompt.shape[1]))

    def step(self, tokens_Bn: Tensor, cache: JanusCache) -> Tensor:
        if self._has_kernel(cache):
            return self._kernel_step(tokens_Bn, cache)
        end = cache.position + tokens_Bn.shape[1]
        return self._append(self._embed(tokens_Bn), cache, cache.places.visible_BS[:, None, None, :end])

    def static_step(self, tokens_Bn: Tensor, cache: JanusCache, cells_Bn: Tensor, length: int) -> Tensor:
        mask = seen_from(cells_Bn, length) & cache.places.visible_BS[:, None, None, :length]
        return self._advance(self._embed(tokens_Bn), cache, mask, cells_Bn, length)

    def _kernel_step(self, tokens_B1: Tensor, cache: JanusCache) -> Tensor:
        assert cache.kernel is not None
        x, cell = self._embed(tokens_B1), cache.position
        cache.position += 1
        cos, sin = self.model.language_model.rotary_emb(x.float(), cache.places.positions_BS[:, cell : cell + 1])
        half = cos.shape[-1] // 2  # the other half repeats it
        rope = torch.stack([cos[:, 0, :half], sin[:, 0, :half]], dim=-1)
        return self._logits(cache.kernel(x[:, 0], cell, rope).to(x.dtype))

    def _has_kernel(self, cache: JanusCache) -> bool:
        """Whether the CPU's own step serves this cache, which is bound to it then."""
        if cache.kernel is None:
            llama, (_, rows, heads, capacity, _) = self.model.language_model, cache.layers[0].shape
            config = llama.config
            sizes = StepSizes(
                *(len(llama.layers), rows, config.hidden_size, config.num_attention_heads, config.intermediate_size, 0),
                capacity,
                halves=True,
            )
            grouped = heads != config.num_attention_heads
            problem = (
                f"several of the {config.num_attention_heads} heads share one of {heads} keys" if grouped else None
            )
            modules, weights = (*llama.layers, llama.norm), partial(self._step_weights, cache)
            cache.kernel = bind(self, sizes, modules, weights, cache.places.visible_BS, problem)
        return cache.kernel is not None

    def _step_weights(self, cache: JanusCache) -> StepWeights:
        llama = self.model.language_model
        layers = []
        for index, layer in enumerate(llama.layers):
            attention, mlp = layer.self_attn, layer.mlp
            projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
            layers.append(
                [
                    *(layer.input_layernorm.weight, *(projection.weight for projection in projections)),
                    *(layer.post_attention_layernorm.weight, mlp.gate_proj.weight, mlp.up_proj.weight),
                    *(mlp.down_proj.weight, cache.layers[index]),
                ]
            )
        return StepWeights(layers, llama.norm.weight, None, llama.config.rms_norm_eps)

    def _append(self, x: Tensor, cache: JanusCache, mask: Tensor) -> Tensor:
        start, cache.position = cache.position, cache.position + x.shape[1]
        return self._advance(x, cache, mask, slice(start, cache.position), cache.position)

    def _advance(self, x: Tensor, cache: JanusCache, mask: Tensor, cells: slice | Tensor, length: int) -> Tensor:
        """Logits after x [B, n, C], which goes to these cells of the cache and sees its first `length`: after all of x
        where a tensor tells the cells, and after the last otherwise."""
        cache.cells, cache.length = cells, length
        positions_BS = cache.places.positions_BS
        if isinstance(cells, Tensor):
            return self._logits(self._run(x, positions_BS.gather(1, cells.expand(x.shape[:2])), mask, cache))
        return self._logits(self._run(x, positions_BS[:, cells], mask, cache)[:, -1:])

    def select_rows(self, cache: JanusCache, rows_B: Tensor) -> None:
        for layer, kv in cache.layers.items():
            cache.layers[layer] = kv[:, rows_B]
        cache.kernel = None
        cache.places = cache.places.rows(rows_B)

    def first_rows(self, cache: JanusCache, rows: int) -> JanusCache:
        first = JanusCache()
        first.layers = {layer: kv[:, :rows] for layer, kv in cache.layers.items()}
        first.places, first.position = cache.places.rows(slice(rows)), cache.position
        return first

    # --- pixels

    @property
    def image_size(self) -> tuple[int, int]:
        side = self.require_tokenizer().config.downsampling
        return self.sizes.grid[0] * side, self.sizes.grid[1] * side

    def decode(self, tokens_BL: Tensor) -> Tensor:
        """The authors' sampler rounds down, unlike LlamaGen's for the same tokenizer."""
        tokenizer = self.require_tokenizer()
        with torch.no_grad():
            parts = [tokenizer.decode(part, self.sizes.grid) for part in tokens_BL.to(self.device).split(PIXEL_CHUNK)]
        return ((torch.cat(parts) + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def decode_soft(self, weights_BLV: Tensor) -> Tensor:
        return self.require_tokenizer().decode_soft(weights_BLV, self.sizes.grid)

    # --- published format

    def published_name(self, name: str) -> str:
        return published_name(name, self.sizes.key_layout)


class _Model(nn.Module):
    """transformers' parts under the names of the converted layout: those of its JanusModel that make images."""

    generation_aligner: Any
    generation_head: Any
    language_model: Any

    def __init__(self, config: JanusConfig) -> None:
        super().__init__()
        from transformers.models.janus.configuration_janus import JanusVQVAEConfig
        from transformers.models.janus.modeling_janus import JanusVQVAEAlignerMLP, JanusVQVAEHead
        from transformers.models.llama.configuration_llama import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

        aligner = JanusVQVAEConfig(
            embed_dim=config.codebook_dim, projection_dim=config.dim, num_hidden_layers=config.aligner_layers
        )
        head = JanusVQVAEConfig(
            image_token_embed_dim=config.dim, projection_dim=config.head_width, num_embeddings=config.vocab_size
        )
        language = LlamaConfig(
            **{**config.language, "attention_dropout": config.dropout, "attn_implementation": "sdpa"}
        )
        self.generation_embeddings = nn.Embedding(config.vocab_size, config.codebook_dim)
        self.generation_aligner = JanusVQVAEAlignerMLP(aligner)
        self.generation_head = JanusVQVAEHead(head)
        self.language_model = LlamaModel(language)
        self.language_model.rotary_emb = _Rotary(language)
        # the argument changed its name within transformers 5
        arguments = inspect.signature(LlamaDecoderLayer.forward).parameters
        self.cache_argument = "cache" if "cache" in arguments else "past_key_values"


class _Places:
    """visible_BS: bool, whether a place of the sequence may be attended to; positions_BS: what the rotation sees there."""

    def __init__(self, visible_BS: Tensor, positions_BS: Tensor) -> None:
        self.visible_BS, self.positions_BS = visible_BS, positions_BS

    @staticmethod
    def of(mask_BT: Tensor, image_tokens: int) -> _Places:
        """Of a prompt, and image tokens after it."""
        visible_BS = F.pad(mask_BT, (0, image_tokens), value=True)
        return _Places(visible_BS, (visible_BS.cumsum(dim=1) - 1).clamp(min=0))

    def rows(self, rows_B: slice | Tensor) -> _Places:
        return _Places(self.visible_BS[rows_B], self.positions_BS[rows_B])

    def square_mask(self, length: int) -> Tensor:
        """bool [B, 1, length, length] of the first places: causal and visible; padding sees itself, so as not to be NaN."""
        own = torch.eye(length, dtype=torch.bool, device=self.visible_BS.device)
        causal = torch.ones_like(own).tril()
        return ((causal & self.visible_BS[:, None, :length]) | own)[:, None]


class JanusCache:
    """Keys and values of every layer, [2, B, heads, T + L - 1, head_dim] each, filled up to `position`.

    transformers' attention calls `update`, which writes to `cells` and gives the first `length`.
    """

    places: _Places
    cells: slice | Tensor
    length: int
    kernel: DecodeStep | None = None

    def __init__(self) -> None:
        self.layers: dict[int, Tensor] = {}
        self.position = 0

    def update(self, k: Tensor, v: Tensor, layer: int, *unused: Any, **also_unused: Any) -> tuple[Tensor, Tensor]:
        if layer not in self.layers:
            self.layers[layer] = k.new_zeros(2, *k.shape[:2], self.places.visible_BS.shape[1], k.shape[3])
        kv = self.layers[layer]
        store(kv, self.cells, k, v)
        return kv[0, :, :, : self.length], kv[1, :, :, : self.length]


class _Rotary(nn.Module):
    """transformers' rotary table, made when it is needed: as a buffer that no file holds it would be lost on the meta
    device, and rounded in bfloat16."""

    table: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.__dict__["table"] = None

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        if self.table is None or self.table.inv_freq.device != x.device:
            from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

            self.__dict__["table"] = LlamaRotaryEmbedding(self.config).to(x.device)
        return self.table(x, position_ids)
