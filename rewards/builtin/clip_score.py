"""CLIP score: how well an image fits its prompt."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evaluation.clip.models import load_clip
from rewards.builtin.prompts import prompts_of


class ClipScore:
    """float32 [B]: the cosine between the embeddings of image and prompt; real pairs are at 0.2 to 0.36.

    Hessel et al. 2021 (arXiv 2104.08718) report max(0, 2.5 cos) with ViT-B/32, torchmetrics max(0, 100 cos). Neither the cut
    nor the factor is made here; the factor is the reward's weight. Images are resized (Pillow's bicubic, the shorter side) and
    cut to the model's square; prompts are cut after 77 tokens. A judge of CLIP's own family does not show what training on this
    has spoiled.
    """

    def __init__(
        self,
        *,
        model: str = "openai/clip-vit-large-patch14",
        architecture: str | None = None,
        quick_gelu: bool | None = None,
        filename: str | None = None,
        revision: str | None = None,
        sha256: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 32,
    ) -> None:
        """Load the model.

        Args:
            model: a folder or hub repository of transformers; with `architecture` a file of open_clip's weights, or the
                repository that has it as `filename`. The others, and what is raised, are those of `load_clip`.
        """
        self._clip = load_clip(
            model,
            architecture=architecture,
            quick_gelu=quick_gelu,
            filename=filename,
            revision=revision,
            sha256=sha256,
            device=device,
            dtype=dtype,
        )
        self._batch_size = batch_size

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights."""
        return self._clip.fingerprint

    def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        texts_BD = self._clip.encode_texts(prompts_of(conditions), batch_size=self._batch_size)
        return (self._clip.encode_images(images, batch_size=self._batch_size) * texts_BD).sum(dim=-1)
