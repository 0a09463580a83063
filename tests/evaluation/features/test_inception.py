"""Inception gives what torch-fidelity's own run gives and ADM's spatial layer; files are verified and never unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from evaluation.features import inception
from evaluation.features.inception import PUBLISHED_SHA256, WEIGHTS, InceptionExtractor
from recipes.speed.inception import random_inception

# CPUs take other algorithms for other sizes of batch, which sum in another order
ROUNDING = {"rtol": 1e-4, "atol": 1e-4}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_inception()


@pytest.fixture(scope="module")
def weights(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("inception") / WEIGHTS
    torch.save(tensors, path)
    yield path
    path.unlink()  # 95 MB


@pytest.fixture(scope="module")
def extractor(weights: Path) -> InceptionExtractor:
    return InceptionExtractor(weights, sha256=None, device="cpu")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (2, 40, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def output(extractor: InceptionExtractor, images: Tensor) -> Any:
    return extractor(images)


@pytest.fixture(scope="module")
def fidelitys_own(weights: Path, images: Tensor) -> dict[str, Tensor]:
    """What torch-fidelity's class says of these images, and the branch of the spatial layer with all its channels."""
    network = fidelity.FeatureExtractorInceptionV3(
        "own", ["2048", "logits_unbiased", "logits"], feature_extractor_weights_path=str(weights)
    )
    seen: dict[str, Tensor] = {}
    network.Mixed_6d.register_forward_hook(lambda module, inputs, output: seen.update(block=output, into=inputs[0]))
    features, unbiased, biased = network(images.permute(0, 3, 1, 2))
    branch = network.Mixed_6d.branch1x1
    normalised = branch.bn(branch.conv(seen["into"]))
    return {"features": features, "unbiased": unbiased, "biased": biased, "branch": normalised.relu(), **seen}


def test_features_and_logits_are_torch_fidelitys_own(output: Any, fidelitys_own: dict[str, Tensor]) -> None:
    features_BD, logits_BK, _ = output
    assert features_BD.shape == (2, 2048)
    assert logits_BK.shape == (2, 1008)
    assert features_BD.dtype == logits_BK.dtype == torch.float32
    assert torch.equal(features_BD, fidelitys_own["features"])
    assert torch.equal(logits_BK, fidelitys_own["unbiased"])
    assert not torch.equal(logits_BK, fidelitys_own["biased"])
    assert not features_BD.requires_grad
    assert features_BD.std() > 0.01  # else the comparisons would hold of nothing


def test_spatial_features_are_adms(output: Any, fidelitys_own: dict[str, Tensor]) -> None:
    spatial_BS, branch_BCHW = output.spatial_BS, fidelitys_own["branch"]
    assert spatial_BS.shape == (2, 2023)
    assert branch_BCHW.shape == (2, 192, 17, 17)
    assert torch.equal(branch_BCHW, fidelitys_own["block"][:, :192])  # the first of the block's four branches
    grid_BHWC = spatial_BS.view(2, 17, 17, 7)  # channels last, as TensorFlow flattens them
    for channel in range(7):
        assert torch.equal(grid_BHWC[..., channel], branch_BCHW[:, channel])
    assert not torch.equal(spatial_BS, branch_BCHW[:, :7].flatten(1))
    assert (spatial_BS >= 0).all()
    assert 0.1 < (spatial_BS == 0).float().mean() < 0.9  # after the ReLU


def test_an_image_does_not_depend_on_its_batch_nor_on_what_surrounds_the_call(
    extractor: InceptionExtractor, images: Tensor, output: Any
) -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            alone = extractor(images[1:])
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    for one, both in zip(alone, output, strict=True):
        torch.testing.assert_close(one, both[1:], **ROUNDING)
        assert one.dtype == torch.float32


