"""DINOv2's CLS token, as dgm-eval takes it for FD-DINOv2.

Shapes: B batch, H/W of images, P pixels of a side, G patches of a side, T tokens, D feature dim.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluation.clip.open_clip_files import shown
from evaluation.devices import pick_device
from evaluation.features.arithmetic import plain_float32
from evaluation.features.base import ExtractorOutput
from evaluation.features.resize import resize_images
from evaluation.weights import find_file, find_folder, sha256_of_file, weights_in

IMAGE_SIZE = 224
MEAN = (0.485, 0.456, 0.406)  # of ImageNet
STD = (0.229, 0.224, 0.225)
PREPROCESSING = "dinov2:pil-bicubic-224:imagenet:positions+0.1"
PATTERNS = ("*.json", "model.safetensors")
SHAPELESS = ("num_attention_heads", "hidden_act", "layer_norm_eps")  # settings that no tensor's shape tells


class Dinov2Extractor:
    """An `Extractor`: the CLS token after the last normalisation.

    As dgm-eval (arXiv 2306.04675) by default: Pillow's bicubic of the whole image to 224x224, in whole levels; mean and
    standard deviation of ImageNet; position embeddings interpolated as the published code does, which transformers'
    own interpolation is only near to.

    Args:
        path: a folder or a repository of the hub with transformers' config.json and model.safetensors or
            pytorch_model.bin; dgm-eval's model is facebook/dinov2-large.
        revision, sha256, download: as in `evaluation.weights.find_file`; the hash is of the file of weights.
        device: as in `evaluation.devices.pick_device`.

    Raises:
        FileNotFoundError: no such folder or repository, or no weights in it.
        ValueError: another hash, a model of another type, or weights that do not fit.
    """

    name = "dinov2"

    def __init__(
        self,
        path: str | Path,
        *,
        revision: str | None = None,
        sha256: str | None = None,
        download: bool = True,
        device: str = "auto",
    ) -> None:
        self.device = pick_device(device)
        folder = find_folder(str(path), revision=revision, patterns=PATTERNS, download=download)
        weights = weights_in(folder)
        if weights is None:
            raise FileNotFoundError(
                f"{folder} has neither model.safetensors nor pytorch_model.bin, as folders of transformers have"
            )
        find_file(str(weights), sha256=sha256)
        model = _load(folder)
        settings = {name: getattr(model.config, name) for name in SHAPELESS}
        identity = f"{PREPROCESSING}:{json.dumps(settings, sort_keys=True)}:{sha256_of_file(weights)}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
        patches = IMAGE_SIZE // model.config.patch_size
        embeddings = model.embeddings
        # with as many positions as there are patches, transformers leaves them as they are
        embeddings.position_embeddings = nn.Parameter(interpolate_positions(embeddings.position_embeddings, patches))
        self._model = model.eval().requires_grad_(False).to(self.device)

    def __call__(self, images_BHW3: Tensor, /) -> ExtractorOutput:
        """float32 features, on the extractor's device, of uint8 [B, H, W, 3]."""
        pixels_B3PP = preprocess(images_BHW3).to(self.device)
        with plain_float32(self.device):
            return ExtractorOutput(self._model(pixel_values=pixels_B3PP).last_hidden_state[:, 0])


def preprocess(images_BHW3: Tensor) -> Tensor:
    """float32 [B, 3, 224, 224], on the CPU, of uint8 [B, H, W, 3]: see `Dinov2Extractor`."""
    pixels_B3PP = resize_images(images_BHW3, IMAGE_SIZE, "bicubic").permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    return (pixels_B3PP - mean) / std


@torch.no_grad()
def interpolate_positions(positions_1TD: Tensor, patches: int) -> Tensor:
    """[1, 1 + patches^2, D] of [1, 1 + G^2, D]: bicubic, in a grid that is stretched by 0.1 of a patch.

    What dinov2/models/vision_transformer.py does. The 0.1 was to keep a rounding error from losing a patch, but torch
    takes the positions of its samples from it too, and published features have it in them.
    """
    grid = math.isqrt(positions_1TD.shape[1] - 1)
    if grid == patches:
        return positions_1TD
    stretch = (patches + 0.1) / grid
    grid_1DGG = positions_1TD[:, 1:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    scaled_1DGG = functional.interpolate(grid_1DGG, scale_factor=(stretch, stretch), mode="bicubic")
    return torch.cat([positions_1TD[:, :1], scaled_1DGG.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _load(folder: Path) -> Any:
    from transformers import Dinov2Model

    config = json.loads(find_file(str(folder), filename="config.json").read_text())
    if (kind := config.get("model_type")) != "dinov2":
        raise ValueError(
            f"{folder} holds a model of type {kind!r}; a DINOv2 without registers is needed ('dinov2' in its config.json), such as facebook/dinov2-large"
        )
    if IMAGE_SIZE % config.get("patch_size", 14):
        raise ValueError(f"the patches of {folder} are of {config['patch_size']} pixels; they must divide {IMAGE_SIZE}")
    loaded: Any = Dinov2Model.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    model, report = loaded
    misshaped = [name for name, *_ in report["mismatched_keys"]]
    if report["missing_keys"] or report["unexpected_keys"] or misshaped:
        raise ValueError(
            f"the weights in {folder} are no DINOv2 of its config.json: missing {shown(report['missing_keys'])}; unexpected {shown(report['unexpected_keys'])}; of another shape {shown(misshaped)}"
        )
    return model
