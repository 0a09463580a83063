"""LAION's aesthetic predictors: how much people would like an image, whatever it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.clip.models import load_clip
from evaluation.clip.open_clip_files import read_tensors
from evaluation.weights import find_file, fingerprint_of

LAYERS = (0, 2, 4, 6, 7)  # of the second predictor; dropout has the numbers between


class AestheticScore:
    """float32 [B]: an affine function of the image's CLIP embedding of length 1, in points of 10; 4 to 7 for most images.

    The two published predictors: v1 (LAION-AI/aesthetic-predictor, sa_0_4_vit_l_14_linear.pth and those of B/32 and B/16)
    is one linear layer; v2 (improved-aesthetic-predictor, sac+logos+ava1-l14-linearMSE.pth) is five with nothing between,
    which are one as well. Both read OpenAI's CLIP models, the second its ViT-L/14. Reads no row of `conditions`.
    """

    def __init__(
        self,
        *,
        head: str,
        head_sha256: str | None = None,
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
        """Load the CLIP model and the predictor.

        Args:
            head: the predictor's file.
            head_sha256: its hash; None takes any.
            model: the CLIP model that the predictor was trained on. The others are as in `load_clip`.

        Raises:
            FileNotFoundError, ValueError: as `load_clip`; a head of another layout or for another width.
        """
        self._head = find_file(head, sha256=head_sha256)
        self._weight_D, self._bias = _affine(self._head)
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
        if len(self._weight_D) != self._clip.width:
            raise ValueError(
                f"{head} reads embeddings of {len(self._weight_D)} numbers, but {model} makes {self._clip.width}; take the CLIP that it was trained on (768 is ViT-L/14)"
            )
        self._batch_size = batch_size

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the weights of both."""
        return fingerprint_of([self._clip.weights, self._head])

    def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        embeddings_BD = self._clip.encode_images(images, batch_size=self._batch_size)
        return embeddings_BD @ self._weight_D + self._bias


def _affine(path: Path) -> tuple[Tensor, float]:
    """Weights [D] and bias of the whole predictor, multiplied out in float64."""
    state = read_tensors(path)
    names = [f"layers.{index}." for index in LAYERS] if "layers.0.weight" in state else [""]
    expected = {f"{name}{part}" for name in names for part in ("weight", "bias")}
    if state.keys() != expected:
        raise ValueError(
            f"{path} is no aesthetic predictor of LAION: it has {', '.join(sorted(state)) or 'nothing'}; expected are weight and bias, or those of layers {', '.join(map(str, LAYERS))}. (Others have activations between their layers, and are not one linear function)"
        )
    width = state[f"{names[0]}weight"].shape[1]
    weight, bias = torch.eye(width).double(), torch.zeros(width).double()
    for name in names:
        layer = state[f"{name}weight"].double()
        weight, bias = layer @ weight, layer @ bias + state[f"{name}bias"].double()
    return weight[0].float(), float(bias[0])