def test_the_identity_is_of_weights_and_preprocessing(
    extractor: InceptionExtractor, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = hashlib.sha256(f"{inception.PREPROCESSING}:{sha256(weights)}".encode()).hexdigest()[:16]
    assert extractor.fingerprint == identity
    assert extractor.name == "inception"
    assert not extractor.genuine
    monkeypatch.setattr(inception, "PUBLISHED_SHA256", sha256(weights))
    checked = InceptionExtractor(weights.parent, sha256=sha256(weights)[:8].upper(), device="cpu")
    assert checked.genuine
    assert checked.fingerprint == identity


def test_the_published_hash_has_the_digits_of_the_files_name() -> None:
    assert WEIGHTS.endswith(f"-{PUBLISHED_SHA256[:8]}.pth")
    assert len(PUBLISHED_SHA256) == 64


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({}, f"its sha256 is [0-9a-f]{{64}}, expected {PUBLISHED_SHA256}.*for weights of your own give the beginning"),
        ({"sha256": "01234567"}, "expected 01234567"),
        ({"sha256": "abc"}, "sha256 is 'abc'; it must be the first 8 to 64 hexadecimal digits"),
        ({"sha256": ""}, "sha256 is ''"),
    ],
)
def test_other_hashes_are_refused(weights: Path, told: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InceptionExtractor(weights, device="cpu", **told)


class Touch:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("dump", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_programs_in_files_are_not_run(tmp_path: Path, dump: Callable[[Any, Path], Any]) -> None:
    file, marker = tmp_path / WEIGHTS, tmp_path / "marker"
    dump({"fc.bias": Touch(marker)}, file)
    with pytest.raises(ValueError, match="is not the file that was asked for"):
        InceptionExtractor(file, device="cpu")
    for told in (None, sha256(file)):
        with pytest.raises(ValueError, match="is not a file of tensors alone .*programs are not run from it"):
            InceptionExtractor(file, sha256=told, device="cpu")
    assert not marker.exists()
    with contextlib.suppress(Exception):  # so torch-fidelity would have read it: too late for its error
        torch.load(file, weights_only=False)
    assert marker.exists()


def test_files_that_do_not_fit_are_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    def refused(content: Any, message: str) -> None:
        torch.save(content, tmp_path / "weights.pth")
        with pytest.raises(ValueError, match=message):
            InceptionExtractor(tmp_path / "weights.pth", sha256=None, device="cpu")

    refused([torch.zeros(1)], "holds no names with tensors alone")
    refused({"epoch": 3}, "holds no names with tensors alone")
    without = {name: tensor for name, tensor in tensors.items() if name != "fc.bias"}
    refused(without, r"does not fit the Inception of torch-fidelity: .*Missing key.*fc\.bias")
    refused({**tensors, "AuxLogits.fc.bias": torch.zeros(1)}, r"Unexpected key.*AuxLogits\.fc\.bias")
    refused({**tensors, "fc.bias": torch.zeros(1000)}, r"size mismatch for fc\.bias")
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="is not a file of tensors alone"):
        InceptionExtractor(tmp_path / "weights.pth", sha256=None, device="cpu")


def test_a_missing_file_or_package_is_named(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=f"there is no file .*{WEIGHTS}.*not downloaded here"):
        InceptionExtractor(tmp_path)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ValueError, match=r"torch-fidelity, which does not import .*pip install 'ar-align\[fid\]'"):
        InceptionExtractor(weights, sha256=None)


def test_images_of_other_kinds_are_refused(extractor: InceptionExtractor) -> None:
    with pytest.raises(TypeError, match="images must be uint8"):
        extractor(torch.zeros(1, 8, 8, 3))
    with pytest.raises(ValueError, match="shape \\[B, H, W, 3\\]"):
        extractor(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.gpu
def test_the_gpu_agrees(weights: Path, extractor: InceptionExtractor) -> None:
    images = torch.randint(0, 256, (2, 40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    there = InceptionExtractor(weights, sha256=None, device="cuda")(images)
    for ours, theirs in zip(there, extractor(images), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-3)
