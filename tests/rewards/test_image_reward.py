"""ImageReward scores as BLIP's published architecture does, written out here once more under the checkpoint's own names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from rewards.builtin.image_reward import ImageReward
from rewards.registry import load_reward
from rewards.tiny.blip import TINY, WORD_PIECES, make_image_reward

PROMPTS = ["a red bus", "", "two zebras under 1 tree", "x" * 60]
ROWS: list[dict[str, Any]] = [{"prompt": prompt} for prompt in PROMPTS]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_image_reward(tmp_path_factory.mktemp("image-reward"))


@pytest.fixture(scope="module")
def reward(settings: dict[str, Any]) -> ImageReward:
    return ImageReward(**settings)


def images(height: int = 40, width: int = 57) -> Tensor:
    stream = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (4, 3, 5, 7), dtype=torch.uint8, generator=stream)
    return F.interpolate(coarse, size=(height, width), mode="nearest").permute(0, 2, 3, 1).contiguous()


def published(settings: dict[str, Any]) -> dict[str, Tensor]:
    return torch.load(settings["model"], weights_only=True)


class Blip:
    """The forward pass of BLIP as its paper and checkpoint have it, on nothing but tensors."""

    def __init__(self, state: dict[str, Tensor], vision_epsilon: float = 1e-6, causal: bool = False) -> None:
        self.state, self.vision_epsilon, self.causal = state, vision_epsilon, causal

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x: Tensor, name: str, epsilon: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    @staticmethod
    def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        """Heads of 64 numbers, one after another."""
        heads = []
        for i in range(0, q.shape[-1], 64):
            scores = q[:, i : i + 64] @ k[:, i : i + 64].T / 8
            heads.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v[:, i : i + 64])
        return torch.cat(heads, -1)

    def see(self, pixels: Tensor) -> Tensor:
        name = "blip.visual_encoder"
        kernel, bias = self.state[f"{name}.patch_embed.proj.weight"], self.state[f"{name}.patch_embed.proj.bias"]
        patches = F.conv2d(pixels[None], kernel, bias, stride=16)[0].flatten(1).T
        x = torch.cat([self.state[f"{name}.cls_token"][0], patches]) + self.state[f"{name}.pos_embed"][0]
        everything = torch.ones(len(x), len(x), dtype=torch.bool)
        for block in (f"{name}.blocks.{i}" for i in range(TINY.vision_layers)):
            q, k, v = self.linear(self.norm(x, f"{block}.norm1", self.vision_epsilon), f"{block}.attn.qkv").chunk(3, -1)
            x = x + self.linear(self.attend(q, k, v, everything), f"{block}.attn.proj")
            hidden = F.gelu(self.linear(self.norm(x, f"{block}.norm2", self.vision_epsilon), f"{block}.mlp.fc1"))
            x = x + self.linear(hidden, f"{block}.mlp.fc2")
        return self.norm(x, f"{name}.norm", self.vision_epsilon)

    def score(self, pixels: Tensor, tokens: list[int]) -> Tensor:
        name, patches = "blip.text_encoder", self.see(pixels)
        words, places = (self.state[f"{name}.embeddings.{kind}_embeddings.weight"] for kind in ("word", "position"))
        x = self.norm(words[tokens] + places[: len(tokens)], f"{name}.embeddings.LayerNorm", 1e-12)
        seen = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
        seen = seen.tril() if self.causal else seen
        for layer in (f"{name}.encoder.layer.{i}" for i in range(TINY.text_layers)):
            for kind, source, mask in (
                ("attention", None, seen),
                ("crossattention", patches, torch.ones(len(tokens), len(patches), dtype=torch.bool)),
            ):
                at = f"{layer}.{kind}"
                looked_at = x if source is None else source
                q, k, v = (
                    self.linear(y, f"{at}.self.{part}")
                    for part, y in (("query", x), ("key", looked_at), ("value", looked_at))
                )
                mixed = self.linear(self.attend(q, k, v, mask), f"{at}.output.dense")
                x = self.norm(mixed + x, f"{at}.output.LayerNorm", 1e-12)
            hidden = F.gelu(self.linear(x, f"{layer}.intermediate.dense"))
            x = self.norm(self.linear(hidden, f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm", 1e-12)
        score = x[0]
        for place in (0, 2, 4, 6, 7):
            score = self.linear(score, f"mlp.layers.{place}")
        return (score[0] - 0.16717362830052426) / 1.0333394966054072


def prepared(image: Tensor) -> Tensor:
    """40 x 57 pixels to 32 x 45, of which columns 6 to 38 (6.5 rounds to the even 6)."""
    small = Image.fromarray(image.numpy()).resize((45, 32), Image.Resampling.BICUBIC).crop((6, 0, 38, 32))
    pixels = torch.tensor(list(small.tobytes())).view(32, 32, 3) / 255
    return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)


def word_pieces(prompt: str) -> list[int]:
    """Whole words are cut into letters, for the tiny vocabulary holds nothing longer; 35 pieces with both ends."""
    pieces = [sign if not i else f"##{sign}" for word in prompt.split() for i, sign in enumerate(word)]
    return [WORD_PIECES.index(piece) for piece in ["[CLS]", *pieces[:33], "[SEP]"]]


def by_hand(blip: Blip) -> Tensor:
    return torch.stack(
        [blip.score(prepared(image), word_pieces(prompt)) for image, prompt in zip(images(), PROMPTS, strict=True)]
    )


def test_it_is_blip_as_published(settings: dict[str, Any], reward: ImageReward) -> None:
    scores = reward(images(), ROWS)
    state = published(settings)
    torch.testing.assert_close(scores, by_hand(Blip(state)), atol=1e-5, rtol=0)
    assert scores.dtype == torch.float32 and scores.std() > 0.1
    # what is easily got wrong shows in these weights, so the agreement above says that it is right
    for wrong in (Blip(state, causal=True), Blip(state, vision_epsilon=1e-5)):
        assert (scores - by_hand(wrong)).abs().max() > 1e-5


def test_a_score_depends_on_its_own_image_and_prompt_alone(settings: dict[str, Any], reward: ImageReward) -> None:
    together = reward(images(), ROWS)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(reward(images()[order], [ROWS[i] for i in order]), together[order], atol=1e-5, rtol=0)
    in_threes = ImageReward(**settings, batch_size=3)(images(), ROWS)
    torch.testing.assert_close(in_threes, together, atol=1e-5, rtol=0)


def test_bfloat16_is_close(settings: dict[str, Any], reward: ImageReward) -> None:
    halved = ImageReward(**{**settings, "dtype": "bfloat16"})(images(), ROWS)
    exact = reward(images(), ROWS)
    assert halved.dtype == torch.float32
    assert 0 < (halved - exact).abs().max() < 0.1 * exact.std()


def test_it_is_built_in_and_known_by_its_weights(settings: dict[str, Any], reward: ImageReward) -> None:
    digest = hashlib.sha256(Path(settings["model"]).read_bytes()).hexdigest()
    loaded = load_reward("image-reward", **settings, sha256=digest)
    assert loaded.fingerprint == digest[:16]
    assert torch.equal(loaded(images(), ROWS), reward(images(), ROWS))
    with pytest.raises(ValueError, match="expected 00ff"):
        ImageReward(**settings, sha256="00ff")


def without(state: dict[str, Tensor]) -> None:
    del state["blip.text_encoder.encoder.layer.1.crossattention.self.key.bias"]


def with_more(state: dict[str, Tensor]) -> None:
    state["blip.text_decoder.bias"] = torch.zeros(2)


def with_another_shape(state: dict[str, Tensor]) -> None:
    state["blip.visual_encoder.norm.bias"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without, "1 missing: text.encoder.layer.1.crossattention.self.key.bias"),
        (with_more, "1 unexpected: blip.text_decoder.bias"),
        (with_another_shape, "1 of another shape: vision.post_layernorm.bias"),
        (dict.clear, "is not ImageReward's checkpoint as published .* it has no vision.embeddings.patch_embedding"),
    ],
)
def test_another_checkpoint_is_refused(settings: dict[str, Any], tmp_path: Path, change: Any, message: str) -> None:
    state = published(settings)
    change(state)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=message):
        ImageReward(**{**settings, "model": str(tmp_path / "other.pt")})


def test_what_blip_was_pretrained_with_may_be_absent(settings: dict[str, Any], tmp_path: Path) -> None:
    """Files that were saved anew, by a newer transformers, hold no position_ids."""
    state = {name: tensor for name, tensor in published(settings).items() if "position_ids" not in name}
    torch.save(state, tmp_path / "anew.pt")
    ImageReward(**{**settings, "model": str(tmp_path / "anew.pt")})


def test_another_vocabulary_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORD_PIECES[:-1]))
    with pytest.raises(ValueError, match="vocab.txt has 76 word pieces, the checkpoint embeds 77"):
        ImageReward(**{**settings, "tokenizer": str(tmp_path / "vocab.txt")})


def test_a_row_without_a_prompt_is_refused(reward: ImageReward) -> None:
    with pytest.raises(ValueError, match=r"row 1 has no text as 'prompt', it has \['label'\]"):
        reward(images()[:2], [ROWS[0], {"label": 3}])


@pytest.mark.gpu
def test_the_gpu_agrees(settings: dict[str, Any], reward: ImageReward) -> None:
    exact = reward(images(), ROWS)
    on_gpu = {**settings, "device": "cuda"}
    torch.testing.assert_close(ImageReward(**on_gpu)(images(), ROWS), exact, atol=1e-3, rtol=0)
    halved = ImageReward(**{**on_gpu, "dtype": "auto"})(images(), ROWS)
    assert 0 < (halved - exact).abs().max() < 0.1 * exact.std()
