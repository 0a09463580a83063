"""ImageReward: how much people would prefer an image for its prompt, by a BLIP trained on their choices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.clip.pixels import normalise, resize_pil
from evaluation.devices import pick_device, pick_dtype
from evaluation.weights import find_file, fingerprint_of
from rewards.builtin.prompts import prompts_of

# over the scores of the published model's training set
SCORE_MEAN, SCORE_STD = 0.16717362830052426, 1.0333394966054072
PROMPT_TOKENS = 35
HEAD_WIDTH = 64  # of every attention head in BLIP, of both towers and all sizes
HEAD_PLACES = (0, 2, 4, 6, 7)  # of the head's layers in their names; the others are dropouts, and nothing bends
# what BLIP was pre-trained with and ImageReward does not read; position_ids is a constant that older files hold
UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\..*|blip\.text_encoder\.embeddings\.position_ids")
# the published names' parts, in order, and those of transformers' BLIP
RENAMED = (
    (r"^blip\.text_encoder\.", "text."),
    (r"^blip\.visual_encoder\.", "vision."),
    (r"^vision\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^vision\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^vision\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^vision\.blocks\.", "vision.encoder.layers."),
    (r"^(vision\..*)\.attn\.qkv\.", r"\1.self_attn.qkv."),
    (r"^(vision\..*)\.attn\.proj\.", r"\1.self_attn.projection."),
    (r"^(vision\..*)\.norm([12])\.", r"\1.layer_norm\2."),
    (r"^vision\.norm\.", "vision.post_layernorm."),
    (r"^mlp\.layers\.", "head."),
)


class ImageReward:
    """ImageReward v1.0 (Xu et al. 2023, arXiv 2304.05977): about -2.3 to 2, larger is better; 0 is the average image.

    Runs on transformers' BLIP classes, so that it needs neither the package image-reward nor its old pins; its numbers
    are the package's (tests/rewards/test_image_reward_package.py). Only a prompt's first 33 word pieces are read.

    Args:
        model: ImageReward.pt as published, or the hub repository that holds it.
        tokenizer: the vocabulary of bert-base-uncased: vocab.txt, or the hub repository that holds it.
        revision: of the hub repository of `model`.
        sha256: that `model` must have; None takes any.
        device: such as "cuda:1"; "auto" is the GPU in use, or the CPU where there is none.
        dtype: of the two towers, such as "float32"; "auto" is bfloat16 on a GPU and float32 on a CPU.
        batch_size: images that go through the model at once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not what it should be (with the keys that say so), or an unknown device or dtype.
    """

    def __init__(
        self,
        *,
        model: str = "THUDM/ImageReward",
        tokenizer: str = "google-bert/bert-base-uncased",
        revision: str | None = None,
        sha256: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 32,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it is a number of images, 1 or more")
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.batch_size = batch_size
        weights = find_file(model, filename="ImageReward.pt", revision=revision, sha256=sha256)
        vocabulary = find_file(tokenizer, filename="vocab.txt")
        self.fingerprint = fingerprint_of([weights])
        published = torch.load(weights, map_location="cpu", weights_only=True)
        self._model = _load(published, str(weights), self.device, self.dtype)
        self._tokenizer = _load_tokenizer(str(vocabulary), self._model.word_pieces)

    def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        """float32 [B] on the CPU for uint8 images [B, H, W, 3] of any size and rows with a "prompt"."""
        prompts = prompts_of(conditions)
        cuts = range(0, len(images), self.batch_size)
        return torch.cat([self._score(images[i : i + self.batch_size], prompts[i : i + self.batch_size]) for i in cuts])

    @torch.no_grad()
    def _score(self, images: Tensor, prompts: list[str]) -> Tensor:
        pixels_BCHW = normalise(resize_pil(images, self._model.image_size))
        words = self._tokenizer(
            prompts, padding="max_length", truncation=True, max_length=PROMPT_TOKENS, return_tensors="pt"
        )
        return self._model(
            pixels_BCHW.to(self.device), words.input_ids.to(self.device), words.attention_mask.to(self.device)
        ).cpu()


class _Model(nn.Module):
    """A vision tower, a text tower that looks at it, and an affine head on the text tower's first position."""

    def __init__(self, vision: Any, text: Any, head: Mapping[str, nn.Linear]) -> None:
        super().__init__()
        self.image_size, self.word_pieces = int(vision.config.image_size), int(text.config.vocab_size)
        self.vision, self.text, self.head = vision, text, nn.ModuleDict(head)

    def forward(self, pixels_BCHW: Tensor, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        patches_BPD = self.vision(pixels_BCHW).last_hidden_state
        hidden_BLD = self.text(
            tokens_BL,
            attention_mask=mask_BL,
            position_ids=torch.arange(tokens_BL.shape[1], device=tokens_BL.device)[None],
            encoder_hidden_states=patches_BPD,
            is_decoder=False,  # its layers are a decoder's, with cross-attention, but no position is hidden from another
        ).last_hidden_state
        scores_BK = hidden_BLD[:, 0].float()
        for layer in self.head.values():
            scores_BK = layer(scores_BK)
        return (scores_BK[:, 0] - SCORE_MEAN) / SCORE_STD


def _load(published: Mapping[str, Tensor], source: str, device: torch.device, dtype: torch.dtype) -> _Model:
    """The model of a checkpoint, its sizes read from the shapes; the head stays float32."""
    state = {_rename(name): tensor for name, tensor in published.items() if not UNUSED.fullmatch(name)}
    with torch.device("meta"):  # half a billion random numbers would be drawn only to be overwritten
        model = _build(state, source)
    expected = model.state_dict()
    problems = {
        "missing": sorted(set(expected) - set(state)),
        "unexpected": sorted(set(state) - set(expected)),
        "of another shape": [key for key in expected if key in state and state[key].shape != expected[key].shape],
    }
    if any(problems.values()):
        told = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:3])}" for what, keys in problems.items() if keys)
        raise ValueError(
            f"{source} is not ImageReward's checkpoint as published (ImageReward.pt). In transformers' names: {told}"
        )
    model.vision.to(dtype)
    model.text.to(dtype)
    model.to_empty(device=device).load_state_dict(state)
    return model.eval().requires_grad_(False)


