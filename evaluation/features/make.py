"""Extractors by the names that settings have for them, and batches of images through one.

Shapes: B batch, H/W of images, D of features, logits or spatial features.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.classifier import DigitClassifier, check_images, load_classifier
from evaluation.devices import pick_device
from evaluation.features.base import Extractor, ExtractorOutput
from evaluation.features.clip import ClipExtractor
from evaluation.features.dinov2 import Dinov2Extractor
from evaluation.features.inception import InceptionExtractor
from evaluation.user_files import load_from_file


def make_extractor(section: str | Mapping[str, Any], folder: Path = Path(), *, device: str = "auto") -> Extractor:
    """The extractor that a section of settings describes.

    Args:
        section: a classifier's file, .safetensors; `path/to/file.py:function`, which gives an `Extractor` when called on
            nothing; or a mapping with a name of `EXTRACTORS` and what that takes besides the device, such as
            {name: inception, path: weights-inception-2015-12-05-6726825d.pth}.
        folder: paths that exist in it are taken from there, others as they are.
        device: as in `evaluation.devices.pick_device`; a user's own function is not told.

    Raises:
        FileNotFoundError: no such weights.
        TypeError: a setting of another type.
        ValueError: unknown names, settings that are unknown or missing, or weights that do not fit.
    """
    if isinstance(section, str):
        file, _, function = section.rpartition(":")
        if file.endswith(".py"):
            return _users_own(section, _in_folder(file, folder), function)
        if not section.endswith(".safetensors"):
            raise ValueError(
                f"{section!r} is no extractor; allowed are a classifier's file (.safetensors), path/to/file.py:function, and a mapping such as {{name: inception, path: ...}} with a name of {', '.join(EXTRACTORS)}"
            )
        section = {"name": "classifier", "path": section}
    given = dict(section)
    if "name" not in given:
        raise ValueError(f"an extractor needs a name; known: {', '.join(EXTRACTORS)}")
    name = str(given.pop("name"))
    if name not in EXTRACTORS:
        raise ValueError(f"unknown extractor {name!r}; known: {', '.join(EXTRACTORS)}{_near(name, EXTRACTORS)}")
    make = EXTRACTORS[name]
    parameters = dict(inspect.signature(make, eval_str=True).parameters)
    del parameters["device"]
    for key, value in given.items():
        if key not in parameters:
            raise ValueError(
                f"extractor {name} has no setting {key!r}; its settings: {', '.join(parameters)}{_near(key, parameters)}"
            )
        if not isinstance(value, parameters[key].annotation):
            raise TypeError(
                f"{key} of extractor {name} is {value!r}, of type {type(value).__name__}; it must be of type {inspect.formatannotation(parameters[key].annotation)} (in YAML a text of digits needs quotes)"
            )
        if key in ("path", "tokenizer") or str(value).endswith(".json"):
            given[key] = str(_in_folder(value, folder))
    if "path" not in given:
        raise ValueError(f"extractor {name} needs its path; its settings: {', '.join(parameters)}")
    return make(**given, device=device)


def _classifier(path: str | Path, *, device: str = "auto") -> DigitClassifier:
    return load_classifier(path).requires_grad_(False).to(pick_device(device)).eval()


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "inception": InceptionExtractor,
    "dinov2": Dinov2Extractor,
    "clip": ClipExtractor,
    "classifier": _classifier,
}


def extract(extractor: Extractor, images_BHW3: Tensor) -> dict[str, np.ndarray]:
    """float32 arrays [B, D] under "features" and, where the extractor has them, "logits" and "spatial".

    Args:
        images_BHW3: uint8 [B, H, W, 3], at least one.

    Raises:
        TypeError: images that are not uint8, or an extractor that gives no `ExtractorOutput`.
        ValueError: other images, arrays of another shape than a row an image, or NaN or infinity in them.
    """
    check_images(images_BHW3)
    batch = len(images_BHW3)
    if batch == 0:
        raise ValueError("there is no image in the batch; give at least one")
    with torch.inference_mode():
        output = extractor(images_BHW3)
    if not isinstance(output, ExtractorOutput):
        raise TypeError(
            f"extractor {extractor.name} gave a {type(output).__name__}; it must give an evaluation.features.base.ExtractorOutput"
        )
    tensors = {"features": output.features_BD, "logits": output.logits_BK, "spatial": output.spatial_BS}
    return {
        part: _checked(tensor, batch, f"the {part} of extractor {extractor.name}")
        for part, tensor in tensors.items()
        if tensor is not None
    }


def _users_own(section: str, file: Path, function: str) -> Extractor:
    made: Extractor = load_from_file(file, function)()
    lacking = [
        attribute for attribute in ("name", "fingerprint") if not isinstance(getattr(made, attribute, None), str)
    ]
    if lacking or not callable(made):
        wrong = f"without {' and '.join(lacking)}, which must be texts" if lacking else "that cannot be called"
        raise ValueError(
            f"{section} gave a {type(made).__name__} {wrong}; it must give an evaluation.features.base.Extractor"
        )
    return made


def _in_folder(path: str | Path, folder: Path) -> Path:
    inside = folder / Path(path).expanduser()
    return inside if inside.exists() else Path(path)


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _checked(tensor_BD: Tensor, batch: int, what: str) -> np.ndarray:
    if tensor_BD.ndim != 2 or len(tensor_BD) != batch:
        raise ValueError(f"{what} have shape {list(tensor_BD.shape)}; they must be one row an image, [{batch}, ...]")
    array_BD: np.ndarray = tensor_BD.detach().float().cpu().numpy()
    broken = np.flatnonzero(~np.isfinite(array_BD).all(axis=1)).tolist()
    if broken:
        raise ValueError(
            f"{what} are NaN or infinite for {len(broken)} of {batch} images of a batch, first for number {broken[0]} (from 0). Metrics of them would be too; look at the extractor's weights"
        )
    return array_BD
