"""Others that draw from the same weights: transformers' Janus, and the checkouts of LlamaGen's and VAR's authors.

The checkouts are imported as they are, from the path that is given. What is set up around them, none of which is timed
or changes their speed: the weights are shared by their names; the module names of a checkout (`models`, `utils`, `dist`)
are taken out of Python's table once it is loaded; VAR's `fhat_to_img` gives the latents back, as only the drawing of
tokens is compared; logits and VAR's tokens are read by hooks.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from align.generators import VAR, Janus, LlamaGen
from align.generators.published import PublishedGenerator
from align.types import Condition, SamplingConfig
from recipes.speed.equal import Draw
from recipes.speed.models import BOI, BOS
from recipes.speed.plain import Watch

# without guidance transformers' image mode ends in an error: it always has both branches' rows
GUIDED_ONLY = ("transformers",)


def find_peers(generator: PublishedGenerator[Any], path: str | None) -> dict[str, Draw]:
    """By name, those that can draw from this generator's weights.

    Args:
        path: of the authors' checkout; without it that peer is left out.

    Raises:
        ValueError: a path to what is no checkout of the family's authors, or weights that it does not take.
    """
    if isinstance(generator, Janus):
        return {"transformers": janus_peer(generator)}
    if path is None:
        return {}
    make = {"llamagen": llamagen_peer, "var": var_peer}[generator.family]
    return {"original": make(generator, Path(path))}  # type: ignore[operator]


def llamagen_peer(generator: LlamaGen, path: Path) -> Draw:
    """`generate` of LlamaGen's autoregressive/models/generate.py."""
    gpt, generation = _load(path, "autoregressive.models.gpt", "autoregressive.models.generate")
    sizes = generator.sizes
    settings = gpt.ModelArgs(
        dim=sizes.dim, n_layer=sizes.num_layers, n_head=sizes.num_heads, vocab_size=sizes.vocab_size,
        num_classes=sizes.num_classes, block_size=generator.layout.length, cls_token_num=1, model_type="c2i",
    )  # fmt: skip
    with torch.device(generator.device):
        model = gpt.Transformer(settings)
    _assign(model, generator.published_state(), path)
    model.eval()

    def draw(condition: Condition, sampling: SamplingConfig, watch: Watch | None = None) -> Tensor:
        with _watching(model, watch, lambda found: found[0][:, -1:]):
            return generation.generate(
                model,
                condition.tensors["label"],
                generator.layout.length,
                cfg_scale=sampling.guidance_scale,
                temperature=sampling.temperature or 1.0,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                sample_logits=sampling.temperature > 0,
            ).long()

    return draw


