"""Perceptual distances between images: differentiable functions of float [N, 3, H, W] in [-1, 1], twice, to [N]."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from evaluation.classifier import load_classifier

Distance = Callable[[Tensor, Tensor], Tensor]
KINDS = ("classifier", "lpips")


def load_distance(kind: str, weights: str) -> Distance:
    """A perceptual distance by name.

    Args:
        kind: `classifier`: mean squared error in a digit classifier's penultimate features. `lpips`: LPIPS (Zhang et
            al. 2018, arXiv 1801.03924) with VGG-16, by the package lpips.
        weights: the classifier's file; for lpips the trunk's, as torchvision publishes VGG-16 (a state_dict).

    Raises:
        ValueError: an unknown kind, a file that is not what it should be, or lpips is not installed.
        FileNotFoundError: no such file.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown perceptual distance {kind!r}; known: {', '.join(KINDS)}")
    return {"classifier": _classifier, "lpips": _lpips}[kind](weights)


def _classifier(weights: str) -> Distance:
    model = load_classifier(weights).eval().requires_grad_(False)

    def distance(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
        model.to(a_NCHW.device)
        features = [model.classify_pixels((x.mean(1, keepdim=True) + 1) / 2).features_BD for x in (a_NCHW, b_NCHW)]
        return (features[0] - features[1]).square().mean(dim=1)

    return distance


def _lpips(weights: str) -> Distance:
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise ValueError("LPIPS comes with the package lpips; try: pip install 'ar-align[lpips]'") from error
    if not Path(weights).exists():
        raise FileNotFoundError(f"no VGG-16 weights at {weights}; LPIPS needs torchvision's file of them")
    # the linear heads come with the package; its trunk would be downloaded, so it is random until ours is put in
    model = LPIPS(net="vgg", pnet_rand=True, verbose=False).eval().requires_grad_(False)
    given = torch.load(weights, map_location="cpu", weights_only=True)
    state = {name: f"features.{name.split('.', 1)[1]}" for name in model.net.state_dict()}
    if missing := [source for source in state.values() if source not in given]:
        raise ValueError(f"{weights} is no VGG-16 of torchvision: it lacks {', '.join(missing[:3])}")
    model.net.load_state_dict({name: given[source] for name, source in state.items()})

    def distance(a_NCHW: Tensor, b_NCHW: Tensor) -> Tensor:
        return model.to(a_NCHW.device)(a_NCHW, b_NCHW).flatten()

    return distance
