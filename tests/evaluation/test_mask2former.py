"""Mask2Former's logits become the detections that GenEval's rules ask for: hand-made logits, and tiny models as published."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mask2former_files import save_mask2former
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluation.geneval import Detection
from evaluation.geneval.coco import COCO_NAMES
from evaluation.geneval.coco_labels import ALIASES, coco_labels
from evaluation.geneval.frames import Frame, frame_of, pixels_of
from evaluation.geneval.mask2former import Mask2FormerDetector, read_logits

SIZE = (64, 96)  # small enough for a hundredth of a second


def square(side: int) -> Frame:
    """Neither resized nor padded."""
    return Frame((side, side), (side, side), (side, side))


def classes(*rows: tuple[float, ...]) -> Tensor:
    """Logits of these probabilities, the last of them of "nothing"."""
    return torch.tensor(rows).log()


def masks(number: int, height: int, width: int, value: float = -2.0) -> Tensor:
    return torch.full((number, height, width), value)


def read(class_logits: Tensor, mask_logits: Tensor, frame: Frame, floor: float = 0.3) -> list[Detection]:
    return read_logits(class_logits, mask_logits, frame, labels=("cat", "dog"), score_floor=floor)


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def test_a_score_is_the_class_times_the_mean_of_the_mask() -> None:
    mask_logits = masks(1, 6, 6)
    mask_logits[0, 1:3, 2:6] = math.log(3)  # probability 0.75
    mask_logits[0, 1, 2] = math.log(9)  # 0.9
    (found,) = read(classes((0.1, 0.8, 0.1)), mask_logits, square(6))
    assert found.label == "dog"
    assert found.score == pytest.approx(0.8 * (7 * 0.75 + 0.9) / 8, abs=1e-6)
    assert found.box == (2, 1, 6, 3)
    assert found.mask is not None
    assert found.mask.dtype == bool
    assert np.array_equal(found.mask, mask_logits[0].numpy() > 0)


def test_each_class_has_its_querys_mask() -> None:
    mask_logits = masks(3, 6, 6)
    for query in range(3):
        mask_logits[query, query, query:5] = 9.0
    found = read(classes((0.1, 0.8, 0.1), (0.1, 0.1, 0.8), (0.7, 0.1, 0.2)), mask_logits, square(6))
    assert [(one.label, one.box) for one in found] == [("dog", (0, 0, 5, 1)), ("cat", (2, 2, 5, 3))]


def test_nothing_is_hidden_between_the_floor_and_a_half() -> None:
    """Also what is more probably nothing, and two classes of one query."""
    found = read(classes((0.35, 0.05, 0.6), (0.33, 0.32, 0.35), (0.29, 0.3, 0.41)), masks(3, 4, 4, 20.0), square(4))
    assert [one.label for one in found] == ["cat", "cat", "dog"]
    assert [one.score for one in found] == pytest.approx([0.35, 0.33, 0.32], abs=1e-6)


def test_the_floor_is_one_of_scores_not_of_classes() -> None:
    both = classes((0.4, 0.1, 0.5), (0.5, 0.1, 0.4))
    found = read(both, masks(2, 4, 4, math.log(3)), square(4), floor=0.35)
    assert [one.score for one in found] == pytest.approx([0.375])  # 0.4 * 0.75 does not pass
    assert len(read(both, masks(2, 4, 4, math.log(3)), square(4), floor=0.29)) == 2


def test_scores_are_not_rounded() -> None:
    (found,) = read(classes((0.7, 0.1, 0.2)), masks(1, 4, 4, 0.123), square(4))
    assert found.score == pytest.approx(0.7 * sigmoid(0.123), abs=1e-7)
    assert found.score != round(found.score, 6)


def test_empty_masks_are_dropped() -> None:
    mask_logits = masks(2, 4, 4)
    mask_logits[1, 3, 0] = 5.0
    (found,) = read(classes((0.9, 0.05, 0.05), (0.8, 0.1, 0.1)), mask_logits, square(4), floor=0.0)[:1]
    assert found.box == (0, 3, 1, 4)
    assert found.score < 0.8


def test_masks_are_enlarged_before_they_are_cut_and_compared() -> None:
    """2x4 logits of 4x8 padded pixels, 4x4 of them an image of 4x4."""
    mask_logits = torch.tensor([[[1.0, -1.0, 1.0, 1.0]] * 2])
    (found,) = read(classes((0.9, 0.05, 0.05)), mask_logits, Frame((4, 4), (4, 4), (4, 8)))
    # halfway between the logits' columns: 1, 0.5, -0.5, -1 | padding
    assert found.box == (0, 0, 2, 4)
    assert found.score == pytest.approx(0.9 * (sigmoid(1) + sigmoid(0.5)) / 2, abs=1e-6)


def test_what_is_in_the_padding_alone_is_nothing() -> None:
    mask_logits = masks(1, 4, 8)
    mask_logits[..., 5:] = 5.0
    assert read(classes((0.9, 0.05, 0.05)), mask_logits, Frame((4, 4), (4, 4), (4, 8))) == []
    assert len(read(classes((0.9, 0.05, 0.05)), mask_logits, Frame((4, 8), (4, 8), (4, 8)))) == 1


def test_masks_and_boxes_are_of_the_image_itself() -> None:
    """An image of 6x3 pixels that went in as 12x6 in 12x8."""
    mask_logits = masks(1, 12, 8)
    mask_logits[0, 4:8, 2:6] = 2.0
    (found,) = read(classes((0.9, 0.05, 0.05)), mask_logits, Frame((6, 3), (12, 6), (12, 8)))
    assert found.mask is not None
    assert found.mask.shape == (6, 3)
    assert found.box == (1, 2, 3, 4)
    assert found.score == pytest.approx(0.9 * sigmoid(2), abs=1e-6)


def test_the_hundred_best_pairs_are_looked_at() -> None:
    probabilities = [(0.5 + index / 1000, 0.2, 0.3 - index / 1000) for index in range(70)]
    found = read(classes(*probabilities), masks(70, 2, 2, 20.0), square(2), floor=0.0)
    assert len(found) == 100
    assert [one.label for one in found].count("cat") == 70
    assert found[0].score == pytest.approx(0.569, abs=1e-5)


def test_numbers_that_are_none_are_no_detections() -> None:
    mask_logits = masks(1, 2, 2)
    mask_logits[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite; try dtype=float32"):
        read(classes((0.9, 0.05, 0.05)), mask_logits, square(2))


@pytest.mark.slow
def test_transformers_agrees_where_it_can() -> None:
    """On squares of 384 pixels, where its own way neither distorts nor resizes masks after they were compared."""
    from transformers.models.mask2former.image_processing_mask2former import Mask2FormerImageProcessor

    generator = torch.Generator().manual_seed(0)
    class_logits = 3 * torch.randn(1, 100, 3, generator=generator)
    mask_logits = torch.nn.functional.interpolate(torch.randn(1, 100, 3, 3, generator=generator) - 1, (24, 24))
    (theirs,) = Mask2FormerImageProcessor().post_process_instance_segmentation(
        SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=mask_logits),
        threshold=0.0,
        return_binary_maps=True,
        target_sizes=[(384, 384)],
    )
    found = read(class_logits[0], mask_logits[0], square(384), floor=0.0)
    key = [(("cat", "dog")[info["label_id"]], info["score"]) for info in theirs["segments_info"]]
    order = sorted(range(len(key)), key=lambda index: -key[index][1])
    found.sort(key=lambda one: -one.score)
    assert 50 < len(found) == len(key) < 100  # some masks are empty
    assert [one.label for one in found] == [key[index][0] for index in order]
    assert [one.score for one in found] == pytest.approx([key[index][1] for index in order], abs=2e-6)
    for one, index in zip(found, order, strict=True):
        assert one.mask is not None
        assert np.array_equal(one.mask, theirs["segmentation"][index].numpy() == 1)


@pytest.mark.parametrize(
    ("image", "resized", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((32, 32), (800, 800), (800, 800)),
        ((480, 640), (800, 1067), (800, 1088)),
        ((1000, 300), (1333, 400), (1344, 416)),
        ((1, 5000), (1, 1333), (32, 1344)),
    ],
)
def test_the_ratio_is_kept(image: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]) -> None:
    assert frame_of(np.zeros((*image, 3), np.uint8), (800, 1333)) == Frame(image, resized, padded)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_other_images_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"an image is .* detectors read uint8 \[H, W, 3\]"):
        frame_of(image, SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(40, 50), (96, 40), (90, 100)])
def test_the_network_sees_what_transformers_shows_it(shape: tuple[int, int]) -> None:
    """But for the padding: with a size_divisor, transformers stretches images to it."""
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    processor = Mask2FormerImageProcessorPil(size={"shortest_edge": SIZE[0], "longest_edge": SIZE[1]}, size_divisor=0)
    expected = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])
    frame = frame_of(image, SIZE)
    height, width = frame.resized
    pixels = pixels_of(image, frame)
    torch.testing.assert_close(pixels[:, :height, :width], expected, rtol=0, atol=1e-5)
    assert pixels.shape[1:] == frame.padded != frame.resized
    assert not pixels[:, height:].any()
    assert not pixels[:, :, width:].any()


def test_names_of_others_are_understood() -> None:
    others = {name: other for other, name in ALIASES.items()}
    names = dict(enumerate(others.get(name, name).title().replace(" ", "_") for name in COCO_NAMES))
    assert (names[3], names[62], names[9]) == ("Motorbike", "Tvmonitor", "Traffic_Light")
    assert coco_labels(names) == list(COCO_NAMES)
    assert coco_labels(dict(enumerate(COCO_NAMES[::-1]))) == list(COCO_NAMES[::-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "LABEL_0"}, "unknown LABEL_0; missing person; named twice none"),
        ({0: "cat"}, "unknown none; missing person; named twice cat"),
        ({65: "mouse"}, "unknown none; missing tv remote; named twice computer mouse"),
        ({80: "sky"}, "unknown sky; missing none"),
    ],
)
def test_names_in_doubt_are_refused(change: dict[int, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coco_labels({**dict(enumerate(COCO_NAMES)), **change})


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mask2former")
    save_mask2former(folder)
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(published, tmp_path / "model"))


def detector(folder: Path, **settings: Any) -> Mask2FormerDetector:
    return Mask2FormerDetector(folder, **{"size": SIZE, "device": "cpu", "score_floor": 0.01, **settings})


def noise(*shapes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def assert_same(found: list[Detection], expected: list[Detection]) -> None:
    assert [(one.label, one.box) for one in found] == [(one.label, one.box) for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)


def test_a_model_detects_alike_alone_and_among_others(published: Path) -> None:
    detect = detector(published, batch_size=2)
    images = noise((32, 32), (40, 32), (32, 32), (32, 32))
    together = detect(images)
    assert [len(found) > 0 for found in together] == [True] * 4
    for image, found in zip(images, together, strict=True):
        assert_same(detect([image])[0], found)
        for one in found:
            assert one.label in detect.labels
            assert one.mask is not None
            assert one.mask.shape == image.shape[:2]
            assert one.score > 0.01
    assert together[0][0].score != together[2][0].score
    assert detect([]) == []
    assert (detect.name, tuple(detect.labels)) == ("geneval-hf", COCO_NAMES)


def test_logits_are_read_as_the_model_gives_them(published: Path) -> None:
    from transformers import Mask2FormerForUniversalSegmentation

    (image,) = noise((30, 52))
    frame = frame_of(image, SIZE)
    assert frame.padded == (64, 96) != frame.resized
    model = Mask2FormerForUniversalSegmentation.from_pretrained(published).eval()
    with torch.no_grad():
        outputs = model(pixel_values=pixels_of(image, frame)[None])
    logits = outputs.class_queries_logits[0], outputs.masks_queries_logits[0]
    expected = read_logits(*logits, frame, labels=COCO_NAMES, score_floor=0.01)
    assert_same(detector(published)([image])[0], expected)


def test_the_names_of_the_model_decide(folder: Path) -> None:
    (image,) = noise((32, 32))
    before = detector(folder)([image])[0]
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = dict(enumerate(COCO_NAMES[::-1]))
    (folder / "config.json").write_text(json.dumps(config))
    after = detector(folder)([image])[0]
    turned = dict(zip(COCO_NAMES, COCO_NAMES[::-1], strict=True))
    assert [one.label for one in after] == [turned[one.label] for one in before]


def test_the_fingerprint_is_of_weights_and_settings(published: Path, folder: Path) -> None:
    own = detector(published).fingerprint
    assert len(own) == 16
    assert detector(published, batch_size=1).fingerprint == own
    others = [detector(published, size=(64, 128)), detector(published, dtype="bfloat16")]
    tensors = load_file(folder / "model.safetensors")
    tensors["class_predictor.bias"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    prints = {own, *(other.fingerprint for other in others), detector(folder).fingerprint}
    assert len(prints) == 4


def test_lower_precision_is_close(published: Path) -> None:
    (image,) = noise((32, 32))
    exact, rounded = (detector(published, dtype=dtype)([image])[0] for dtype in ("float32", "bfloat16"))
    best, near = (max(found, key=lambda one: one.score) for found in (exact, rounded))
    assert best.label == near.label
    assert 0 < abs(best.score - near.score) < 0.05


def test_older_files_are_read(folder: Path) -> None:
    """Published ones have the places of a window in them."""
    (image,) = noise((32, 32))
    before = detector(folder)([image])[0]
    tensors = load_file(folder / "model.safetensors")
    assert "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.query.weight" in tensors
    place = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    save_file({**tensors, place: torch.zeros(16, 16)}, folder / "model.safetensors", {"format": "pt"})
    assert_same(detector(folder)([image])[0], before)


def respell(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def retensor(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "has no config.json of transformers"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "neither model.safetensors nor pytorch"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), ValueError, "weights in .* cannot be read"),
        (lambda f: respell(f, model_type="maskformer"), ValueError, "a 'maskformer' model; a 'mask2former' is needed"),
        (lambda f: respell(f, id2label={"0": "person"}), ValueError, "not COCO's 80: unknown none; missing airplane"),
        (
            lambda f: retensor(f, lambda t: t.pop("class_predictor.bias")),
            ValueError,
            "missing class_predictor.bias; unexpected none; of another shape none",
        ),
        (
            lambda f: retensor(f, lambda t: t.update(extra=torch.zeros(1))),
            ValueError,
            "missing none; unexpected extra; of another shape none",
        ),
        (
            lambda f: retensor(f, lambda t: t.update({"class_predictor.bias": torch.zeros(134)})),
            ValueError,
            "of another shape class_predictor.bias",
        ),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    folder: Path, spoil: Callable[[Path], Any], error: type[Exception], message: str
) -> None:
    spoil(folder)
    with pytest.raises(error, match=message):
        detector(folder)


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("nowhere/at/all", {}, "there is no folder nowhere/at/all"),
        ("facebook/mask2former-of-nobody", {}, "in the Hugging Face cache .*it is not downloaded here"),
        ("x", {"size": (900, 800)}, "0 < shorter <= longer edge"),
        ("x", {"batch_size": 0}, "batch_size 0"),
        ("x", {"score_floor": 1.0}, "score_floor 1.0"),
    ],
)
def test_settings_that_lead_nowhere_are_refused(path: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        Mask2FormerDetector(path, **settings)


@pytest.mark.gpu
def test_the_gpu_agrees(published: Path) -> None:
    images = noise((32, 32), (40, 32))
    for found, expected in zip(detector(published, device="cuda")(images), detector(published)(images), strict=True):
        best, near = (max(some, key=lambda one: one.score) for some in (found, expected))
        assert best.label == near.label
        assert best.score == pytest.approx(near.score, abs=1e-3)
