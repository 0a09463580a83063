"""GenEval as a reward: does the image show the objects, numbers, colours and places of its prompt?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evaluation.geneval import GenEvalScorer
from evaluation.geneval.detectors import make_pair

CREDITS = ("strict", "partial")


class GenEvalReward:
    """GenEval's verdict on each image (evaluation/geneval/scorer.py has the rules), in [0, 1].

    Rows carry the columns of GenEval's metadata: "tag", "include" and, if there is one, "exclude"; NaN where there is no
    "include".

    Args:
        detector: `shapes`, `shapes-neural`, `mask2former`, `recorded`, or `path/to/file.py:function`, which gives an
            `evaluation.geneval.Detector`; see evaluation/geneval/detectors.py for each one's settings.
        colors: who names colours: `shapes`, `shapes-neural`, `clip`, `recorded`, or the same of your own; left out, the one
            of the detector's name, nobody for a detector of your own; `none`: nobody.
        credit: `strict`: 1 if everything is right, else 0. `partial`: the share of what is asked for.
        detector_kwargs, colors_kwargs: settings of both.

    Raises:
        ValueError: an unknown credit, and what `evaluation.geneval.detectors.make_pair` refuses.
    """

    def __init__(
        self,
        *,
        detector: str,
        colors: str | None = None,
        credit: str = "strict",
        detector_kwargs: Mapping[str, Any] | None = None,
        colors_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if credit not in CREDITS:
            raise ValueError(f"unknown credit {credit!r}; allowed: {', '.join(CREDITS)}")
        self.credit = credit
        self.detector, self._colors = make_pair(
            detector, colors, detector_kwargs=detector_kwargs, colors_kwargs=colors_kwargs
        )
        self._scorer = GenEvalScorer(labels=self.detector.labels, colors=self._colors)

    @property
    def fingerprint(self) -> str:
        """Of the detector's weights and the colour classifier's; empty for judges without weights."""
        prints = [getattr(part, "fingerprint", "") for part in (self.detector, self._colors)]
        return "-".join(dict.fromkeys(filter(None, prints)))

    def __call__(self, images: Tensor, conditions: list[dict[str, Any]]) -> Tensor:
        """float32 [B] on the CPU for uint8 images [B, H, W, 3]."""
        asked = [index for index, row in enumerate(conditions) if row.get("include") is not None]
        for index in asked:
            self._read(index, conditions[index])  # a row that is wrong is refused before the detector runs
        pixels = [images[index].cpu().numpy() for index in asked]
        found = self.detector(pixels) if asked else []
        if len(found) != len(asked):
            raise ValueError(f"the detector answered for {len(found)} images of {len(asked)}; one list each is needed")
        scores_B = torch.full((len(images),), torch.nan)
        for index, image, detections in zip(asked, pixels, found, strict=True):
            result = self._scorer.score(image, detections, conditions[index])
            scores_B[index] = float(result.correct) if self.credit == "strict" else result.credit
        return scores_B

    def _read(self, index: int, row: dict[str, Any]) -> None:
        try:
            self._scorer.read_request(row)
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from error
