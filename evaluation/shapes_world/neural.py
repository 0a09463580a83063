"""The held-out judge of the shapes world: a small network that finds shapes and names their colours.

It shares nothing with the rules of `detector`: a generator that was rewarded by the one is judged by the other, so that
what deceives the rules does not read as an improvement.

    net = load_neural_shapes(path)              # or train_neural.train_neural(seed=0)
    detector = NeuralShapeDetector(net)         # an evaluation.geneval.Detector, name "shapes-neural"
    colors = NeuralShapeColors(net)             # an evaluation.geneval.ColorClassifier

Built like CenterNet (Zhou et al. 2019, arXiv 1904.07850): a map at half the image's resolution says for each cell of 2x2
pixels whether a shape has its centre there, which, how large, and of which colour.

Shapes: B batch, H height, W width of the image, h and w those of the map (half as many), C colours, K kinds of shapes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.classifier import check_images
from evaluation.geneval.detections import Detection
from evaluation.network_files import read_network, save_network
from evaluation.shapes_world.scenes import COLORS, SHAPES

CELL = 2  # pixels of the image along each side of a cell of the map
CHANNELS = 48
BLOCKS = 4  # 3x3 convolutions at half resolution: each cell sees 20 pixels, a shape and what is around it
SIZE_UNIT = 8.0  # pixels: sizes leave the network in this unit
_LOWEST_SCORE = 0.1  # of detections that are handed out
_NEIGHBOURS = 5  # cells: the better of two centres within 2 cells (4 pixels) stays; shapes are 7 pixels wide and more
_BATCH = 256  # images at once


class ShapeMaps(NamedTuple):
    """What the network says of each cell, float32.

    kind_B5hw: logits: no centre of a shape here, or of which of SHAPES.
    color_BChw: logits of COLORS for a shape whose centre is here.
    box_B4hw: (x, y) from the cell's middle to the shape's, and its (width, height), in pixels.
    """

    kind_B5hw: Tensor
    color_BChw: Tensor
    box_B4hw: Tensor


class NeuralShapes(nn.Module):
    """The network; `seed` fixes its initial weights."""

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(3, CHANNELS, 4, stride=CELL, padding=1)
            # No normalisation layers: what is seen in an image must not depend on its batch or on train/eval mode.
            self.blocks = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(BLOCKS))
            self.head = nn.Conv2d(CHANNELS, 1 + len(SHAPES) + len(COLORS) + 4, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, images_BHW3: Tensor) -> ShapeMaps:
        """uint8 [B, H, W, 3] from any device, both sides even.

        Raises:
            TypeError, ValueError: see `evaluation.classifier.check_images`; also for odd sides.
        """
        check_images(images_BHW3)
        height, width = images_BHW3.shape[1:3]
        if height % CELL or width % CELL or not height or not width:
            raise ValueError(f"images must have sides of a multiple of {CELL} pixels, got {height}x{width}; pad them")
        pixels = images_BHW3.to(self.head.weight.device).permute(0, 3, 1, 2).float() / 255
        return self.look(pixels)

    def look(self, pixels_B3HW: Tensor) -> ShapeMaps:
        """Float32 in about [0, 1]; training enters here, after its augmentation."""
        x = F.relu(self.stem(2 * pixels_B3HW - 1))
        for convolution in self.blocks:
            x = x + F.relu(convolution(x))
        kind, color, offset, size = self.head(x).float().split([1 + len(SHAPES), len(COLORS), 2, 2], dim=1)
        return ShapeMaps(kind, color, torch.cat([CELL * offset, SIZE_UNIT * (1 + size)], dim=1))

    @property
    def fingerprint(self) -> str:
        """16 hex digits of a sha256 over every weight: equal only for equal verdicts."""
        digest = hashlib.sha256(FILE_FORMAT.encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


class NeuralShapeDetector:
    """An `evaluation.geneval.Detector`: one shape at each peak of the map, its confidence the probability there."""

    name = "shapes-neural"
    labels: Sequence[str] = SHAPES

    def __init__(self, net: NeuralShapes) -> None:
        self.net = net

    @property
    def fingerprint(self) -> str:
        """Of the network's weights."""
        return self.net.fingerprint

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """Images may differ in size.

        Raises:
            TypeError, ValueError: images that are not uint8 [H, W, 3] with even sides.
        """
        return [found for batch in _batches(images) for found in _read(self.net(batch))]


class NeuralShapeColors:
    """An `evaluation.geneval.ColorClassifier`: the colour that the network sees at the middle of each box."""

    colors: Sequence[str] = tuple(COLORS)

    def __init__(self, net: NeuralShapes) -> None:
        self.net = net

    @property
    def fingerprint(self) -> str:
        """Of the network's weights."""
        return self.net.fingerprint

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, detections: Sequence[Detection], label: str) -> list[str]:
        if not detections:
            return []
        color_Chw = self.net(torch.tensor(image)[None]).color_BChw[0].cpu()
        height, width = color_Chw.shape[1:]
        names = []
        for left, top, right, bottom in (detection.box for detection in detections):
            row = min(max(int((top + bottom) / 2 / CELL), 0), height - 1)
            column = min(max(int((left + right) / 2 / CELL), 0), width - 1)
            names.append(self.colors[int(color_Chw[:, row, column].argmax())])
        return names


def _batches(images: Sequence[np.ndarray]) -> Iterator[Tensor]:
    """Neighbours of one size together, uint8 [B, H, W, 3]."""
    for _, group in groupby(images, key=np.shape):
        alike = list(group)
        for start in range(0, len(alike), _BATCH):
            yield torch.from_numpy(np.stack(alike[start : start + _BATCH]))


def _read(maps: ShapeMaps) -> list[list[Detection]]:
    """The peaks of each image."""
    # peaks are sought in log odds: probabilities near 1 round to the same number
    odds_Bhw = maps.kind_B5hw[:, 1:].amax(dim=1) - maps.kind_B5hw[:, 0]
    highest_Bhw = F.max_pool2d(odds_Bhw[:, None], _NEIGHBOURS, stride=1, padding=_NEIGHBOURS // 2)[:, 0]
    score_Bhw, label_Bhw = maps.kind_B5hw.softmax(dim=1)[:, 1:].max(dim=1)
    peaks_N3 = ((odds_Bhw == highest_Bhw) & (score_Bhw > _LOWEST_SCORE)).nonzero()
    found: list[list[Detection]] = [[] for _ in range(len(odds_Bhw))]
    for image, row, column in peaks_N3.tolist():
        x, y, width, height = maps.box_B4hw[image, :, row, column].tolist()
        x, y = x + (column + 0.5) * CELL, y + (row + 0.5) * CELL
        width, height = max(width, 0.0), max(height, 0.0)
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        label, score = SHAPES[int(label_Bhw[image, row, column])], float(score_Bhw[image, row, column])
        found[image].append(Detection(label, score, box))
    return found


FILE_FORMAT = "ar-align-neural-shapes-1"


def save_neural_shapes(net: NeuralShapes, path: str | Path) -> None:
    """Write the weights; atomic."""
    save_network(net, path, FILE_FORMAT)


def load_neural_shapes(path: str | Path) -> NeuralShapes:
    """Read a file written by `save_neural_shapes`; the network comes back on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, not this network's, or weights that do not fit it.
    """
    tensors, _ = read_network(path, FILE_FORMAT, what="judge of shapes")
    net = NeuralShapes()
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} is a damaged judge of shapes: {error}; write it again") from error
    return net.requires_grad_(False)
