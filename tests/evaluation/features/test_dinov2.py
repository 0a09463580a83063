"""DINOv2's features are transformers' own of dgm-eval's pixels, with positions as the published code has them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from evaluation.features.dinov2 import Dinov2Extractor, interpolate_positions


def save_tiny(folder: Path, image_size: int) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=28, image_size=image_size
    )
    model = Dinov2Model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dinov2")
    save_tiny(folder, image_size=224)
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(published, tmp_path / "dinov2"))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (3, 60, 90, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def pixels_of(images_BHW3: Tensor) -> Tensor:
    """As in dgm_eval/models/dinov2.py, in whose words: Resize((224, 224), BICUBIC), ToTensor, Normalize."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    squares = [Image.fromarray(image.numpy()).resize((224, 224), Image.Resampling.BICUBIC) for image in images_BHW3]
    pixels_BHW3 = (np.stack([np.asarray(square, np.float64) / 255 for square in squares]) - mean) / std
    return torch.from_numpy(pixels_BHW3).float().permute(0, 3, 1, 2)


def test_features_are_transformers_own_cls(published: Path, images: Tensor) -> None:
    extractor = Dinov2Extractor(published, device="cpu")
    features_BD = extractor(images).features_BD
    with torch.no_grad():
        model = Dinov2Model.from_pretrained(published).eval()
        outputs = model(pixel_values=pixels_of(images))
    assert features_BD.shape == (3, 32)
    assert features_BD.dtype == torch.float32
    torch.testing.assert_close(features_BD, outputs.last_hidden_state[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features_BD, outputs.pooler_output, rtol=1e-4, atol=1e-5)
    assert features_BD.std(dim=0).mean() > 0.01
    assert extractor(images)[1:] == (None, None)


def test_an_image_does_not_depend_on_its_batch_nor_on_what_surrounds_the_call(published: Path, images: Tensor) -> None:
    extractor = Dinov2Extractor(published, device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        alone_BD = extractor(images[2:]).features_BD
    torch.testing.assert_close(alone_BD, extractor(images).features_BD[2:], rtol=1e-4, atol=1e-5)
    assert not alone_BD.requires_grad


def test_positions_are_interpolated_as_published(images: Tensor, tmp_path: Path) -> None:
    save_tiny(tmp_path, image_size=518 // 28 * 28)  # 18 x 18 patches, for the 8 x 8 of 224 pixels
    stored_1TD = load_file(tmp_path / "model.safetensors")["embeddings.position_embeddings"]
    # dinov2/models/vision_transformer.py: scale_factor=((w0 + 0.1) / sqrt(N), (h0 + 0.1) / sqrt(N)), mode="bicubic"
    grid = stored_1TD[:, 1:].reshape(1, 18, 18, 32).permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(grid, scale_factor=(8.1 / 18, 8.1 / 18), mode="bicubic")
    expected_1TD = torch.cat([stored_1TD[:, :1], scaled.permute(0, 2, 3, 1).view(1, -1, 32)], dim=1)
    assert torch.equal(interpolate_positions(stored_1TD, 8), expected_1TD)
    with torch.no_grad():
        model = Dinov2Model.from_pretrained(tmp_path).eval()
        theirs_BD = model(pixel_values=pixels_of(images)).last_hidden_state[:, 0]
        model.embeddings.position_embeddings = torch.nn.Parameter(expected_1TD)
        published_BD = model(pixel_values=pixels_of(images)).last_hidden_state[:, 0]
    features_BD = Dinov2Extractor(tmp_path, device="cpu")(images).features_BD
    torch.testing.assert_close(features_BD, published_BD, rtol=1e-4, atol=1e-5)
    assert (features_BD - theirs_BD).abs().max() > 3e-4


def test_no_patch_is_lost_at_the_published_size() -> None:
    positions_1TD = torch.zeros(1, 1 + 37**2, 4)
    assert interpolate_positions(positions_1TD, 16).shape == (1, 257, 4)


def test_the_identity_is_of_weights_and_settings(folder: Path) -> None:
    first = Dinov2Extractor(folder, device="cpu")
    assert first.name == "dinov2"
    assert len(first.fingerprint) == 16
    assert Dinov2Extractor(folder, device="cpu").fingerprint == first.fingerprint
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 4}))
    heads = Dinov2Extractor(folder, device="cpu").fingerprint
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "layernorm.bias": torch.ones(32)}, folder / "model.safetensors", {"format": "pt"})
    assert len({first.fingerprint, heads, Dinov2Extractor(folder, device="cpu").fingerprint}) == 3


def spoil_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "dinov2_with_registers"}))


def spoil_patches(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "patch_size": 15}))


def spoil_names(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"] = tensors.pop("layernorm.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def spoil_shapes(folder: Path) -> None:
    tensors = {**load_file(folder / "model.safetensors"), "layernorm.weight": torch.zeros(8)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (spoil_config, ValueError, "a model of type 'dinov2_with_registers'; a DINOv2 without registers is needed"),
        (spoil_patches, ValueError, "are of 15 pixels; they must divide 224"),
        (spoil_names, ValueError, "missing layernorm.weight; unexpected norm.weight; of another shape none"),
        (spoil_shapes, ValueError, "missing none; unexpected none; of another shape layernorm.weight"),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            FileNotFoundError,
            "has neither model.safetensors nor",
        ),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    folder: Path, spoil: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    spoil(folder)
    with pytest.raises(error, match=message):
        Dinov2Extractor(folder, device="cpu")


def test_another_hash_is_refused(published: Path) -> None:
    with pytest.raises(ValueError, match="is not the file that was asked for: its sha256 is"):
        Dinov2Extractor(published, sha256="0" * 64, device="cpu")
