"""An extractor so small that every feature is known, and images for it."""

from __future__ import annotations

import torch

from evaluation import ExtractorOutput


class ChannelMeans:
    """Features: the mean of each channel, in [0, 1]. Logits: the same, so that the class is the strongest channel.

    Spatial: the channels of the first pixel.
    """

    name = "channel-means"
    fingerprint = "0123456789abcdef"

    def __call__(self, images_bhw3: torch.Tensor) -> ExtractorOutput:
        features_bd = images_bhw3.float().mean(dim=(1, 2)) / 255
        return ExtractorOutput(features_bd, 10 * features_bd, images_bhw3[:, 0, 0].float() / 255)


def images_and_labels(num_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat colour fields, labelled by their strongest channel."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (num_images, 1, 1, 3), dtype=torch.uint8, generator=generator)
    return colours.repeat(1, 2, 2, 1), colours.flatten(1).long().argmax(dim=1)
