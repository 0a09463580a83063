"""Inception-2015, the network of FID, sFID and IS, as the class of torch-fidelity has it.

Shapes: B batch, H/W of images, D 2048 features, K 1008 logits, S 2023 spatial features.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.classifier import check_images
from evaluation.devices import pick_device
from evaluation.features.arithmetic import plain_float32
from evaluation.features.base import ExtractorOutput
from evaluation.weights import sha256_of_file

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PREPROCESSING = "inception-2015:tf1-bilinear-299:(x-128)/128"
SPATIAL_CHANNELS = 7  # of 17x17: ADM's choice, so that sFID has about as many features as FID


class InceptionExtractor:
    """An `Extractor`: pool3, the logits without bias, and ADM's spatial features.

    All three are those of ADM's evaluator: `pool_3:0`; pool3 @ W without the bias; and of `mixed_6/conv:0` the first 7
    channels of 17x17, after normalisation and ReLU, flattened as TensorFlow has them, channels last. Within the network
    the images are resized to 299 by TensorFlow 1's bilinear rule, which does not antialias.

    Args:
        path: the file weights-inception-2015-12-05-6726825d.pth, or the folder that holds it. It is never unpickled: what
            is in it besides tensors is refused, not run.
        sha256: what the file's must begin with, 8 digits at least; None takes any weights that fit.
        device: as in `evaluation.devices.pick_device`.

    Attributes:
        genuine: these are the published weights, so that moments published with ADM's evaluator compare.

    Raises:
        FileNotFoundError: no such file.
        ValueError: torch-fidelity is missing, another hash, a file of more than tensors, or weights that do not fit.
    """

    name = "inception"

    def __init__(self, path: str | Path, *, sha256: str | None = PUBLISHED_SHA256, device: str = "auto") -> None:
        self.device = pick_device(device)
        network_class = _import_network()
        weights = _find(Path(path).expanduser())
        digest = sha256_of_file(weights)
        _check_digest(weights, digest, sha256)
        self.genuine = digest == PUBLISHED_SHA256
        self.fingerprint = hashlib.sha256(f"{PREPROCESSING}:{digest}".encode()).hexdigest()[:16]
        self._network = _build(network_class, weights).to(self.device)

    def __call__(self, images_BHW3: Tensor, /) -> ExtractorOutput:
        """float32, on the extractor's device, of uint8 [B, H, W, 3]."""
        check_images(images_BHW3)
        seen: list[Tensor] = []
        branch = self._network.Mixed_6d.branch1x1
        with (
            plain_float32(self.device),
            branch.register_forward_hook(lambda module, inputs, output_BCHW: seen.append(output_BCHW)),
        ):
            features_BD, logits_BK = self._network(images_BHW3.to(self.device).permute(0, 3, 1, 2))
        spatial_BHWC = seen[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1)
        return ExtractorOutput(features_BD, logits_BK, spatial_BHWC.flatten(1))


def _import_network() -> Any:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ValueError(
            f"Inception is read by the package torch-fidelity, which does not import ({error}); try: pip install 'ar-align[fid]'"
        ) from error
    return FeatureExtractorInceptionV3


def _find(path: Path) -> Path:
    if path.is_dir():
        path = path / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(
            f"there is no file {path} (relative to {Path.cwd()}); Inception's weights are not downloaded here. Fetch {WEIGHTS} from the releases of torch-fidelity and give its path"
        )
    return path


def _check_digest(weights: Path, digest: str, expected: str | None) -> None:
    if expected is None:
        return
    if not re.fullmatch("[0-9a-f]{8,64}", expected.lower()):
        raise ValueError(
            f"sha256 is {expected!r}; it must be the first 8 to 64 hexadecimal digits, or null for no check"
        )
    if not digest.startswith(expected.lower()):
        raise ValueError(
            f"{weights} is not the file that was asked for: its sha256 is {digest}, expected {expected.lower()}. Fetch {WEIGHTS} anew, or for weights of your own give the beginning of their sha256"
        )


def _build(network_class: Any, weights: Path) -> Any:
    # torch-fidelity unpickles the file that it is given, which runs whatever is in it; it is given a copy of the tensors
    copy = io.BytesIO()
    torch.save(_read_tensors(weights), copy)
    copy.seek(0)
    try:
        return network_class("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=copy)
    except RuntimeError as error:
        reasons = " ".join(str(error).split())
        shown = reasons if len(reasons) <= 500 else f"{reasons[:500]} ..."
        raise ValueError(f"{weights} does not fit the Inception of torch-fidelity: {shown}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in many ways
        raise ValueError(
            f"{path} is not a file of tensors alone ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'nothing in it'}); programs are not run from it. Fetch {WEIGHTS} anew"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise ValueError(f"{path} holds no names with tensors alone, as Inception's weights do; fetch {WEIGHTS} anew")
    return dict(content)
