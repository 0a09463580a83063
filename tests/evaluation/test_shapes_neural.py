"""The shapes world's held-out judge: reading its maps, its files, what it learns from, and that it learns."""

from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from evaluation.geneval import Detection
from evaluation.shapes_world import COLORS, SHAPES, SIDE, Shape, render
from evaluation.shapes_world.neural import (
    NeuralShapeColors,
    NeuralShapeDetector,
    NeuralShapes,
    ShapeMaps,
    load_neural_shapes,
    save_neural_shapes,
)
from evaluation.shapes_world.practice import NONE, UNDECIDED, Thing, Truth, draw, practice_scene
from evaluation.shapes_world.prompts import all_rows
from evaluation.shapes_world.scenes import silhouette
from evaluation.shapes_world.train_neural import as_tensor, augment, shapes_loss, targets, train_neural

RED, BLUE = list(COLORS).index("red"), list(COLORS).index("blue")
IMAGE = render([Shape("circle", "red", 4, 6, 8), Shape("cross", "blue", 18, 16, 10)])


class Dictated(NeuralShapes):
    """Sees what it is told: (row, column, label, logit, box) of cells of a map of 16x16, else the ground, logit 5."""

    def __init__(self, *cells: tuple[int, int, str, float, tuple[float, float, float, float]]) -> None:
        super().__init__()
        self.cells = cells

    def look(self, pixels_B3HW: torch.Tensor) -> ShapeMaps:
        batch, _, height, width = pixels_B3HW.shape
        kind = torch.zeros(batch, 5, height // 2, width // 2)
        kind[:, 0] = 5
        color, box = torch.zeros(batch, 5, height // 2, width // 2), torch.zeros(batch, 4, height // 2, width // 2)
        for row, column, label, logit, values in self.cells:
            kind[:, 1 + SHAPES.index(label), row, column] = 5 + logit
            box[:, :, row, column] = torch.tensor(values)
            color[:, 1 + SHAPES.index(label), row, column] = 1.0
        return ShapeMaps(kind, color, box)


# reading the maps


def test_a_peak_is_an_object_with_its_box() -> None:
    net = Dictated((3, 5, "triangle", 4.0, (0.5, -1.0, 8.0, 10.0)))
    ((found,),) = NeuralShapeDetector(net)([IMAGE])
    # the middle of cell (3, 5) is at (11, 7)
    assert (found.label, found.box) == ("triangle", (7.5, 1.0, 15.5, 11.0))
    assert found.score == pytest.approx(1 / (1 + np.exp(-4) + 3 * np.exp(-9)), abs=1e-6)
    assert NeuralShapeColors(net)(IMAGE, [found], "triangle") == [list(COLORS)[3]]


def test_of_centres_within_two_cells_the_better_one_stays() -> None:
    box = (0.0, 0.0, 8.0, 8.0)
    near = Dictated((4, 4, "circle", 20.0, box), (5, 6, "cross", 21.0, box))  # both of probability 1 in float32
    far = Dictated((4, 4, "circle", 20.0, box), (4, 7, "cross", 21.0, box))
    assert [d.label for d in NeuralShapeDetector(near)([IMAGE])[0]] == ["cross"]
    assert sorted(d.label for d in NeuralShapeDetector(far)([IMAGE])[0]) == ["circle", "cross"]


def test_what_is_unlikely_is_not_handed_out_and_no_box_is_inside_out() -> None:
    weak, strong = (4, 4, "circle", -2.3, (0.0, 0.0, 8.0, 8.0)), (10, 10, "circle", -2.1, (0.0, 0.0, -3.0, 8.0))
    (found,) = NeuralShapeDetector(Dictated(weak, strong))([IMAGE])[0]
    assert 0.1 < found.score < 0.11
    assert found.box == (21.0, 17.0, 21.0, 25.0)


def test_images_are_judged_alone_and_may_differ_in_size() -> None:
    detector = NeuralShapeDetector(NeuralShapes(seed=1))
    wide = np.concatenate([IMAGE, IMAGE[:, :16]], axis=1)
    together = detector([IMAGE, wide, wide, IMAGE])
    assert together[0] == together[3]
    assert [d.label for d in together[1]] == [d.label for d in detector([wide])[0]]
    assert max(d.box[2] for d in together[1]) > SIDE
    assert detector([]) == []
    assert NeuralShapeColors(NeuralShapes())(IMAGE, [], "circle") == []


def test_colors_are_read_within_the_image() -> None:
    net = Dictated((0, 0, "cross", 1.0, (0.0, 0.0, 8.0, 8.0)), (15, 15, "square", 1.0, (0.0, 0.0, 8.0, 8.0)))
    outside = [Detection("cross", 1.0, (-9.0, -9.0, 3.0, 3.0)), Detection("cross", 1.0, (28.0, 28.0, 40.0, 40.0))]
    assert NeuralShapeColors(net)(IMAGE, outside, "cross") == [list(COLORS)[4], list(COLORS)[2]]


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((31, 32, 3), np.uint8), ValueError, "a multiple of 2 pixels, got 31x32"),
        (np.zeros((0, 32, 3), np.uint8), ValueError, "a multiple of 2 pixels, got 0x32"),
        (np.zeros((32, 32), np.uint8), ValueError, r"shape \[B, H, W, 3\]"),
        (np.zeros((32, 32, 3), np.float32), TypeError, "must be uint8"),
    ],
)
def test_wrong_images_are_refused(image: np.ndarray, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NeuralShapeDetector(NeuralShapes())([image])


# files


def test_save_and_load(tmp_path: Path) -> None:
    net, path = NeuralShapes(seed=3), tmp_path / "judge.safetensors"
    save_neural_shapes(net, path)
    loaded = load_neural_shapes(path)
    assert loaded.fingerprint == net.fingerprint
    assert len(net.fingerprint) == 16
    assert NeuralShapes(seed=4).fingerprint != net.fingerprint
    assert NeuralShapeDetector(loaded)([IMAGE]) == NeuralShapeDetector(net)([IMAGE])
    assert sum(p.numel() for p in net.parameters()) < 100_000
    assert path.stat().st_size < 400_000


def test_files_that_are_no_judges_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "judge.safetensors"
    with pytest.raises(FileNotFoundError):
        load_neural_shapes(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="no judge of shapes: not a readable safetensors file"):
        load_neural_shapes(path)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="no judge of shapes: its metadata says format None"):
        load_neural_shapes(path)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path, {"format": "ar-align-neural-shapes-1"})
    with pytest.raises(ValueError, match="damaged judge of shapes"):
        load_neural_shapes(path)


