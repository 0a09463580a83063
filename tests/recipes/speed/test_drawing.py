"""Who draws from the same weights draws the same: the plain loop, transformers, checkouts; and who does not is refused."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_janus, tiny_llamagen, tiny_var
from torch import Tensor

from align.generators.published import PublishedGenerator
from align.types import Condition, SamplingConfig
from recipes.speed.equal import TOLERANCE, Expected
from recipes.speed.models import conditions
from recipes.speed.peers import find_peers
from recipes.speed.plain import plain_loop

# what the peers take of a checkout, on top of our own generators: the shape of their code, not their code
LLAMAGEN = {
    "autoregressive/models/gpt.py": """
from dataclasses import dataclass

import torch
from utils.marks import MARK

from align.generators import LlamaGen, LlamaGenConfig


@dataclass
class ModelArgs:
    dim: int
    n_layer: int
    n_head: int
    vocab_size: int
    num_classes: int
    block_size: int
    cls_token_num: int
    model_type: str


class Transformer(LlamaGen):
    def __init__(self, args):
        side = int(args.block_size**0.5)
        super().__init__(
            LlamaGenConfig(args.dim, args.n_layer, args.n_head, 32, args.vocab_size, (side, side), args.num_classes)
        )
        self.cache = None

    def forward(self, tokens, condition):
        start = tokens is None
        logits = self.start(condition, self.cache) if start else self.step(tokens, self.cache)
        return logits, None
""",
    "autoregressive/models/generate.py": """
import torch

from align.types import Condition


@torch.no_grad()
def generate(model, cond, max_new_tokens, cfg_scale=1.0, temperature=1.0, top_k=0, top_p=1.0, sample_logits=True):
    both = torch.cat([cond, torch.full_like(cond, model.num_classes)]) if cfg_scale > 1 else cond
    model.cache = model.new_cache(len(both))
    tokens, found = None, []
    for _ in range(max_new_tokens):
        logits, _ = model(tokens, Condition({"label": both}))
        if cfg_scale > 1:
            cond_logits, null_logits = logits.chunk(2)
            logits = null_logits + cfg_scale * (cond_logits - null_logits)
        probabilities = (logits[:, -1] / temperature).softmax(-1)
        drawn = torch.multinomial(probabilities, 1) if sample_logits else probabilities.argmax(-1, keepdim=True)
        found.append(drawn.int())
        tokens = drawn.repeat(2, 1) if cfg_scale > 1 else drawn
    return torch.cat(found, dim=1)
""",
    "utils/marks.py": "MARK = 1\n",
}
VAR = {
    "models/quant.py": """
from align.tokenizers.multiscale_vq import MultiscaleVQConfig, _Quantizer


class VectorQuantizer2(_Quantizer):
    def __init__(self, vocab_size, Cvae, using_znorm, v_patch_nums):
        super().__init__(MultiscaleVQConfig(v_patch_nums, codebook_size=vocab_size, codebook_dim=Cvae))
""",
    "models/var.py": """
import torch

import dist
from align.generators import VAR as Ours
from align.generators import VARConfig
from align.tokenizers.multiscale_vq import shrink
from align.types import Condition


class VAR(Ours):
    def __init__(
        self, vae, num_classes, depth, embed_dim, num_heads, mlp_ratio, shared_aln, attn_l2_norm, patch_nums
    ):
        hidden = int(embed_dim * mlp_ratio)
        sizes = (embed_dim, depth, num_heads, hidden, vae.vocab_size, vae.Cvae, num_classes, patch_nums)
        super().__init__(VARConfig(*sizes, l2_norm=attn_l2_norm, shared_adaln=shared_aln))
        self.vae = vae

    @torch.no_grad()
    def autoregressive_infer_cfg(self, batch, labels, g_seed, cfg, top_k, top_p):
        numbers = torch.Generator().manual_seed(g_seed)
        both = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        cache, f_hat, quantizer = self.new_cache(2 * batch), 0, self.vae.quantize
        logits = self.start(Condition({"label": both}), cache)
        for scale, side in enumerate(self.sizes.patch_nums):
            t = cfg * scale / (len(self.sizes.patch_nums) - 1)
            cond, null = logits.chunk(2)
            guided = (1 + t) * cond - t * null
            if top_k:
                guided = guided.masked_fill(guided < guided.topk(top_k, dim=-1).values[..., -1:], -torch.inf)
            tokens = torch.multinomial(guided.softmax(-1).flatten(0, 1), 1, generator=numbers).view(batch, -1)
            f_hat = f_hat + quantizer.contribution(quantizer.embedding(tokens), scale)
            if scale < len(self.sizes.patch_nums) - 1:
                inputs = shrink(f_hat, self.sizes.patch_nums[scale + 1]).repeat(2, 1, 1)
                logits = self._advance(self._embed(inputs), cache)
        return self.vae.fhat_to_img(f_hat)
