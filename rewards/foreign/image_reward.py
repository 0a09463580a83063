"""ImageReward by its authors' package, in the environment that `align rewards env image-reward` builds."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


class ImageRewardPackage:
    """ImageReward as the package image-reward computes it: in float32, one image after another.

    The built-in `image-reward` gives the same numbers faster and needs no worker; this one is its judge. Only with a
    worker: {name: image-reward-package, worker: {environment: image-reward}}.

    Args:
        model: ImageReward.pt, or the name of a published model, which is downloaded.
        med_config: the text tower's configuration, med_config.json as published; None downloads it.
        tokenizer: vocab.txt of bert-base-uncased; None downloads it.
        device: such as "cuda:1"; "auto" is the GPU, or the CPU where there is none.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not the published checkpoint, or the package is not installed here.
    """

    def __init__(
        self,
        *,
        model: str = "ImageReward-v1.0",
        med_config: str | None = None,
        tokenizer: str | None = None,
        device: str = "auto",
    ) -> None:
        try:
            import ImageReward  # type: ignore[import-not-found]
        except ImportError as error:
            raise ValueError(
                f"the package image-reward is not installed here ({error}); build its environment, `align rewards env image-reward`, and give the reward worker: {{environment: image-reward}}"
            ) from error
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        files = [path and str(Path(path).expanduser().absolute()) for path in (med_config, tokenizer)]
        is_file = model not in ImageReward.available_models()
        weights = str(Path(model).expanduser().absolute()) if is_file else model
        for path in (*files, weights if is_file else None):
            if path and not Path(path).is_file():
                raise FileNotFoundError(f"there is no file {path}")
        with _offline_vocabulary(files[1]):
            self._model = ImageReward.load(weights, device=device, med_config=files[0])
        if is_file:
            # the package loads with strict=False: it would score with random numbers for whatever a file lacks
            given = set(torch.load(weights, map_location="meta", weights_only=True))
            needed = {name for name, _ in self._model.named_parameters()}
            if missing := sorted(needed - given):
                raise ValueError(
                    f"{weights} is no ImageReward: it lacks {len(missing)} tensors, {', '.join(missing[:3])}"
                )

    def __call__(self, images: Any, conditions: list[dict[str, Any]]) -> list[float]:
        """Scores [B] of uint8 images [B, H, W, 3] and rows with a "prompt"."""
        from PIL import Image

        if missing := [index for index, row in enumerate(conditions) if not isinstance(row.get("prompt"), str)]:
            raise ValueError(f"row {missing[0]} has no text as its 'prompt', it has {sorted(conditions[missing[0]])}")
        return [
            float(self._model.score(row["prompt"], Image.fromarray(np.asarray(image))))
            for image, row in zip(images, conditions)  # noqa: B905 (Python 3.9)
        ]


@contextlib.contextmanager
def _offline_vocabulary(vocabulary: str | None) -> Iterator[None]:
    """The package asks for 'bert-base-uncased' by that name; a folder so called, where one stands, is taken for it."""
    if vocabulary is None:
        yield
        return
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bert-base-uncased").mkdir()
        (Path(folder) / "bert-base-uncased" / "vocab.txt").symlink_to(vocabulary)
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)
