"""The built-in rewards say what their docstrings promise."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from evaluation.classifier import DigitClassifier, save_classifier
from rewards.base import Reward, RewardError
from rewards.builtin.classifier import classifier_log_prob
from rewards.builtin.jpeg import jpeg_compressibility
from rewards.registry import load_reward
from rewards.scoring import score_rewards


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_classifier(DigitClassifier("strided5x5", 4, seed=3), tmp_path / "classifier.safetensors")
    return tmp_path / "classifier.safetensors"


def digits(number: int) -> torch.Tensor:
    return torch.randint(0, 256, (number, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_classifier_gives_nats_of_the_own_label(weights: Path) -> None:
    images, labels = digits(4), [3, 0, 2, 2]
    reward = Reward("classifier", load_reward("classifier-log-prob", weights=str(weights)))
    scores = score_rewards([reward], images, [{"label": label} for label in labels], timeout=30.0).checked()
    probabilities = DigitClassifier("strided5x5", 4, seed=3)(images).logits_BK.softmax(dim=-1)
    expected = torch.stack([probabilities[row, label].log() for row, label in enumerate(labels)]).detach()
    torch.testing.assert_close(scores.values_NR[:, 0], expected)


def test_the_classifier_is_read_once(weights: Path) -> None:
    first = classifier_log_prob(digits(2), [{"label": 1}] * 2, weights=weights)
    weights.unlink()
    assert torch.equal(classifier_log_prob(digits(2), [{"label": 1}] * 2, weights=str(weights)), first)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"label": 1}, {"prompt": "one"}], r"raised ValueError: row 1 has no 'label', it has \['prompt'\]"),
        ([{"label": 1}, {"label": 4}], r"labels out of range: got 1..4, allowed 0..3"),
        ([{"label": 1}, {"label": 0.5}], r"labels must be integer class indices"),
    ],
)
def test_rows_without_a_known_class_are_refused(weights: Path, rows: list[dict[str, object]], message: str) -> None:
    reward = Reward("classifier", load_reward("classifier-log-prob", weights=str(weights)))
    with pytest.raises(RewardError, match=message):
        score_rewards([reward], digits(2), rows, timeout=30.0).checked()


def test_a_missing_classifier_is_refused(tmp_path: Path) -> None:
    reward = Reward("classifier", load_reward("classifier-log-prob", weights=str(tmp_path / "none.safetensors")))
    with pytest.raises(RewardError, match=r"raised FileNotFoundError: .*none.safetensors"):
        score_rewards([reward], digits(1), [{"label": 1}], timeout=30.0).checked()


def test_jpeg_counts_kilobytes_and_prefers_the_smooth() -> None:
    images = torch.cat([torch.full((1, 28, 28, 3), 90, dtype=torch.uint8), digits(1)])
    flat, noisy = jpeg_compressibility(images, [{}, {}])
    buffer = io.BytesIO()
    Image.fromarray(images[1].numpy()).save(buffer, format="JPEG", quality=75)
    assert noisy == -len(buffer.getvalue()) / 1000
    assert noisy < flat < 0


def test_jpeg_either_way() -> None:
    small, large = load_reward("jpeg-compressibility"), load_reward("jpeg-incompressibility")
    images = digits(2)
    assert [-kilobytes for kilobytes in small(images, [{}, {}])] == large(images, [{}, {}])
