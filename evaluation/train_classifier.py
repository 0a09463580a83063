"""Training of the small classifiers: under a minute on one CPU core, and the same weights for the same seed."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.classifier import DigitClassifier, check_images, check_labels, images_to_pixels

MAX_ROTATION = math.radians(10)
MAX_SHIFT = 1.5 / 14  # 1.5 pixels of 28, in grid_sample's [-1, 1]
MAX_SCALE = 0.1
NOISE_STD = 0.05
WEIGHT_DECAY = 1e-2
# Without it logits and features grow for as long as training lasts, and with them every Fréchet distance.
LABEL_SMOOTHING = 0.05


def train_classifier(
    images_NHW3: Tensor,
    labels_N: Tensor,
    *,
    architecture: str,
    seed: int,
    steps: int = 900,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    on_step: Callable[[int, float], None] | None = None,
) -> DigitClassifier:
    """Train a `DigitClassifier` with AdamW and a one-cycle learning rate on randomly moved and noised images.

    Deterministic given the arguments (on one machine and thread count); the global random state is left as it was.

    Args:
        images_NHW3: uint8 [N, 28, 28, 3].
        labels_N: integer class indices; the largest one sets the number of classes.
        architecture: a key of `evaluation.classifier.ARCHITECTURES`.
        seed: fixes initial weights, batches and augmentation.
        learning_rate: the peak of the cycle.
        on_step: called after each step with its index and its loss in nats.

    Raises:
        TypeError, ValueError: wrong images, labels, architecture, or no image at all.
    """
    check_images(images_NHW3)
    num_images = len(images_NHW3)
    if num_images == 0:
        raise ValueError("cannot train a classifier on 0 images")
    check_labels(labels_N, num_images)
    model = DigitClassifier(architecture, int(labels_N.max()) + 1, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    for step in range(steps):
        index_B = torch.randint(num_images, (batch_size,), generator=generator)
        pixels_B1HW = augment(images_to_pixels(images_NHW3[index_B]), generator)
        logits_BK = model.head(model.trunk(pixels_B1HW))
        loss = F.cross_entropy(logits_BK, labels_N[index_B].long(), label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if on_step is not None:
            on_step(step, loss.item())
    return model.requires_grad_(False)


def augment(pixels_B1HW: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift each image by its own small amount, then add Gaussian noise. Shape is kept.

    Generated digits are slightly off in place and shape; an extractor that has seen only clean ones overstates that.
    """
    batch = len(pixels_B1HW)

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(batch, generator=generator) - 1) * limit

    angle_B, scale_B = uniform(MAX_ROTATION), 1 + uniform(MAX_SCALE)
    cos_B, sin_B = scale_B * angle_B.cos(), scale_B * angle_B.sin()
    row_x = torch.stack([cos_B, -sin_B, uniform(MAX_SHIFT)], dim=1)
    row_y = torch.stack([sin_B, cos_B, uniform(MAX_SHIFT)], dim=1)
    grid_BHW2 = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(pixels_B1HW.shape), align_corners=False)
    moved_B1HW = F.grid_sample(pixels_B1HW, grid_BHW2, align_corners=False)
    return moved_B1HW + NOISE_STD * torch.randn(moved_B1HW.shape, generator=generator)
