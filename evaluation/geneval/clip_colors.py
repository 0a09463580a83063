"""The colours of objects by CLIP, as the published GenEval names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from evaluation.clip.models import load_clip
from evaluation.clip.pixels import resize_each
from evaluation.geneval.coco import COLORS
from evaluation.geneval.detections import Detection, object_crop

TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")


class ClipColors:
    """An `evaluation.geneval.ColorClassifier`: of ten colours the one whose sentences a crop is nearest to.

    A crop is an object's box, grey around its mask. A colour's vector is the mean of three sentences' embeddings, each of
    length 1, brought to length 1 again; the colour of the largest cosine is the answer. Here all is computed in float32. The
    authors' tool runs under autocast, so that a crop between two colours may get the other one there; dtype=float16 on a GPU
    is nearer to it.

    Args:
        path: a file of open_clip's weights (.safetensors, or torch.save's of tensors alone), a folder of transformers
            (openai/clip-vit-large-patch14, which the authors' weights are), or such a name, if the Hugging Face cache of
            this machine holds it. Nothing is downloaded.
        model: architecture of a file. OpenAI's weights were trained with QuickGELU: under the plain name the same file
            would load, and name colours wrongly without a sign of it, so plain names are refused where both exist.
        quick_gelu: the activation, for files of others than OpenAI under a plain name, such as False for LAION's.
        colors: the names to choose from.
        device, dtype: as in `evaluation.devices`.
        batch_size: crops at once.

    Raises:
        FileNotFoundError: no such file, folder, or name in the cache.
        ValueError: weights that do not fit, an activation that was not told, no colours; the package open_clip is missing.
    """

    name = "clip"

    def __init__(
        self,
        path: Path | str,
        *,
        model: str = "ViT-L-14-quickgelu",
        quick_gelu: bool | None = None,
        colors: Sequence[str] = COLORS,
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 64,
    ) -> None:
        if not colors:
            raise ValueError("there are no colours to choose from; leave colors= out for GenEval's ten")
        is_file = Path(path).expanduser().is_file()
        self.colors = tuple(colors)
        self._clip = load_clip(
            str(path),
            architecture=model if is_file else None,
            quick_gelu=quick_gelu,
            download=False,
            device=device,
            dtype=dtype,
        )
        self._batch_size = batch_size
        self._vectors: dict[str, Tensor] = {}
        settings = [self._clip.fingerprint, model if is_file else "", quick_gelu, self.colors, str(self._clip.dtype)]
        self.fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]

    def __call__(self, image: np.ndarray, detections: Sequence[Detection], label: str) -> list[str]:
        """One colour for each object of an image uint8 [H, W, 3]."""
        crops = [torch.from_numpy(object_crop(image, detection).copy()) for detection in detections]
        crops_ND = self._clip.encode_images(crops, batch_size=self._batch_size, resize=resize_each)
        return [self.colors[index] for index in (crops_ND @ self._colors_of(label).T).argmax(dim=1).tolist()]

    def _colors_of(self, label: str) -> Tensor:
        """float32 [C, D]: a vector for each colour, of length 1; computed once for each class."""
        if label not in self._vectors:
            texts = [template.format(color=color, label=label) for color in self.colors for template in TEMPLATES]
            texts_CTD = self._clip.encode_texts(texts, batch_size=self._batch_size).unflatten(0, (-1, len(TEMPLATES)))
            self._vectors[label] = functional.normalize(texts_CTD.mean(dim=1), dim=-1)
        return self._vectors[label]
