"""Small classifiers of 28x28 images: the domain's own feature extractor, in the place Inception has for photographs.

Two architectures that share nothing but their input: "conv3x3" evaluates, "strided5x5" rewards. A generator optimised
against one is scored by the other, so that an exploit of the reward's weaknesses does not read as an improvement.

Shapes: B batch, H height, W width, D feature dim, K classes.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluation.features.base import ExtractorOutput
from evaluation.network_files import read_network, save_network

IMAGE_SIZE = 28
FEATURE_DIM = 64


def _conv3x3() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.MaxPool2d(2),  # before the ReLU: same values, a quarter of the work
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, FEATURE_DIM),
        nn.ReLU(),
    )


def _strided5x5() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Conv2d(32, 40, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(40 * 4 * 4, FEATURE_DIM),
        nn.GELU(),
    )


# No normalisation layers and no dropout: an image's features must not depend on its batch or on train/eval mode.
ARCHITECTURES: dict[str, Callable[[], nn.Sequential]] = {"conv3x3": _conv3x3, "strided5x5": _strided5x5}


def check_images(images_BHW3: Tensor) -> None:
    """Refuse anything but uint8 [B, H, W, 3].

    Raises:
        TypeError: not uint8 (a float image has no agreed range).
        ValueError: wrong shape.
    """
    if images_BHW3.dtype != torch.uint8:
        raise TypeError(
            f"images must be uint8 in 0..255, got {images_BHW3.dtype}; "
            "convert floats in [-1, 1] by (127.5 * x + 128).clamp(0, 255).to(torch.uint8)"
        )
    if images_BHW3.ndim != 4 or images_BHW3.shape[3] != 3:
        raise ValueError(
            f"images must have shape [B, H, W, 3], got {list(images_BHW3.shape)}; repeat a grey channel three times"
        )


def check_labels(labels_B: Tensor, batch: int, num_classes: int | None = None) -> None:
    """Refuse anything but `batch` integer class indices, each in 0..num_classes - 1 where that is known.

    Raises:
        TypeError: not an integer dtype.
        ValueError: wrong shape or an index out of range.
    """
    if labels_B.is_floating_point() or labels_B.is_complex() or labels_B.dtype == torch.bool:
        raise TypeError(f"labels must be integer class indices, got {labels_B.dtype}")
    if labels_B.shape != (batch,):
        raise ValueError(f"labels must be one index per image, shape [{batch}], got {list(labels_B.shape)}")
    if batch == 0:
        return
    low, high = int(labels_B.min()), int(labels_B.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        allowed = "0 and above" if num_classes is None else f"0..{num_classes - 1}"
        raise ValueError(f"labels out of range: got {low}..{high}, allowed {allowed}")


def images_to_pixels(images_BHW3: Tensor) -> Tensor:
    """uint8 [B, 28, 28, 3] -> float32 [B, 1, 28, 28] in [0, 1]: the mean over the channels.

    Raises:
        TypeError, ValueError: see `check_images`; also for images that are not 28x28.
    """
    check_images(images_BHW3)
    height, width = images_BHW3.shape[1:3]
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(
            f"digit classifiers read {IMAGE_SIZE}x{IMAGE_SIZE} images, got {height}x{width}; resize them first"
        )
    return images_BHW3.float().mean(dim=3).div(255).unsqueeze(1)


class DigitClassifier(nn.Module):
    """A named architecture with a linear head.

    Args:
        architecture: a key of `ARCHITECTURES`.
        num_classes: K, at least 2.
        seed: fixes the initial weights; remembered because it says which training made this model.

    Raises:
        ValueError: unknown architecture or fewer than two classes.
    """

    def __init__(self, architecture: str, num_classes: int = 10, *, seed: int = 0) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"unknown classifier architecture {architecture!r}; known: {', '.join(sorted(ARCHITECTURES))}"
            )
        if num_classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, got {num_classes}")
        self.architecture = architecture
        self.num_classes = num_classes
        self.seed = seed
        with torch.random.fork_rng(devices=[]):  # the caller's random state is not ours to move
            torch.manual_seed(seed)
            self.trunk = ARCHITECTURES[architecture]()
            self.head = nn.Linear(FEATURE_DIM, num_classes)
        self.to(memory_format=torch.channels_last)  # trains a third faster on a CPU

    def forward(self, images_BHW3: Tensor) -> ExtractorOutput:
        """Classify uint8 [B, 28, 28, 3] images from any device."""
        return self.classify_pixels(images_to_pixels(images_BHW3.to(self.head.weight.device)))

    def classify_pixels(self, pixels_B1HW: Tensor) -> ExtractorOutput:
        """Classify float32 [B, 1, 28, 28] in about [0, 1]; training enters here, after its augmentation."""
        features_BD = self.trunk(pixels_B1HW)
        return ExtractorOutput(features_BD.float(), self.head(features_BD).float())

    @property
    def name(self) -> str:
        """A readable name, such as "digit-conv3x3"; the identity is `fingerprint`."""
        return f"digit-{self.architecture}"

    @property
    def fingerprint(self) -> str:
        """16 hex digits of a sha256 over the architecture and every weight: equal only for equal numbers out."""
        digest = hashlib.sha256(self.architecture.encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


FILE_FORMAT = "ar-align-digit-classifier-1"


def save_classifier(model: DigitClassifier, path: str | Path) -> None:
    """Write the weights, with what is needed to rebuild the model; atomic."""
    told = {"architecture": model.architecture, "num_classes": str(model.num_classes), "seed": str(model.seed)}
    save_network(model, path, FILE_FORMAT, told)


def load_classifier(path: str | Path) -> DigitClassifier:
    """Read a file written by `save_classifier`; the model comes back on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file, not a classifier, or weights that do not fit the architecture it names.
    """
    tensors, metadata = read_network(path, FILE_FORMAT, what="classifier")
    try:
        model = DigitClassifier(metadata["architecture"], int(metadata["num_classes"]), seed=int(metadata["seed"]))
        model.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is a damaged classifier file: {error}; write it again") from error
    return model
