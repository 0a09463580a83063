"""HPSv2 and v2.1: which image for a prompt people would prefer."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from evaluation.clip.models import load_clip
from evaluation.clip.pixels import resize_float
from rewards.builtin.prompts import prompts_of


class HPSv2:
    """float32 [B]: the cosine between image and prompt under a ViT-H/14 tuned on people's rankings; 0.2 to 0.35.

    Wu et al. 2023 (arXiv 2306.09341). As in the published code, images become numbers in [0, 1] first and are resized
    (bicubic, the shorter side to 224) as such, which is not what CLIP does. That code leaves antialiasing to torchvision's
    default for tensors, which is off before version 0.17 and on since; at 1024 pixels it changes the image. Prompts are cut
    after 77 tokens.
    """

    def __init__(
        self,
        *,
        model: str = "xswu/HPSv2",
        filename: str = "HPS_v2.1_compressed.pt",
        architecture: str = "ViT-H-14",
        antialias: bool = True,
        revision: str | None = None,
        sha256: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 32,
    ) -> None:
        """Load the model.

        Args:
            model: the file of weights, or a folder or hub repository that has it as `filename`: HPS_v2.1_compressed.pt, or
                HPS_v2_compressed.pt of version 2.0.
            architecture: as in `load_open_clip`. The others, and what is raised, are those of `load_clip`.
            antialias: false for the numbers of torchvision below 0.17.
        """
        self._clip = load_clip(
            model,
            architecture=architecture,
            quick_gelu=False,
            filename=filename,
            revision=revision,
            sha256=sha256,
            device=device,
            dtype=dtype,
        )
        self._batch_size = batch_size
        self._antialias = antialias

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights."""
        return self._clip.fingerprint

    def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        texts_BD = self._clip.encode_texts(prompts_of(conditions), batch_size=self._batch_size)
        images_BD = self._clip.encode_images(
            images, batch_size=self._batch_size, resize=partial(resize_float, antialias=self._antialias)
        )
        return (images_BD * texts_BD).sum(dim=-1)
