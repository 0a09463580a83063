"""The built-in rewards on two images, with weights that are the same everywhere: what they score is on record.

A library of another version that reads images or prompts in another way shows here, before it shows in a training.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rewards.base import DistributionReward, Reward
from rewards.registry import load_reward
from rewards.scoring import score_rewards
from rewards.tiny.scenes import ROW

FOLDER = Path(__file__).parent / "tiny"
IMAGES = ("picture.png", "sign.png")
STORED = Path(__file__).parent / "stored_scores.json"
PROMPT = 'a sign that says "STOP" behind a red ball'


@dataclass(frozen=True)
class Probe:
    """How a reward is tried.

    make: `module:function` that writes tiny weights into a folder and returns the reward's settings; empty for none.
    row: the dataset row of both images.
    images: `module:function` that draws them, uint8 [2, H, W, 3]; empty for the stored ones.
    size: pixels of each side, cut from the middle of the stored images.
    tolerance: how far a score may be from the stored one, as a share of it or of 1, whichever is larger.
    """

    make: str = ""
    row: Mapping[str, Any] = field(default_factory=lambda: {"prompt": PROMPT})
    images: str = ""
    size: int = 64
    tolerance: float = 1e-3


PROBES: dict[str, Probe] = {
    "aesthetic": Probe("rewards.tiny.clip:make_aesthetic"),
    "classifier-log-prob": Probe("rewards.tiny.classifier:make_classifier_log_prob", {"label": 3}, size=28),
    "clip-score": Probe("rewards.tiny.clip:make_clip_score"),
    "geneval": Probe("rewards.tiny.scenes:make_geneval", ROW, images="rewards.tiny.scenes:two_scenes"),
    "hpsv2": Probe("rewards.tiny.clip:make_hpsv2"),
    "image-reward": Probe("rewards.tiny.blip:make_image_reward"),
    # builds of the JPEG library differ by some bytes
    "jpeg-compressibility": Probe(tolerance=0.05),
    "jpeg-incompressibility": Probe(tolerance=0.05),
    "loo-fid": Probe("rewards.tiny.classifier:make_loo_fid", size=28),
    "ocr-text-match": Probe(),
    "pickscore": Probe("rewards.tiny.clip:make_pickscore"),
    "pixel-reconstruction": Probe(row={"image": str(FOLDER / IMAGES[0])}),
}
NOT_PROBED = {
    "image-reward-package": "it runs in an environment of its own",
    "vqa": "it asks a server",
    "vlm-judge": "it asks a server",
    "vlm-pairwise": "it asks a server",
}


def stored_images(size: int) -> Tensor:
    """Uint8 [2, S, S, 3]: the middle of the two stored images."""
    pictures = [np.array(Image.open(FOLDER / name).convert("RGB")) for name in IMAGES]
    images = torch.from_numpy(np.stack(pictures))
    start = (images.shape[1] - size) // 2
    return images[:, start : start + size, start : start + size].contiguous()


def probe(name: str, folder: Path) -> list[float]:
    """What a built-in reward scores its two images now.

    Args:
        folder: for its tiny weights.

    Raises:
        ValueError: it does not load or fails, such as for want of a package.
    """
    chosen = PROBES[name]
    settings: dict[str, Any] = _named(chosen.make)(folder / name) if chosen.make else {}
    images = _named(chosen.images)() if chosen.images else stored_images(chosen.size)
    reward = Reward(name, load_reward(name, **settings))
    return scores_of(reward, images, [chosen.row] * len(images)).tolist()


def _named(reference: str) -> Callable[..., Any]:
    module, _, function = reference.partition(":")
    return getattr(importlib.import_module(module), function)


def scores_of(reward: Reward, images: Tensor, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """Float32 [N] of a reward of any kind; what compares images takes all of them as one batch.

    Raises:
        RewardError: it failed for any of them.
    """
    scores = score_rewards([reward], images, rows, timeout=None, group_size=len(images)).checked()
    if isinstance(reward.function, DistributionReward):
        return reward.function.score(scores.features[reward.name]).float()
    return scores.values_NR[:, 0]


def stored_scores() -> dict[str, list[float]]:
    return json.loads(STORED.read_text())


def is_near(scores: list[float], stored: list[float], tolerance: float) -> bool:
    """Whether scores are the stored ones, within a share of their size or of 1."""
    near = np.abs(np.subtract(scores, stored)) <= tolerance * np.fmax(1, np.abs(stored))
    return bool(np.all(near | (np.isnan(scores) & np.isnan(stored))))
