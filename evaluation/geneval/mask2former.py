"""GenEval's kind of detector without its environment: Mask2Former by transformers, read from its raw logits.

The published evaluation runs mmdetection's Mask2Former with a Swin-S backbone. The weights that transformers can read are
another training of the same architecture, so that scores are near the published ones and not them: they are named `geneval-hf`
until somebody has calibrated them (docs/geneval.md). What can be equal is: resizing, padding, the pairs of query and class
that are looked at, their scores, masks at the image's size, tight boxes.

Shapes: B batch, Q query, K classes (and one more for "nothing"), N detections, H and W of masks or images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from evaluation.clip.open_clip_files import shown
from evaluation.devices import pick_device, pick_dtype
from evaluation.geneval.coco import COCO_NAMES
from evaluation.geneval.coco_labels import coco_labels
from evaluation.geneval.detections import Detection
from evaluation.geneval.frames import Frame, frame_of, pixels_of
from evaluation.weights import find_folder, sha256_of_file, weights_in

PAIRS = 100  # of query and class, the most probable of an image
PATTERNS = ("config.json", "model.safetensors")


class Mask2FormerDetector:
    """An `evaluation.geneval.Detector` of COCO's 80 classes under GenEval's names, with masks.

    Args:
        path: a folder with config.json and weights of transformers' Mask2FormerForUniversalSegmentation (the published
            facebook/mask2former-swin-small-coco-instance); or such a name, if the Hugging Face cache of this machine holds it.
            Nothing is downloaded.
        revision: commit, tag or branch, of a name in the cache.
        size: images are resized to this shorter edge in pixels, or as far as the longer edge allows. What a folder's own
            preprocessor_config.json says of sizes is not read; some say 384, which finds less.
        device: as in `evaluation.devices`.
        dtype: float32 is what thresholds were chosen with; `auto`, bfloat16 and float16 compute in less by autocast.
        batch_size: images of one size that go through the network at once.
        score_floor: what scores no more is not given; a scorer with a lower threshold than GenEval's 0.3 needs a lower one.

    Raises:
        FileNotFoundError: no such folder, nor a model of that name in the cache, or no weights in it.
        ValueError: another model, weights that do not fit, classes that are not COCO's 80, or settings out of range.
    """

    name = "geneval-hf"
    labels: Sequence[str] = COCO_NAMES

    def __init__(
        self,
        path: Path | str,
        *,
        revision: str | None = None,
        size: tuple[int, int] = (800, 1333),
        device: str = "auto",
        dtype: str = "float32",
        batch_size: int = 4,
        score_floor: float = 0.3,
    ) -> None:
        shorter, longer = size
        if not (0 < shorter <= longer and batch_size > 0 and 0 <= score_floor < 1):
            raise ValueError(
                f"size is {tuple(size)}, batch_size {batch_size}, score_floor {score_floor}; allowed: 0 < shorter <= longer edge, batch_size of at least 1, a floor of at least 0 and below 1"
            )
        self.size, self.batch_size, self.score_floor = (shorter, longer), batch_size, score_floor
        self._device = pick_device(device)
        self._dtype = pick_dtype(dtype, self._device)
        folder = find_folder(str(path), revision=revision, patterns=PATTERNS, download=False)
        self._model, self._class_names = _load(folder)
        self._model.to(self._device)
        files = [sha256_of_file(folder / "config.json"), sha256_of_file(_weights(folder))]
        settings = [*files, self.size, str(self._dtype), score_floor]
        self.fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]

    def __call__(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        """The objects of uint8 images [H, W, 3] of any sizes."""
        frames = [frame_of(image, self.size) for image in images]
        found: dict[int, list[Detection]] = {}
        for frame in dict.fromkeys(frames):  # one size at a time: padding changes what the network sees
            alike = [index for index, other in enumerate(frames) if other == frame]
            for start in range(0, len(alike), self.batch_size):
                batch = alike[start : start + self.batch_size]
                found |= zip(batch, self._detect([images[index] for index in batch], frame), strict=True)
        return [found[index] for index in range(len(images))]

    @torch.no_grad()
    def _detect(self, images: list[np.ndarray], frame: Frame) -> list[list[Detection]]:
        pixels_B3HW = torch.stack([pixels_of(image, frame) for image in images]).to(self._device)
        lower = self._dtype != torch.float32
        with torch.autocast(self._device.type, self._dtype if lower else None, enabled=lower):
            outputs = self._model(pixel_values=pixels_B3HW)
        logits = zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)
        return [read_logits(*both, frame, labels=self._class_names, score_floor=self.score_floor) for both in logits]


def read_logits(
    class_logits_QK: Tensor, mask_logits_QHW: Tensor, frame: Frame, *, labels: Sequence[str], score_floor: float
) -> list[Detection]:
    """The detections of one image, from what Mask2Former says of it.

    Of all pairs of a query and a class the 100 most probable ones, each with its query's mask: the logits above 0 after
    they were enlarged to the padded size, cut to the resized image and brought to the image's own size, bilinearly both
    times. The score is the class's probability times the mean probability of the mask's pixels. Empty masks are left out.

    Args:
        class_logits_QK: float [Q, K + 1], the last class is "nothing".
        mask_logits_QHW: float [Q, h, w], of the padded image.
        labels: K names.
        score_floor: scores up to this are left out.

    Raises:
        ValueError: logits that are not finite.
    """
    if not (class_logits_QK.isfinite().all() and mask_logits_QHW.isfinite().all()):
        raise ValueError("Mask2Former answered with numbers that are not finite; try dtype=float32")
    probabilities_QK = class_logits_QK.float().softmax(dim=-1)[:, :-1]
    best = probabilities_QK.flatten().topk(min(PAIRS, probabilities_QK.numel()))
    passing = best.values > score_floor  # the mask's part is at most 1, so that no others can
    probabilities_N, pairs_N = best.values[passing], best.indices[passing]
    if not len(pairs_N):
        return []
    height, width = frame.resized
    logits_NHW = _bilinear(mask_logits_QHW[pairs_N // len(labels)].float(), frame.padded)[:, :height, :width]
    logits_NHW = _bilinear(logits_NHW, frame.image)
    found = []
    for pair, probability, logits_HW in zip(pairs_N.tolist(), probabilities_N.tolist(), logits_NHW, strict=True):
        mask_HW = logits_HW > 0
        if not mask_HW.any():
            continue
        score = probability * float(logits_HW[mask_HW].sigmoid().mean())
        if score > score_floor:
            found.append(Detection(labels[pair % len(labels)], score, _box(mask_HW), mask_HW.cpu().numpy()))
    return found


def _load(folder: Path) -> tuple[Any, list[str]]:
    from safetensors import SafetensorError
    from transformers import AutoConfig, Mask2FormerForUniversalSegmentation

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{folder} has no config.json of transformers; give the folder of a Mask2Former, such as facebook/mask2former-swin-small-coco-instance"
        ) from error
    if config.model_type != "mask2former":
        raise ValueError(f"{folder} holds a {config.model_type!r} model; a 'mask2former' is needed")
    names = coco_labels(config.id2label)
    _weights(folder)
    try:
        loaded: Any = Mask2FormerForUniversalSegmentation.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"the weights in {folder} cannot be read: {error}") from error
    model, report = loaded
    # older files hold the places of a window too, which are computed
    unexpected = [name for name in report["unexpected_keys"] if not name.endswith("relative_position_index")]
    misshaped = [name for name, *_ in report["mismatched_keys"]]
    if report["missing_keys"] or unexpected or misshaped:
        raise ValueError(
            f"the weights in {folder} are not of its config.json: missing {shown(report['missing_keys'])}; unexpected {shown(unexpected)}; of another shape {shown(misshaped)}"
        )
    return model.eval().requires_grad_(False), names


def _weights(folder: Path) -> Path:
    if (found := weights_in(folder)) is None:
        raise FileNotFoundError(f"{folder} has neither model.safetensors nor pytorch_model.bin; put the weights there")
    return found


def _bilinear(logits_NHW: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(logits_NHW[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _box(mask_HW: Tensor) -> tuple[float, float, float, float]:
    """Left, top, right and bottom; right and bottom are one past the mask's last pixels."""
    rows, columns = mask_HW.any(dim=1).nonzero(), mask_HW.any(dim=0).nonzero()
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
