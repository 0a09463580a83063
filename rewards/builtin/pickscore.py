"""PickScore: which of two images for a prompt people would pick."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from evaluation.clip.models import load_clip
from evaluation.clip.pixels import resize_pil
from rewards.builtin.prompts import prompts_of


class PickScore:
    """float32 [B]: exp(logit_scale) times the cosine between image and prompt, under a CLIP-H tuned on people's choices.

    Kirstain et al. 2023 (arXiv 2305.01569), the number that the published code has before its softmax over the images of a
    prompt: 18 to 24, and one more is odds of e. (Others divide it by 26.) Prompts are cut after 77 tokens.
    """

    def __init__(
        self,
        *,
        model: str = "yuvalkirstain/PickScore_v1",
        tokenizer: str | None = None,
        revision: str | None = None,
        sha256: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 32,
    ) -> None:
        """Load the model.

        Args:
            model: folder or hub repository of transformers.
            tokenizer: folder or repository of the tokenizer, where `model` has none. The others, and what is raised, are
                those of `load_clip`.
        """
        self._clip = load_clip(model, tokenizer=tokenizer, revision=revision, sha256=sha256, device=device, dtype=dtype)
        self._batch_size = batch_size

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights."""
        return self._clip.fingerprint

    def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        texts_BD = self._clip.encode_texts(prompts_of(conditions), batch_size=self._batch_size)
        images_BD = self._clip.encode_images(
            images, batch_size=self._batch_size, resize=partial(resize_pil, round_down=True)
        )
        return self._clip.scale * (images_BD * texts_BD).sum(dim=-1)