""",
    "dist.py": "",
}


def checkout(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)


def model(family: str) -> PublishedGenerator[Any]:
    makers = {"llamagen": lambda: tiny_llamagen(grid=(3, 3)), "var": tiny_var, "janus": tiny_janus}
    return makers[family]()


def schedule(family: str) -> str:
    return "linear" if family == "var" else "constant"


def expected(generator: PublishedGenerator[Any], scale: float) -> Expected:
    sampling = SamplingConfig(guidance_scale=scale, guidance_schedule=schedule(generator.family))
    return Expected(generator, conditions(generator, 3), sampling)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("family", ["llamagen", "var", "janus"])
def test_the_plain_loop_draws_the_same(family: str, scale: float) -> None:
    generator = model(family)
    agreement = expected(generator, scale).check("plain", plain_loop(generator))
    assert agreement.tokens == 1.0
    assert agreement.logits < TOLERANCE


@pytest.mark.parametrize("shared", [{"shared_adaln": True}, {"l2_norm": False}])
def test_the_plain_loop_knows_every_var(shared: dict[str, bool]) -> None:
    generator = tiny_var(**shared)  # type: ignore[arg-type]
    assert expected(generator, 2.0).check("plain", plain_loop(generator)).tokens == 1.0


def test_the_plain_loop_samples() -> None:
    """At temperature 1 tokens vary, and within the top k only."""
    generator = model("llamagen")
    condition = conditions(generator, 4)
    drawn = plain_loop(generator)(condition, SamplingConfig(), None)
    assert drawn.shape == (4, 9)
    assert (drawn != drawn[0]).any()
    greedy = plain_loop(generator)(condition, SamplingConfig(temperature=0), None)
    assert torch.equal(plain_loop(generator)(condition, SamplingConfig(top_k=1), None), greedy)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize(("family", "files"), [("llamagen", LLAMAGEN), ("var", VAR)])
def test_a_checkout_draws_the_same(family: str, files: dict[str, str], scale: float, tmp_path: Path) -> None:
    generator, mine = model(family), sys.modules.get("utils")
    (draw,) = find_peers(generator, checkout(tmp_path, files)).values()
    assert expected(generator, scale).check("original", draw).tokens == 1.0
    # its names stay out of everybody else's way
    assert sys.modules.get("utils") is mine
    assert str(tmp_path) not in sys.path
    sampling = SamplingConfig(guidance_scale=scale, guidance_schedule=schedule(family))
    tokens = draw(conditions(generator, 2), sampling, None)
    assert tokens.shape == (2, generator.layout.length)


def test_transformers_janus_draws_the_same() -> None:
    generator = model("janus")
    (draw,) = find_peers(generator, None).values()
    assert expected(generator, 2.0).check("transformers", draw).tokens == 1.0
    assert find_peers(model("llamagen"), None) == {}


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no checkout that can be loaded: No module named 'autoregressive'"):
        find_peers(model("llamagen"), str(tmp_path))


@pytest.mark.parametrize("family", ["llamagen", "var", "janus"])
def test_other_weights_are_refused(family: str) -> None:
    generator = model(family)
    broken = copy.deepcopy(generator)
    with torch.no_grad():
        next(p for name, p in broken.named_parameters() if "mlp.down" in name or "w2" in name or "fc2" in name).mul_(
            1.1
        )
    with pytest.raises(ValueError, match="plain does not compute what ours does: a logit differs by"):
        expected(generator, 2.0).check("plain", plain_loop(broken))


def test_the_same_logits_with_another_choice_are_refused_but_for_ties() -> None:
    generator = model("llamagen")
    exact, draw = expected(generator, 1.0), plain_loop(generator)

    def other(condition: Condition, sampling: SamplingConfig, watch: Any) -> Tensor:
        tokens = draw(condition, sampling, watch)
        tokens[1, -1] = (tokens[1, -1] + 1) % 16
        return tokens

    for watched in (True, False):
        with pytest.raises(ValueError, match=r"does not draw what ours draws: image 1 has another token at 8"):
            exact.check("other", other, watched=watched)
    place = exact.tokens_BL[1, -1]
    exact.cond_BLV[1, -1, (place + 1) % 16] = exact.cond_BLV[1, -1, place]  # now both are as likely
    assert exact.check("other", other, watched=False).tokens == pytest.approx(26 / 27)


def test_in_bfloat16_the_first_logits_are_compared() -> None:
    generator = model("llamagen").to(torch.bfloat16)
    agreement = expected(generator, 2.0).check("plain", plain_loop(generator))
    assert 0 <= agreement.tokens <= 1
    broken = copy.deepcopy(generator)
    with torch.no_grad():
        broken.output.weight.mul_(1.5)
    with pytest.raises(ValueError, match="does not compute what ours does"):
        expected(generator, 2.0).check("plain", plain_loop(broken))