def var_peer(generator: VAR, path: Path) -> Draw:
    """`autoregressive_infer_cfg` of VAR's models/var.py; its cfg is our scale less 1."""
    theirs, quant = _load(path, "models.var", "models.quant")
    sizes, tokenizer = generator.sizes, generator.require_tokenizer()
    quantizer = quant.VectorQuantizer2(
        vocab_size=sizes.vocab_size, Cvae=sizes.codebook_dim, using_znorm=False, v_patch_nums=sizes.patch_nums,
    )  # fmt: skip
    _assign(quantizer, tokenizer.quantize.state_dict(), path)
    pixels = SimpleNamespace(
        Cvae=sizes.codebook_dim, vocab_size=sizes.vocab_size, quantize=quantizer.eval(), fhat_to_img=lambda f_hat: f_hat
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it describes itself
        model = theirs.VAR(
            pixels, num_classes=sizes.num_classes, depth=sizes.num_layers, embed_dim=sizes.dim,
            num_heads=sizes.num_heads, mlp_ratio=sizes.hidden_dim / sizes.dim, shared_aln=sizes.shared_adaln,
            attn_l2_norm=sizes.l2_norm, patch_nums=sizes.patch_nums,
        )  # fmt: skip
    _assign(model, generator.published_state(), path)
    model.eval()
    exact = model.head.weight.dtype == torch.float32
    drawn: list[Tensor] = []
    quantizer.embedding.register_forward_hook(lambda _module, given, _found: drawn.append(given[0]))

    def draw(condition: Condition, sampling: SamplingConfig, watch: Watch | None = None) -> Tensor:
        drawn.clear()
        labels = condition.tensors["label"]
        # in lower precision their samplers run under autocast, and their output layer's input asks for it
        autocast = torch.autocast(labels.device.type, torch.bfloat16, enabled=not exact)
        with _watching(model.head, watch, lambda found: found), autocast:
            model.autoregressive_infer_cfg(
                len(labels),
                labels,
                g_seed=sampling.seed,
                cfg=sampling.guidance_scale - 1,
                top_k=sampling.top_k if sampling.temperature else 1,
                top_p=0.0 if sampling.top_p >= 1 else sampling.top_p,
            )
        return torch.cat(drawn, dim=1)

    return draw


def janus_peer(generator: Janus) -> Draw:
    """The image mode of transformers' JanusForConditionalGeneration.generate, which always runs both branches."""
    from transformers import GenerationConfig, JanusForConditionalGeneration
    from transformers.models.janus.configuration_janus import JanusConfig, JanusVisionConfig, JanusVQVAEConfig

    sizes = generator.sizes
    settings = JanusConfig(
        text_config={**sizes.language, "model_type": "llama", "attn_implementation": "sdpa"},
        # what understands images is not run; it is as small as it can be
        vision_config=JanusVisionConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, patch_size=1, image_size=sizes.grid[0],
            projection_dim=8, num_image_tokens=generator.layout.length,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=sizes.codebook_dim, num_embeddings=sizes.vocab_size, projection_dim=sizes.dim,
            num_hidden_layers=sizes.aligner_layers, image_token_embed_dim=sizes.dim, base_channels=32,
            channel_multiplier=[1], num_patches=sizes.grid[0],
        ),
    )  # fmt: skip
    model: Any = JanusForConditionalGeneration(settings)
    model.lm_head = nn.Identity()  # of texts
    own = generator.model
    for name in ("generation_embeddings", "generation_aligner", "generation_head"):
        setattr(model.model, name, getattr(own, name))
    _assign(model.model.language_model, own.language_model.state_dict(), Path("transformers"))
    model.to(generator.device).eval()
    length = generator.layout.length

    def draw(condition: Condition, sampling: SamplingConfig, watch: Watch | None = None) -> Tensor:
        ids, mask = condition.tensors["ids"], condition.tensors["mask"].long()
        sampled = sampling.temperature > 0
        how = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p} if sampled else {}
        generation: Any = GenerationConfig(
            bos_token_id=BOS, pad_token_id=generator.pad_id, eos_token_id=None, do_sample=sampled,
            guidance_scale=sampling.guidance_scale, max_length=ids.shape[1] + length, use_cache=True, **how,
        )  # fmt: skip
        generation.generation_kwargs = {"boi_token_id": BOI}
        with _watching(model.model.generation_head, watch, lambda found: found.unsqueeze(1)):
            return model.generate(ids, attention_mask=mask, generation_mode="image", generation_config=generation)

    return draw


def _assign(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Share the weights, by the published names."""
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"the model of {path} does not take these weights: {str(error).splitlines()[-1].strip()}"
        ) from error


@contextlib.contextmanager
def _watching(module: nn.Module, watch: Watch | None, logits: Any) -> Iterator[None]:
    handle = None
    if watch is not None:
        handle = module.register_forward_hook(lambda _module, _given, found: watch(logits(found)))
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _load(path: Path, *names: str) -> list[ModuleType]:
    """Modules of a checkout, which stay out of the way of everybody else's of the same names."""
    before = dict(sys.modules)
    own = {name.split(".")[0] for name in names} | {"utils", "dist"}
    for name in [name for name in before if name.split(".")[0] in own]:
        del sys.modules[name]
    sys.path.insert(0, str(path.resolve()))
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise ValueError(
            f"peer_path={path} is no checkout that can be loaded: {error}. Give the folder with {names[0].split('.')[0]}/"
        ) from error
    finally:
        sys.path.remove(str(path.resolve()))
        for name in [name for name in sys.modules if name.split(".")[0] in own]:
            del sys.modules[name]
        sys.modules |= {name: module for name, module in before.items() if name.split(".")[0] in own}
