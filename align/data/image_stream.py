"""Images as training sees them, cropped anew in every pass and encoded on the way (VAR's training)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from align.data.crops import Crop
from align.data.negatives import Alternatives
from align.data.readers import ImageSource, UnreadableRow
from align.data.stream import Stream

_TRIES = 100  # rows in a row that may be unreadable before the source counts as gone
_Found = TypeVar("_Found")


class ImageStream(Stream):
    """Each item holds pixels, uint8 [size, size, 3], and replaced, bool [], beside what every `Stream` gives.

    The crop is drawn by the position's own random numbers. Where an image cannot be read, the next row that can be
    stands in, with its own label; that is said once for each key, by each process that reads.

    Args:
        conditions: `label` or `caption`.

    Raises:
        ValueError: the images have no such conditions, or what `Stream` refuses.
        OSError: of an item, if a hundred rows in a row cannot be read.
    """

    def __init__(
        self,
        images: ImageSource,
        crop: Crop,
        *,
        conditions: str,
        length: int,
        seed: int,
        label_drop: float,
        negative_label: int | str | None = None,
        hard_negatives: Alternatives = (),
    ) -> None:
        if not {"label": images.has_labels, "caption": images.has_captions}[conditions]:
            other = "captions" if conditions == "label" else "labels"
            raise ValueError(f"{images.path} holds images with {other}; the generator takes a {conditions}")
        self.images = images
        self.crop = crop
        self._read_condition: Callable[[int], Any] = images.label if conditions == "label" else images.caption
        self._said: set[str] = set()
        super().__init__(
            {},
            range(len(images)),  # the conditions are read with the images
            source=f"{images.fingerprint} {crop} {conditions}",
            length=length,
            seed=seed,
            label_drop=label_drop,
            negative_label=negative_label,
            hard_negatives=hard_negatives,
        )

    def _condition(self, row: int) -> Any:
        return _as_condition(self._first_readable(row, self._read_condition)[1])

    def _item(self, row: int, rng: np.random.Generator) -> dict[str, Any]:
        stand_in, (image, condition) = self._first_readable(
            row, lambda candidate: (self.images.image(candidate), self._read_condition(candidate))
        )
        return {
            "pixels": torch.from_numpy(self.crop.draw(image, rng).copy()),
            "label": _as_condition(condition),
            "replaced": torch.tensor(stand_in != row),
        }

    def _first_readable(self, row: int, read: Callable[[int], _Found]) -> tuple[int, _Found]:
        for candidate in range(row, row + _TRIES):
            try:
                return candidate % len(self.images), read(candidate % len(self.images))
            except UnreadableRow as error:
                self._say(error)
        raise OSError(
            f"{_TRIES} images in a row cannot be read, from {self.images.key(row)} on; is their disk still there?"
        )

    def _say(self, error: UnreadableRow) -> None:
        if error.key not in self._said:
            self._said.add(error.key)
            print(f"cannot be read, the next image stands in: {error}", file=sys.stderr, flush=True)


def _as_condition(value: int | str) -> Any:
    return value if isinstance(value, str) else torch.tensor(value)
