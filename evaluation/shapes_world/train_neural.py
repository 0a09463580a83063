"""Training of the shapes world's held-out judge: about three minutes on one CPU core, and the same weights for the same seed.

Shapes: B batch, H height, W width of the image, h and w those of the network's map, N things in an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.shapes_world.neural import CELL, NeuralShapes, ShapeMaps
from evaluation.shapes_world.practice import NONE, UNDECIDED, Truth, practice_scene
from evaluation.shapes_world.prompts import all_rows

SCENES = 16_384  # that are drawn; each comes again in other disguises
LEARNING_RATE = 3e-3  # the peak of the cycle
WEIGHT_DECAY = 1e-2
# pixels in x and y from a thing's middle: the cells up to the first are a shape's centre, those up to the second are not
# asked; of a thing that is no shape all up to the second are to say so, since it could be taken for one off its middle
_CENTRE, _AROUND = 1.25, 3.75
_SHAPE_WEIGHT, _BROKEN_WEIGHT = 10.0, 10.0  # of their cells, against 1 for a cell of the ground
_BOX_WEIGHT = 0.2
_PAD = -2  # kind of the things that fill up a scene's list


def train_neural(
    *, seed: int, steps: int = 1800, batch_size: int = 64, on_step: Callable[[int, float], None] | None = None
) -> NeuralShapes:
    """Train a `NeuralShapes` with AdamW and a one-cycle learning rate on practice scenes that are shifted, bent, blurred,
    tinted and noised at random.

    Deterministic given the arguments (on one machine and thread count); the global random state is left as it was.

    Args:
        seed: fixes initial weights, scenes, batches and augmentation.
        on_step: called after each step with its index and its loss.

    Raises:
        ValueError: no step, or batches of nothing.
    """
    if steps < 1 or batch_size < 1:
        raise ValueError(f"training needs at least 1 step of 1 image, got {steps} steps of {batch_size}")
    images_NHW3, truths_NT6 = _scenes(min(SCENES, steps * batch_size), seed)
    net = NeuralShapes(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    for step in range(steps):
        index_B = torch.randint(len(images_NHW3), (batch_size,), generator=generator)
        pixels_B3HW, shift_B2 = augment(images_NHW3[index_B].permute(0, 3, 1, 2).float() / 255, generator)
        truths_BT6 = truths_NT6[index_B].clone()
        truths_BT6[..., 1:3] += shift_B2[:, None]
        loss = shapes_loss(net.look(pixels_B3HW), truths_BT6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if on_step is not None:
            on_step(step, loss.item())
    return net.requires_grad_(False)


def _scenes(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, H, W, 3] and their truths float32 [N, T, 6], filled up to as many things for each."""
    rng, rows = np.random.default_rng(seed), all_rows()
    images, truths = zip(*(practice_scene(rows, rng) for _ in range(number)), strict=True)
    return torch.from_numpy(np.stack(images)), as_tensor(truths)


def as_tensor(truths: Sequence[Sequence[Truth]]) -> Tensor:
    """Float32 [N, T, 6]: kind, x, y, width, height, colour, of T things each, where the missing have the kind -2."""
    filled = np.zeros((len(truths), max(1, *map(len, truths)), 6), dtype=np.float32)
    filled[..., 0] = _PAD
    for row, things in zip(filled, truths, strict=True):
        row[: len(things)] = np.reshape(things, (-1, 6))
    return torch.from_numpy(filled)