# what it learns from


def thing(label: str = "square", left: int = 8, top: int = 6, color: int = RED, size: int = 10) -> Thing:
    return Thing(silhouette(label, size, size), left, top, color)


@pytest.mark.parametrize("label", SHAPES)
def test_a_whole_shape_is_true(label: str) -> None:
    image, truths = draw([thing(label)])
    assert np.array_equal(image, render([Shape(label, "red", 8, 6, 10)]))
    assert truths == [Truth(1 + SHAPES.index(label), 13, 11, 10, 10, RED)]


def kinds(*things: Thing) -> list[int]:
    return [truth.kind for truth in draw(things)[1]]


def test_broken_shapes_are_none() -> None:
    square = silhouette("square", 10, 10)

    def without(rows: int) -> int:
        left = square.copy()
        left[:rows] = False
        return kinds(Thing(left, 8, 6, RED))[0]

    assert [without(rows) for rows in (0, 1, 2, 3, 4, 5)] == [2, 2, UNDECIDED, UNDECIDED, NONE, NONE]
    assert kinds(Thing(silhouette("triangle", 10, 10)[::-1], 8, 6, RED)) == [NONE]


def test_sizes_and_paleness_decide_too() -> None:
    def sized(height: int, width: int) -> int:
        return kinds(Thing(silhouette("square", height, width), 8, 6, RED))[0]

    assert [sized(s, s) for s in (5, 6, 7, 11, 12, 13, 14)] == [NONE, UNDECIDED, 2, 2, UNDECIDED, UNDECIDED, NONE]
    assert [sized(7, w) for w in (9, 10, 11)] == [2, UNDECIDED, NONE]
    pale = [kinds(Thing(silhouette("square", 8, 8), 8, 6, RED, strength))[0] for strength in (0.35, 0.5, 0.7)]
    assert pale == [NONE, UNDECIDED, 2]


