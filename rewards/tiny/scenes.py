"""Two scenes of the shapes world, for rewards that look for objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.shapes_world import Shape, render

ROW = {
    "tag": "color_attr",
    "include": [
        {"class": "circle", "count": 1, "color": "red"},
        {"class": "square", "count": 1, "color": "blue", "position": ["right of", 0]},
    ],
    "prompt": "a photo of a red circle and a blue square",
}


def make_geneval(folder: Path) -> dict[str, Any]:
    """The settings of `geneval` in the shapes world, which needs no weights."""
    return {"detector": "shapes", "credit": "partial"}


def two_scenes() -> Tensor:
    """Uint8 [2, 32, 32, 3]: what ROW asks for; and with a green square, which leaves three of five demands met."""
    scenes = [[Shape("circle", "red", 2, 10, 10), Shape("square", color, 18, 12, 8)] for color in ("blue", "green")]
    return torch.from_numpy(np.stack([render(scene) for scene in scenes]))
