"""CLIP models, of transformers' folders and of open_clip's files, behind one pair of functions. B batch, D width."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional

from evaluation.clip.open_clip_files import load_open_clip, shown
from evaluation.clip.pixels import normalise, resize_pil
from evaluation.devices import pick_device, pick_dtype
from evaluation.weights import find_file, find_folder, fingerprint_of, sha256_of_file, weights_in

# one format of each file; many repositories hold their weights in four
PATTERNS = ("*.json", "*.txt", "model.safetensors")


@dataclass(frozen=True, eq=False)
class ClipModel:
    """A loaded CLIP. Weights are in float32; with `dtype` bfloat16 or float16 its layers compute in that by autocast.

    embed_pixels: float [B, 3, size, size], normalised, to [B, D]; embed_texts: B texts to [B, D]. Of one batch, on the device.
    scale: the factor of cosines that it was trained with, exp(logit_scale).
    """

    embed_pixels: Callable[[Tensor], Tensor]
    embed_texts: Callable[[list[str]], Tensor]
    image_size: int
    width: int
    scale: float
    weights: Path
    device: torch.device
    dtype: torch.dtype

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights."""
        return fingerprint_of([self.weights])

    def encode_images(
        self,
        images: Tensor | list[Tensor],
        *,
        batch_size: int,
        resize: Callable[[Any, int], Tensor] = resize_pil,
    ) -> Tensor:
        """float32 [B, D] of length 1, on the CPU, of uint8 images [B, H, W, 3], or whatever else `resize` reads."""

        def embed(part: Tensor | list[Tensor]) -> Tensor:
            return self.embed_pixels(normalise(resize(part, self.image_size).to(self.device)))

        return self._encode(embed, images, batch_size)

    def encode_texts(self, texts: list[str], *, batch_size: int) -> Tensor:
        """float32 [B, D] of length 1, on the CPU. Texts are cut after 77 tokens; equal ones are computed once."""
        unique = list(dict.fromkeys(texts))
        embeddings_UD = self._encode(self.embed_texts, unique, batch_size)
        rows = {text: row for row, text in enumerate(unique)}
        return embeddings_UD[[rows[text] for text in texts]]

    @torch.no_grad()
    def _encode(self, embed: Callable[[Any], Tensor], inputs: Any, batch_size: int) -> Tensor:
        lower = self.dtype != torch.float32
        parts = []
        for start in range(0, len(inputs), batch_size):
            with torch.autocast(self.device.type, self.dtype if lower else None, enabled=lower):
                embedded_BD = embed(inputs[start : start + batch_size])
            parts.append(functional.normalize(embedded_BD.float(), dim=-1).cpu())
        return torch.cat(parts) if parts else torch.zeros(0, self.width)


_loaded: WeakValueDictionary[tuple[Any, ...], ClipModel] = WeakValueDictionary()