def test_shapes_that_hang_together_in_one_color_are_none() -> None:
    assert kinds(thing(), thing(left=18)) == [NONE, NONE]
    assert kinds(thing(), thing(left=18, color=BLUE)) == [2, 2]
    assert kinds(thing(), thing(left=19)) == [2, 2]  # a pixel apart
    assert kinds(thing(), thing(left=18, top=16)) == [2, 2]  # corner to corner
    assert kinds(thing(top=0), thing(top=10)) == [NONE, NONE]


def test_a_shape_that_is_covered_is_broken_and_the_one_in_front_is_whole() -> None:
    assert kinds(thing(), thing(left=13, color=BLUE)) == [NONE, 2]
    assert kinds(thing(), thing(color=BLUE)) == [2]  # nothing of it is seen
    half = np.arange(10)[None, :] < 5
    square = silhouette("square", 10, 10)
    assert kinds(Thing(square & half, 8, 6, RED), Thing(square & ~half, 8, 6, BLUE)) == [NONE, NONE]


def test_practice_has_all_kinds_and_repeats_with_its_seed() -> None:
    rows = all_rows()
    scenes = [practice_scene(rows, np.random.default_rng(seed)) for seed in range(150)]
    seen = {truth.kind for _, truths in scenes for truth in truths}
    assert seen == {UNDECIDED, NONE, 1, 2, 3, 4}
    assert {len(truths) for _, truths in scenes} >= {0, 1, 2, 3, 4}
    again, truths = practice_scene(rows, np.random.default_rng(7))
    assert np.array_equal(again, scenes[7][0])
    assert truths == scenes[7][1]


def test_practice_in_two_colors_is_a_shape_of_neither() -> None:
    """Parts of one box in two colours, wherever shapes were drawn so."""
    rows, rng = all_rows(), np.random.default_rng(3)
    parts = []
    for _, truths in (practice_scene(rows, rng) for _ in range(250)):
        boxes = Counter(truth[1:5] for truth in truths)
        parts += [truth.kind for truth in truths if boxes[truth[1:5]] == 2]
    assert len(parts) > 120  # measured: 160, and .95 of them; .78 where shapes were cut anywhere
    assert np.mean(np.array(parts) == NONE) > 0.9


# training


def test_targets_of_a_shape_between_cells_and_of_broken_ones() -> None:
    truths = as_tensor(
        [[Truth(3, 12, 10, 8, 8, RED), Truth(NONE, 25, 25, 8, 8, RED)], [Truth(UNDECIDED, 9, 9, 8, 8, RED)]]
    )
    assert truths.shape == (2, 2, 6)
    kinds_Bhw, weights_Bhw, owners_Bhw = targets(truths, 16, 16)
    assert kinds_Bhw[0].nonzero().tolist() == [[4, 5], [4, 6], [5, 5], [5, 6]]  # four cells around (12, 10)
    assert kinds_Bhw[0].max() == 3
    assert owners_Bhw[0, 4:6, 5:7].max() == 0
    assert owners_Bhw[0, 12, 12] == 1
    assert set(weights_Bhw[0, 4:6, 5:7].flatten().tolist()) == {10.0}
    assert weights_Bhw[0, 3, 4] == weights_Bhw[0, 6, 7] == 0  # beside them nothing is asked
    assert weights_Bhw[0, 0, 0] == 1
    assert set(weights_Bhw[0, 11:14, 11:14].flatten().tolist()) == {10.0}  # the broken one is to be seen as such
    assert kinds_Bhw[1].max() == NONE
    assert weights_Bhw[1, 4, 4] == 0


