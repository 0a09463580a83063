"""Detectors and colour classifiers by the names that settings give them.

mask2former     evaluation/geneval/mask2former.py, of COCO's classes; path: its folder
clip            evaluation/geneval/clip_colors.py, colours for it; path: weights or their folder
recorded        evaluation/geneval/recorded.py, both, from somebody's results; results: the file, folder: of the images
shapes          evaluation/shapes_world/detector.py, both, by rule
shapes-neural   evaluation/shapes_world/neural.py, both, learnt; path: its weights
path/to/file.py:function   your own, which gives what the protocols in evaluation/geneval/detections.py ask for
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.geneval.detections import ColorClassifier, Detector
from evaluation.user_files import load_from_file

HERE = "evaluation.geneval.detectors"
DETECTORS = {
    "mask2former": "evaluation.geneval.mask2former:Mask2FormerDetector",
    "recorded": f"{HERE}:recorded_detector",
    "shapes": "evaluation.shapes_world.detector:ShapeDetector",
    "shapes-neural": f"{HERE}:neural_detector",
}
COLORS = {
    "clip": "evaluation.geneval.clip_colors:ClipColors",
    "recorded": f"{HERE}:recorded_colors",
    "shapes": "evaluation.shapes_world.detector:ShapeColors",
    "shapes-neural": f"{HERE}:neural_colors",
}
NO_COLORS = "none"


def make_detector(name: str, **kwargs: Any) -> Detector:
    """A detector: a name of `DETECTORS` or path/to/file.py:function, with its settings; None counts as left out.

    Raises:
        ValueError: an unknown name, settings that do not fit, or what is no detector; FileNotFoundError, ValueError: what
            it refuses itself.
    """
    return _make("detector", DETECTORS, ("name", "labels"), name, kwargs)


def make_colors(name: str, **kwargs: Any) -> ColorClassifier:
    """A colour classifier: a name of `COLORS` or path/to/file.py:function; the rest is as in `make_detector`."""
    return _make("colour classifier", COLORS, ("colors",), name, kwargs)


def make_pair(
    detector: str,
    colors: str | None = None,
    *,
    detector_kwargs: Mapping[str, Any] | None = None,
    colors_kwargs: Mapping[str, Any] | None = None,
) -> tuple[Detector, ColorClassifier | None]:
    """A detector, and who names the colours of what it finds.

    Args:
        detector, detector_kwargs: of `make_detector`.
        colors, colors_kwargs: of `make_colors`; `none` is nobody, where no prompt asks for a colour. Left out it is the
            one of the detector's name with the detector's settings; nobody for a detector of your own.

    Raises:
        ValueError: also where colours are left out and the detector comes without.
    """
    if colors is None and colors_kwargs:
        raise ValueError(f"there are colors_kwargs without colors; known: {', '.join([*COLORS, NO_COLORS])}")
    own = detector.rpartition(":")[0].endswith(".py")
    if colors is None and not own and detector in DETECTORS and detector not in COLORS:
        raise ValueError(
            f"the detector {detector} comes without colours: give colors=clip and colors_kwargs={{path: ...}}, the file of ViT-L-14's weights of OpenAI or their folder; or colors={NO_COLORS} if no prompt asks for a colour"
        )
    found = make_detector(detector, **(detector_kwargs or {}))
    if colors == NO_COLORS or (colors is None and own):
        return found, None
    if colors is None:
        return found, make_colors(detector, **(detector_kwargs or {}))
    return found, make_colors(colors, **(colors_kwargs or {}))


def recorded_detector(results: str, folder: str) -> Detector:
    """The detector of a results.jsonl and the folder of its images."""
    from evaluation.geneval.recorded import RecordedDetector, Recording

    return RecordedDetector(Recording.read(results, folder))


def recorded_colors(results: str, folder: str) -> ColorClassifier:
    """The colours of a results.jsonl and the folder of its images."""
    from evaluation.geneval.recorded import RecordedColors, Recording

    return RecordedColors(Recording.read(results, folder))


def neural_detector(path: str) -> Detector:
    """The learnt detector of the shapes world, from its file."""
    from evaluation.shapes_world.neural import NeuralShapeDetector, load_neural_shapes

    return NeuralShapeDetector(load_neural_shapes(path))


def neural_colors(path: str) -> ColorClassifier:
    """The colours that the learnt detector of the shapes world sees, from its file."""
    from evaluation.shapes_world.neural import NeuralShapeColors, load_neural_shapes

    return NeuralShapeColors(load_neural_shapes(path))


def _make(
    kind: str, known: Mapping[str, str], attributes: tuple[str, ...], name: str, kwargs: Mapping[str, Any]
) -> Any:
    maker = _maker(kind, known, name)
    if not callable(maker):
        raise ValueError(f"{name!r} is of type {type(maker).__name__}; a function that makes a {kind} is needed")
    given = {key: value for key, value in kwargs.items() if value is not None}
    signature = inspect.signature(maker)
    try:
        signature.bind(**given)
    except TypeError as error:
        shown = ", ".join(f"{key}=..." for key in given) or "no settings"
        raise ValueError(
            f"the {kind} {name!r} cannot be made with {shown}: {error}; it takes {_shown(signature)}"
        ) from error
    made = maker(**given)
    if lacking := [attribute for attribute in attributes if not hasattr(made, attribute)]:
        raise ValueError(
            f"{name!r} gives a {type(made).__name__} without {' and '.join(lacking)}, which a {kind} has; see evaluation/geneval/detections.py"
        )
    return made


def _maker(kind: str, known: Mapping[str, str], name: str) -> Any:
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        return load_from_file(Path(path), function)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"unknown {kind} {name!r}; known: {', '.join(known)}{hint} Your own is path/to/file.py:function"
        )
    module, _, attribute = known[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _shown(signature: inspect.Signature) -> str:
    """`path, revision=None`"""
    parameters = signature.parameters.values()
    return ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters) or "none"
