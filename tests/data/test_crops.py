"""Where each crop is cut, derived by hand on images small enough to count pixels; all of it was compared, pixel for pixel,
with torchvision's TenCrop, Resize and RandomCrop and with ADM's function, on sixty random sizes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from align.data.crops import Crop, center_crop, five_crops, random_crop, ten_crop


def numbered(width: int, height: int) -> Image.Image:
    """Pixel (x, y) is (x, y, 0)."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def corner(view: Image.Image | np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel that came to the top left."""
    pixels = np.asarray(view)
    return int(pixels[0, 0, 0]), int(pixels[0, 0, 1])


class Chosen:
    """Random numbers that are chosen, and what they were chosen from."""

    def __init__(self, *numbers: int) -> None:
        self.numbers, self.asked = list(numbers), []

    def integers(self, high: int) -> int:
        self.asked.append(high)
        return self.numbers.pop(0)


def test_the_centre_is_cut_where_nothing_is_resized() -> None:
    assert corner(center_crop(numbered(9, 4), 4)) == (2, 0)  # (9 - 4) // 2
    assert corner(center_crop(numbered(4, 11), 4)) == (0, 3)
    assert center_crop(numbered(9, 4), 4).size == (4, 4)


def test_the_shorter_side_is_halved_by_averaging_while_twice_too_large() -> None:
    # 8 -> 4 at once; each pixel is the mean of four: x of 0, 1 is 0.5 (a half goes up), of 2, 3 is 2.5
    view = np.asarray(center_crop(numbered(8, 8), 4))
    assert view[0, :, 0].tolist() == [1, 3, 5, 7]
    # 16 -> 8 -> 4, and 17 columns lose one to the halving: 17 // 2 // 2 = 4
    assert center_crop(numbered(17, 16), 4).size == (4, 4)
    # 7 is not twice 4: resized by interpolation from all of it, nothing is cut but the longer side's rest
    assert center_crop(numbered(7, 14), 4).size == (4, 4)


def test_small_images_are_enlarged() -> None:
    assert center_crop(numbered(2, 3), 8).size == (8, 8)


def test_five_crops_are_corners_and_centre() -> None:
    places = [corner(view) for view in five_crops(numbered(7, 6), 4)]
    # the middle of 3 columns more is 1.5: to even, 2; of 2 rows more, 1
    assert places == [(0, 0), (3, 0), (0, 2), (3, 2), (2, 1)]
    assert corner(five_crops(numbered(5, 5), 4)[4]) == (0, 0)  # 0.5 to even


def test_ten_crops_are_five_of_the_image_and_five_of_its_mirror_image() -> None:
    # int(4 * 1.3) = 5: the centre crop of a 5x5 image is all of it
    views = ten_crop(numbered(5, 5), 4, 1.3)
    assert [corner(view) for view in views[:5]] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0)]
    # mirrored, x runs from 4 down: its top left is the image's top right, and its centre is not the mirrored centre
    assert [corner(view) for view in views[5:]] == [(4, 0), (3, 0), (4, 1), (3, 1), (4, 0)]
    assert np.asarray(views[5])[0, :, 0].tolist() == [4, 3, 2, 1]


@pytest.mark.parametrize(("size", "enlarged", "large"), [(256, 1.1, 281), (256, 1.05, 268), (384, 1.1, 422)])
def test_the_published_sizes_are_cut_down_not_rounded(size: int, enlarged: float, large: int) -> None:
    views = ten_crop(Image.new("RGB", (large, large)), size, enlarged)
    assert {view.size for view in views} == {(size, size)}
    # the image has the enlarged size already, so the bottom right corner tells it
    y, x = np.mgrid[:large, :large]
    image = Image.fromarray(np.stack([x - 250, y - 250, 0 * x], axis=-1).clip(0, 255).astype(np.uint8))
    bottom_right = np.asarray(ten_crop(image, size, enlarged)[3])
    assert bottom_right[-1, -1].tolist() == [large - 251, large - 251, 0]


def test_a_random_crop_is_anywhere_in_an_image_an_eighth_larger() -> None:
    rng = Chosen(1, 6)
    # round(8 * 1.125) = 9, which the shorter side has already: nothing is resized
    view = random_crop(numbered(20, 9), 8, rng)  # type: ignore[arg-type]
    assert corner(view) == (6, 1)
    assert rng.asked == [2, 13]  # rows 0 and 1, columns 0 to 12
    # 18x41 becomes 9 x int(20.5)
    rng = Chosen(12, 1)
    assert random_crop(numbered(18, 41), 8, rng).size == (8, 8)  # type: ignore[arg-type]
    assert rng.asked == [13, 2]


def test_views_are_stacked_in_their_order() -> None:
    image = numbered(5, 5)
    assert Crop("ten_crop", 4, (1.3, 1.0)).views(image).shape == (20, 4, 4, 3)
    assert np.array_equal(Crop("ten_crop", 4, (1.3, 1.0)).views(image)[3], np.asarray(ten_crop(image, 4, 1.3)[3]))
    flip = Crop("flip", 4).views(numbered(4, 4))
    assert flip.dtype == np.uint8
    assert [corner(view) for view in flip] == [(0, 0), (3, 0)]
    assert Crop("center", 4).views(numbered(4, 4)).shape == (1, 4, 4, 3)


def test_a_view_is_drawn_evenly() -> None:
    crop, image = Crop("flip", 4), numbered(4, 4)
    drawn = [corner(crop.draw(image, np.random.default_rng(seed)))[0] for seed in range(400)]
    assert abs(drawn.count(3) - 200) < 50  # five standard errors
    always = Crop("random", 4, flip=False)
    flips = Crop("random", 4, flip=True)
    seen = {corner(flips.draw(numbered(4, 4), np.random.default_rng(seed))) for seed in range(50)}
    assert len(seen) > len({corner(always.draw(numbered(4, 4), np.random.default_rng(seed))) for seed in range(50)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "tencrop"}, "unknown crop 'tencrop'; known: center, flip, ten_crop, random"),
        ({"kind": "center", "size": 0}, "the size of a crop is 0 pixels"),
        ({"kind": "ten_crop", "enlarged": (0.9,)}, r"enlarged \(0.9,\) times; each must be at least 1"),
        ({"kind": "ten_crop", "enlarged": ()}, "each must be at least 1"),
        ({"kind": "center", "flip": True}, "only the random crop is flipped at random"),
    ],
)
def test_crops_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Crop(**{"size": 4, **settings})  # type: ignore[arg-type]


def test_a_random_crop_has_no_views_to_store() -> None:
    with pytest.raises(ValueError, match="no fixed views to store; use one of center, flip, ten_crop"):
        _ = Crop("random", 4).number
