"""The classifiers: what they take, what a file keeps, and that training learns, repeats and minds its own seed."""

import hashlib

import pytest
import safetensors.torch
import torch

from evaluation import DigitClassifier, load_classifier, save_classifier
from evaluation.classifier import ARCHITECTURES
from evaluation.train_classifier import augment, train_classifier

ARCHITECTURE_NAMES = sorted(ARCHITECTURES)


def random_images(batch: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 28, 28, 3), dtype=torch.uint8, generator=generator)


def stripes(num_images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class 0 has horizontal stripes, class 1 vertical ones, of random width and phase, in grey."""
    generator = torch.Generator().manual_seed(seed)
    labels_n = torch.arange(num_images) % 2
    width_n, phase_n = (torch.randint(2, 5, (num_images, 1), generator=generator) for _ in range(2))
    wave_nl = (torch.arange(28) + phase_n) // width_n % 2 * 255
    across_nhw = wave_nl[:, :, None].expand(-1, 28, 28)
    images_nhw = torch.where(labels_n[:, None, None] == 0, across_nhw, across_nhw.transpose(1, 2))
    return images_nhw.to(torch.uint8)[..., None].repeat(1, 1, 1, 3), labels_n


@pytest.mark.parametrize(("architecture", "parameters"), [("conv3x3", 257_162), ("strided5x5", 86_962)])
def test_outputs_and_size(architecture, parameters):
    model = DigitClassifier(architecture, num_classes=7)
    features, logits, spatial = model(random_images(3))
    assert spatial is None
    assert (features.shape, features.dtype) == ((3, 64), torch.float32)
    assert (logits.shape, logits.dtype) == ((3, 7), torch.float32)
    assert sum(parameter.numel() for parameter in DigitClassifier(architecture).parameters()) == parameters
    assert model.name == f"digit-{architecture}"


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
def test_an_image_does_not_depend_on_its_batch_or_on_the_mode(architecture):
    model = DigitClassifier(architecture)
    images = random_images(5)
    alone, together = model.train()(images[2:3]), model.eval()(images)
    torch.testing.assert_close(alone.features_BD[0], together.features_BD[2])
    torch.testing.assert_close(alone.logits_BK[0], together.logits_BK[2])


def test_channels_are_averaged():
    model = DigitClassifier("conv3x3")
    images = random_images(2)
    torch.testing.assert_close(model(images).logits_BK, model(images.flip(3)).logits_BK)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 28, 28, 3), TypeError, "must be uint8"),
        (torch.zeros(2, 3, 28, 28, dtype=torch.uint8), ValueError, r"\[B, H, W, 3\], got \[2, 3, 28, 28\]"),
        (torch.zeros(28, 28, 3, dtype=torch.uint8), ValueError, r"\[B, H, W, 3\]"),
        (torch.zeros(2, 32, 32, 3, dtype=torch.uint8), ValueError, "28x28 images, got 32x32"),
    ],
)
def test_wrong_images_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        DigitClassifier("conv3x3")(images)


def test_wrong_architectures_and_labels_are_refused():
    with pytest.raises(ValueError, match="unknown classifier architecture 'resnet'; known: conv3x3, strided5x5"):
        DigitClassifier("resnet")
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        DigitClassifier("conv3x3", num_classes=1)
    images, labels = stripes(4, seed=0)
    for bad_labels, error in [(labels - 1, ValueError), (labels[:3], ValueError), (labels.float(), TypeError)]:
        with pytest.raises(error, match="labels"):
            train_classifier(images, bad_labels, architecture="conv3x3", seed=0, steps=1)
    with pytest.raises(ValueError, match="0 images"):
        train_classifier(images[:0], labels[:0], architecture="conv3x3", seed=0, steps=1)


def test_fingerprint_follows_the_weights_and_the_architecture():
    model = DigitClassifier("conv3x3", seed=3)
    assert model.fingerprint == DigitClassifier("conv3x3", seed=3).fingerprint
    assert len(model.fingerprint) == 16
    before = model.fingerprint
    model.architecture = "strided5x5"  # the same weights, wired otherwise
    assert model.fingerprint != before
    model.architecture = "conv3x3"
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    assert model.fingerprint != before


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
def test_save_and_load(architecture, tmp_path):
    model = DigitClassifier(architecture, num_classes=4, seed=9)
    path = tmp_path / "classifier.safetensors"
    save_classifier(model, path)
    save_classifier(model, path)  # over an existing file
    loaded = load_classifier(path)
    assert (loaded.architecture, loaded.num_classes, loaded.seed) == (architecture, 4, 9)
    assert loaded.fingerprint == model.fingerprint
    torch.testing.assert_close(loaded(random_images(2)), model(random_images(2)), rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == [path]  # no temporary file stays behind


def test_an_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "classifier.safetensors"
    save_classifier(DigitClassifier("conv3x3", seed=1), path)
    before = hashlib.sha256(path.read_bytes()).digest()

    def disk_full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="no space"):
        save_classifier(DigitClassifier("conv3x3", seed=2), path)
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_classifiers_are_refused(tmp_path):
    path = tmp_path / "file.safetensors"
    with pytest.raises(FileNotFoundError):
        load_classifier(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="no classifier: not a readable safetensors file"):
        load_classifier(path)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="no classifier: its metadata says format None"):
        load_classifier(path)
    save_classifier(DigitClassifier("conv3x3"), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_classifier(path)


def test_weights_that_do_not_fit_their_architecture_are_refused(tmp_path):
    model = DigitClassifier("conv3x3")
    model.architecture = "strided5x5"
    save_classifier(model, tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match="damaged classifier file"):
        load_classifier(tmp_path / "file.safetensors")


@pytest.mark.parametrize("architecture", ARCHITECTURE_NAMES)
def test_training_learns_stripes(architecture):
    losses: list[float] = []
    model = train_classifier(
        *stripes(64, seed=0),
        architecture=architecture,
        seed=0,
        steps=25,
        batch_size=16,
        on_step=lambda step, loss: losses.append(loss),
    )
    images, labels = stripes(40, seed=1)
    assert (model(images).logits_BK.argmax(dim=1) == labels).float().mean() >= 0.95
    assert len(losses) == 25
    assert losses[-1] < 0.5 * losses[0]


def test_training_repeats_itself_and_leaves_the_global_random_state_alone():
    images, labels = stripes(16, seed=0)

    def fingerprint(seed: int) -> str:
        return train_classifier(images, labels, architecture="strided5x5", seed=seed, steps=3, batch_size=8).fingerprint

    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = fingerprint(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert fingerprint(0) == first
    assert fingerprint(1) != first


def test_augmentation_moves_images_a_little():
    pixels = torch.zeros(64, 1, 28, 28)
    pixels[:, :, 12:16, 12:16] = 1
    moved = augment(pixels, torch.Generator().manual_seed(0)).clamp(min=0.3) - 0.3  # above the noise
    assert moved.shape == pixels.shape
    mass = moved.sum(dim=(1, 2, 3))
    centre = (moved.sum(dim=(1, 2)) * torch.arange(28)).sum(dim=1) / mass  # the column a blob ends up in
    assert (centre - 13.5).abs().max() < 2
    assert 0.5 < centre.std() < 1.5