def test_a_perfect_answer_costs_nothing_and_each_mistake_does() -> None:
    truth = as_tensor([[Truth(1, 13, 13, 8, 10, BLUE)]])  # the middle of cell (6, 6)
    maps = ShapeMaps(torch.zeros(1, 5, 16, 16), torch.zeros(1, 5, 16, 16), torch.zeros(1, 4, 16, 16))
    maps.kind_B5hw[:, 0] = 30
    maps.kind_B5hw[0, 1, 6, 6] = 60
    maps.color_BChw[0, BLUE, 6, 6] = 30
    maps.box_B4hw[0, :, 6, 6] = torch.tensor([0.0, 0.0, 8.0, 10.0])
    assert shapes_loss(maps, truth) < 1e-6
    for field, place in (("kind_B5hw", (0, 2, 6, 6)), ("color_BChw", (0, RED, 6, 6)), ("box_B4hw", (0, 3, 6, 6))):
        wrong = maps._replace(**{field: getattr(maps, field).clone()})
        getattr(wrong, field)[place] += 90
        assert shapes_loss(wrong, truth) > 1
    assert shapes_loss(maps, as_tensor([[]])) > 0  # no shape at all: what is seen is too much


def test_augmentation_moves_what_it_says_and_leaves_some_images_alone() -> None:
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1).expand(64, 3, SIDE, SIDE).float() / 255
    moved, shift_B2 = augment(pixels, torch.Generator().manual_seed(0))
    alone = (moved - pixels).abs().amax(dim=(1, 2, 3)) < 1e-3
    assert 8 <= alone.sum() <= 26
    assert (shift_B2[alone] == 0).all()
    dark = ((1 - moved).clamp(min=0).mean(dim=1) - 0.1).clamp(min=0)
    middle_B = (dark.sum(dim=1) * (torch.arange(SIDE) + 0.5)).sum(dim=1) / dark.sum(dim=(1, 2))
    assert torch.corrcoef(torch.stack([middle_B[~alone], shift_B2[~alone, 0]]))[0, 1] > 0.3
    assert shift_B2.abs().max() <= 0.5


def test_training_repeats_with_its_seed_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    losses: list[float] = []
    first = train_neural(seed=1, steps=2, batch_size=4, on_step=lambda step, loss: losses.append(loss))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(losses) == 2
    assert first.fingerprint == train_neural(seed=1, steps=2, batch_size=4).fingerprint
    assert first.fingerprint != train_neural(seed=2, steps=2, batch_size=4).fingerprint
    assert not any(parameter.requires_grad for parameter in first.parameters())
    with pytest.raises(ValueError, match="at least 1 step of 1 image, got 0 steps of 4"):
        train_neural(seed=0, steps=0, batch_size=4)


@pytest.mark.slow
def test_it_learns_to_judge() -> None:
    """A sixteenth of the usual training, 15 CPU seconds: whole shapes are told from halves, by colour alone, too."""
    detector = NeuralShapeDetector(train_neural(seed=0, steps=300, batch_size=24))

    def seen(share: int, *, two_colors: bool) -> float:
        """How many are taken for a shape, of whichever kind, when `share` of their 10 columns are kept as drawn."""
        verdicts = []
        for label, color, other in product(SHAPES, COLORS, COLORS):
            if color != other:
                image, rest = (render([Shape(label, name, 10, 10, 10)]) for name in (color, other))
                image[:, 10 + share :] = rest[:, 10 + share :] if two_colors else image[0, 0]
                verdicts.append(any(found.score > 0.5 for found in detector([image])[0]))
        return float(np.mean(verdicts))

    assert seen(10, two_colors=False) > 0.7  # measured: .85
    assert seen(5, two_colors=False) < 0.4  # .20
    assert seen(5, two_colors=True) < 0.5  # .33
