"""CLIP's features are transformers' own of CMMD's pixels, at length 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from evaluation.clip import pixels
from evaluation.features.clip import ClipExtractor, resize_middle
from rewards.tiny import clip as tiny


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny.save_transformers_clip(folder, activation="quick_gelu", seed=0)
    return folder


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (3, 41, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def squares_of(images_BHW3: Tensor) -> np.ndarray:
    """As cmmd/io_util.py: _center_crop_and_resize to 28 pixels."""
    squares = []
    for image in images_BHW3:
        whole = Image.fromarray(image.numpy())
        width, height = whole.size
        side = min(width, height)
        top, left = (height - side) // 2, (width - side) // 2
        cropped = whole.crop((left, top, left + side, top + side))
        squares.append(np.asarray(cropped.resize((28, 28), resample=Image.Resampling.BICUBIC)).astype(np.float32))
    return np.stack(squares) / 255


def test_features_are_transformers_own_embeddings(published: Path, images: Tensor) -> None:
    features_BD = ClipExtractor(published, device="cpu")(images).features_BD
    model = CLIPModel.from_pretrained(published).eval()
    pixels_B3PP = pixels.normalise(torch.from_numpy(squares_of(images)).permute(0, 3, 1, 2))
    with torch.no_grad():
        text = torch.full((1, 2), model.config.text_config.eos_token_id)
        expected_BD = model(input_ids=text, pixel_values=pixels_B3PP).image_embeds  # of length 1
    torch.testing.assert_close(features_BD, expected_BD, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features_BD.norm(dim=1), torch.ones(3))
    assert features_BD.dtype == torch.float32
    assert features_BD.std(dim=0).mean() > 0.001


def test_the_square_is_cut_out_before_it_is_resized(images: Tensor) -> None:
    assert torch.equal(resize_middle(images, 28).permute(0, 2, 3, 1), torch.from_numpy(squares_of(images)))
    assert not torch.equal(resize_middle(images, 28), pixels.resize_pil(images, 28))
    square_BPP3 = images[:, :, :41]
    assert torch.equal(resize_middle(square_BPP3, 28), pixels.resize_pil(square_BPP3, 28))


def test_an_image_does_not_depend_on_its_batch_nor_on_what_surrounds_the_call(published: Path, images: Tensor) -> None:
    extractor = ClipExtractor(published, device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        alone_BD = extractor(images[2:]).features_BD
    torch.testing.assert_close(alone_BD, extractor(images).features_BD[2:], rtol=1e-4, atol=1e-5)


def test_the_identity_is_of_weights_and_activation(published: Path, tmp_path: Path) -> None:
    first = ClipExtractor(published, device="cpu")
    assert first.name == "clip"
    assert len(first.fingerprint) == 16
    copied = Path(shutil.copytree(published, tmp_path / "copy"))
    assert ClipExtractor(copied, device="cpu").fingerprint == first.fingerprint
    config = json.loads((copied / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (copied / "config.json").write_text(json.dumps(config))
    assert ClipExtractor(copied, device="cpu").fingerprint != first.fingerprint


@pytest.mark.slow
def test_files_of_open_clip_are_read_too(tmp_path: Path, images: Tensor) -> None:
    settings = tiny.make_hpsv2(tmp_path)
    file, architecture = tmp_path / "HPS_v2.1_compressed.pt", str(settings["architecture"])
    gelu, quick = (
        ClipExtractor(file, architecture=architecture, quick_gelu=quick, device="cpu") for quick in (False, True)
    )
    assert gelu(images).features_BD.shape == (3, 16)
    assert not torch.allclose(gelu(images).features_BD, quick(images).features_BD, atol=1e-3)
    assert gelu.fingerprint != quick.fingerprint
