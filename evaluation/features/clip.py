"""CLIP's image embeddings, as CMMD takes them. B batch, H/W of images, P pixels of a side, D width of the embedding."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import Tensor

from evaluation.classifier import check_images
from evaluation.clip import ClipModel, load_clip
from evaluation.features.arithmetic import plain_float32
from evaluation.features.base import ExtractorOutput
from evaluation.features.resize import resize_images

PREPROCESSING = "clip:middle-square:pil-bicubic:unit-length"


class ClipExtractor:
    """An `Extractor`: image embeddings of length 1.

    As in CMMD (arXiv 2401.09603, google-research/cmmd): the largest square in the middle, Pillow's bicubic to the
    model's size in whole levels, CLIP's mean and standard deviation, and embeddings divided by their length.

    Args:
        path: as `model` of `evaluation.clip.load_clip`; CMMD's model is ViT-L/14 at 336 pixels,
            openai/clip-vit-large-patch14-336.
        architecture, quick_gelu, filename, tokenizer, revision, sha256, download: as in `load_clip`.
        device: as in `evaluation.devices.pick_device`.

    Raises:
        FileNotFoundError, ValueError: as `load_clip`.
    """

    name = "clip"

    def __init__(
        self,
        path: str | Path,
        *,
        architecture: str | None = None,
        quick_gelu: bool | None = None,
        filename: str | None = None,
        tokenizer: str | None = None,
        revision: str | None = None,
        sha256: str | None = None,
        download: bool = True,
        device: str = "auto",
    ) -> None:
        self._clip = load_clip(
            str(path),
            architecture=architecture,
            quick_gelu=quick_gelu,
            filename=filename,
            tokenizer=tokenizer,
            revision=revision,
            sha256=sha256,
            download=download,
            device=device,
            dtype="float32",
        )
        self.weights_fingerprint = self._clip.fingerprint  # what rewards with the same model call theirs
        identity = f"{PREPROCESSING}:{_settings(self._clip, architecture, quick_gelu)}:{self._clip.fingerprint}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]

    def __call__(self, images_BHW3: Tensor, /) -> ExtractorOutput:
        """float32 features, on the CPU, of uint8 [B, H, W, 3]."""
        check_images(images_BHW3)
        with plain_float32(self._clip.device):
            embeddings_BD = self._clip.encode_images(
                images_BHW3, batch_size=max(1, len(images_BHW3)), resize=resize_middle
            )
        return ExtractorOutput(embeddings_BD)


def resize_middle(images_BHW3: Tensor, size: int) -> Tensor:
    """float32 [B, 3, size, size] in [0, 1]: the square in the middle is cut out first, then resized.

    `evaluation.clip.pixels.resize_pil`, for scores, resizes first; the two are the same for square images.
    """
    height, width = images_BHW3.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    squares_BPP3 = images_BHW3[:, top : top + side, left : left + side]
    return resize_images(squares_BPP3, size, "bicubic").permute(0, 3, 1, 2) / 255


def _settings(clip: ClipModel, architecture: str | None, quick_gelu: bool | None) -> str:
    """What the numbers depend on besides the weights: heads and activation, in whatever way they are told."""
    if architecture is None:
        vision = json.loads((clip.weights.parent / "config.json").read_text()).get("vision_config", {})
        told = {name: vision.get(name) for name in ("hidden_act", "num_attention_heads", "layer_norm_eps")}
        return json.dumps(told, sort_keys=True)
    if architecture.endswith(".json"):
        return f"{json.loads(Path(architecture).expanduser().read_text())}:{quick_gelu}"
    return f"{architecture.removesuffix('-quickgelu')}:{bool(quick_gelu) or architecture.endswith('-quickgelu')}"