def _rename(name: str) -> str:
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _build(state: Mapping[str, Tensor], source: str) -> _Model:
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    def shape(key: str) -> list[int]:
        if key not in state:
            raise ValueError(
                f"{source} is not ImageReward's checkpoint as published (ImageReward.pt): it has no {key} (transformers' name), but {', '.join(sorted(state)[:3])}"
            )
        return list(state[key].shape)

    def count(pattern: str) -> int:
        return len({match[1] for key in state if (match := re.match(pattern, key))})

    width, _, patch, _ = shape("vision.embeddings.patch_embedding.weight")
    patches = shape("vision.embeddings.position_embedding")[1] - 1
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=shape("vision.encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=count(r"vision\.encoder\.layers\.(\d+)\."),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=round(patches**0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    vocabulary, text_width = shape("text.embeddings.word_embeddings.weight")
    text = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=text_width,
        encoder_hidden_size=width,
        intermediate_size=shape("text.encoder.layer.0.intermediate.dense.weight")[0],
        num_hidden_layers=count(r"text\.encoder\.layer\.(\d+)\."),
        num_attention_heads=max(1, text_width // HEAD_WIDTH),
        max_position_embeddings=shape("text.embeddings.position_embeddings.weight")[0],
        layer_norm_eps=1e-12,
        bos_token_id=None,
        sep_token_id=None,
        is_decoder=True,
    )
    head = {}
    for place in HEAD_PLACES:
        outputs, inputs = shape(f"head.{place}.weight")
        head[str(place)] = nn.Linear(inputs, outputs)
    return _Model(BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False), head)


def _load_tokenizer(vocabulary: str, rows: int) -> Any:
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocabulary)
    tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)  # BLIP's own, behind BERT's
    if len(tokenizer) != rows:
        raise ValueError(
            f"{vocabulary} has {len(tokenizer) - 2} word pieces, the checkpoint embeds {rows - 2}; it needs the vocab.txt of bert-base-uncased"
        )
    return tokenizer