def augment(pixels_B3HW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What tokenizers and generators do to pixels, in another strength for each image, none for a quarter of them.

    Shifted by a part of a pixel, bent smoothly or block by block, blurred, tinted, with noise in pixels and in blocks.

    Returns:
        The pixels, float32 [B, 3, H, W] in about [0, 1], and how far they were moved in (x, y), in pixels [B, 2].
    """
    batch, _, height, width = pixels_B3HW.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    def amount(highest: float) -> Tensor:
        return highest * strength_B111 * uniform(1, 1, 1)

    strength_B111 = (uniform(1, 1, 1) / 0.75 - 1 / 3).clamp(min=0)
    coarse = (height // 4, width // 4)
    shift_B2 = (uniform(2) - 0.5) * (strength_B111 > 0).view(batch, 1)
    bend_B2hw = amount(0.7) * normal(2, *coarse)
    smooth = F.interpolate(bend_B2hw, (height, width), mode="bilinear")
    blockwise = F.interpolate(bend_B2hw, (height, width), mode="nearest")
    offset_B2HW = torch.where(uniform(1, 1, 1) < 0.5, smooth, blockwise) - shift_B2[:, :, None, None]
    unit = torch.tensor([2 / width, 2 / height])  # of a pixel, in grid_sample's [-1, 1]
    still = F.affine_grid(torch.eye(2, 3).expand(batch, 2, 3), list(pixels_B3HW.shape), align_corners=False)
    grid_BHW2 = still + offset_B2HW.permute(0, 2, 3, 1) * unit
    x = F.grid_sample(pixels_B3HW, grid_BHW2, padding_mode="border", align_corners=False)
    x = torch.lerp(x, F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1), amount(1.0))
    x = x * (1 + amount(0.1) * normal(3, 1, 1)) + amount(0.06) * normal(3, 1, 1)
    blocks = F.interpolate(normal(3, *coarse), (height, width), mode="nearest")
    return x + amount(0.15) * normal(3, height, width) + amount(0.06) * blocks, shift_B2


def shapes_loss(maps: ShapeMaps, truths_BT6: Tensor) -> Tensor:
    """Cross-entropy of the kinds at all cells, of the colours at the centres of shapes, and the error of their boxes.

    The centres of things that are no shapes weigh as much as those of shapes, else half a shape would pass for one.
    """
    kinds_Bhw, weights_Bhw, owner_Bhw = targets(truths_BT6, *maps.kind_B5hw.shape[2:])
    losses_Bhw = F.cross_entropy(maps.kind_B5hw, kinds_Bhw, reduction="none")
    kind_loss = (losses_Bhw * weights_Bhw).sum() / weights_Bhw.sum()
    image, row, column = (kinds_Bhw > 0).nonzero(as_tuple=True)
    if not len(image):
        return kind_loss
    truth_M6 = truths_BT6[image, owner_Bhw[image, row, column]]
    color_loss = F.cross_entropy(maps.color_BChw[image, :, row, column], truth_M6[:, 5].long())
    middle_M2 = (torch.stack([column, row], dim=1) + 0.5) * CELL
    box_M4 = torch.cat([truth_M6[:, 1:3] - middle_M2, truth_M6[:, 3:5]], dim=1)
    box_loss = F.smooth_l1_loss(maps.box_B4hw[image, :, row, column], box_M4)
    return kind_loss + color_loss / 10 + _BOX_WEIGHT * box_loss


def targets(truths_BT6: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each cell of a map: the kind int64 [B, h, w], its weight, and the index of the thing that has its centre there.

    Where things are on top of each other the whole shape wins, then what is undecided.
    """
    batch = len(truths_BT6)
    kinds = torch.full((batch, height, width), NONE)
    weights = torch.ones(batch, height, width)
    owners = torch.zeros(batch, height, width, dtype=torch.long)
    y_h, x_w = ((torch.arange(length) + 0.5) * CELL for length in (height, width))
    kind_BT = truths_BT6[..., 0].long()
    across_BThw = (x_w - truths_BT6[..., 1, None, None]).abs().expand(-1, -1, height, -1)
    distance_BThw = across_BThw.maximum((y_h[:, None] - truths_BT6[..., 2, None, None]).abs())
    for chosen_BT, radius, weight in (
        (kind_BT == NONE, _AROUND, _BROKEN_WEIGHT),
        (kind_BT == UNDECIDED, _AROUND, 0.0),
        (kind_BT > 0, _CENTRE, _SHAPE_WEIGHT),
    ):
        for index in range(kind_BT.shape[1]):
            here_B11, distance_Bhw = chosen_BT[:, index, None, None], distance_BThw[:, index]
            centre = here_B11 & (distance_Bhw <= radius)
            around = here_B11 & (distance_Bhw <= _AROUND) & ~centre
            kinds = torch.where(centre, kind_BT[:, index, None, None].clamp(min=NONE), kinds)
            owners = torch.where(centre, index, owners)
            weights = torch.where(centre, weight, torch.where(around, 0.0, weights))
    return kinds, weights, owners