def load_clip(
    model: str,
    *,
    architecture: str | None = None,
    quick_gelu: bool | None = None,
    filename: str | None = None,
    tokenizer: str | None = None,
    revision: str | None = None,
    sha256: str | None = None,
    download: bool = True,
    device: str = "auto",
    dtype: str = "auto",
) -> ClipModel:
    """A CLIP model; who asks for the same weights in the same way gets the same one, as long as somebody holds it.

    Args:
        model: without `architecture` a folder or a hub repository of transformers (config.json, model.safetensors or
            pytorch_model.bin, the tokenizer), which tells all about itself. With it a file of open_clip's weights, or the
            repository that has it as `filename`; the tokenizer is then open_clip's.
        architecture, quick_gelu: as in `load_open_clip`.
        tokenizer: folder or repository with the tokenizer of a transformers model, where its own has none.
        revision, sha256, download: as in `evaluation.weights.find_file`; the hash is of the file of weights.
        device, dtype: as in `evaluation.devices`.

    Raises:
        FileNotFoundError: no such file, folder or repository.
        ValueError: settings that do not go together, another hash, or weights that do not fit; the package open_clip is
            missing.
    """
    on = pick_device(device)
    precision = pick_dtype(dtype, on)
    if architecture is None:
        if quick_gelu is not None or filename is not None:
            raise ValueError(
                "quick_gelu= and filename= are of open_clip's files, which need architecture= too; a folder of transformers tells them itself"
            )
        folder = find_folder(model, revision=revision, patterns=PATTERNS, download=download)
        weights = _weights_in(folder, sha256)
        texts = find_folder(tokenizer, patterns=PATTERNS, download=download) if tokenizer else folder
    else:
        if tokenizer is not None:
            raise ValueError("tokenizer= is of transformers' folders; a model of open_clip has open_clip's own")
        weights = find_file(model, filename=filename, revision=revision, sha256=sha256, download=download)
        folder = texts = weights.parent
    key = (weights.resolve(), sha256_of_file(weights), texts.resolve(), architecture, quick_gelu, on, precision)
    if (loaded := _loaded.get(key)) is None:
        if architecture is None:
            parts = _load_transformers(folder, texts, on)
        else:
            parts = load_open_clip(weights, architecture, quick_gelu, on)
        loaded = _loaded[key] = ClipModel(**parts, weights=weights, device=on, dtype=precision)
    return loaded


def _weights_in(folder: Path, sha256: str | None) -> Path:
    if (weights := weights_in(folder)) is not None:
        return find_file(str(weights), sha256=sha256)
    raise FileNotFoundError(
        f"{folder} has neither model.safetensors nor pytorch_model.bin, as folders of transformers have; a file of open_clip's weights needs architecture= (of repositories filename= too)"
    )


def _load_transformers(folder: Path, texts: Path, device: torch.device) -> dict[str, Any]:
    from transformers import AutoTokenizer, CLIPModel

    kind = json.loads(find_file(str(folder), filename="config.json").read_text()).get("model_type")
    if kind != "clip":
        raise ValueError(f"{folder} holds a model of type {kind!r}; a CLIP is needed ('clip' in its config.json)")
    loaded: Any = CLIPModel.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    model, report = loaded
    # files of older versions hold the positions' numbers too
    unexpected = [name for name in report["unexpected_keys"] if not name.endswith("position_ids")]
    misshaped = [name for name, *_ in report["mismatched_keys"]]
    if report["missing_keys"] or unexpected or misshaped:
        raise ValueError(
            f"the weights in {folder} are no CLIP of its config.json: missing {shown(report['missing_keys'])}; unexpected {shown(unexpected)}; of another shape {shown(misshaped)}"
        )
    model = model.eval().requires_grad_(False).to(device)
    tokenizer = AutoTokenizer.from_pretrained(texts)
    sizes = model.config.text_config
    if len(tokenizer) != sizes.vocab_size:
        raise ValueError(
            f"the tokenizer in {texts} has {len(tokenizer)} tokens, the model {sizes.vocab_size}; give a folder with the right one as tokenizer=, such as laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
        )

    # get_image_features and get_text_features return tensors in some versions of transformers and objects in others
    def embed_pixels(pixels_BCHW: Tensor) -> Tensor:
        return model.visual_projection(model.vision_model(pixel_values=pixels_BCHW).pooler_output)

    def embed_texts(part: list[str]) -> Tensor:
        tokens = tokenizer(
            part, padding=True, truncation=True, max_length=sizes.max_position_embeddings, return_tensors="pt"
        )
        # what stands after a text's end needs no mask: nothing before it looks there
        outputs = model.text_model(input_ids=tokens["input_ids"].to(device))
        return model.text_projection(outputs.pooler_output)

    return {
        "embed_pixels": embed_pixels,
        "embed_texts": embed_texts,
        "image_size": model.config.vision_config.image_size,
        "width": model.config.projection_dim,
        "scale": model.logit_scale.exp().item(),
    }
