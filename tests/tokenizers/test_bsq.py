"""Infinity's tokenizer against the original authors' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden
import pytest
import torch

from align.checkpoints import load_tokenizer, save_tokenizer
from align.tokenizers import BSQConfig, BSQTokenizer


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return golden.load("infinity_tiny")


@pytest.fixture(scope="module")
def path(numbers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "vae.pth"
    torch.save({"vae": golden.weights(numbers["vae"])}, path)
    return path


def load(path: Path, scales: Any) -> BSQTokenizer:
    tokenizer = load_tokenizer(path, scales=scales)
    assert isinstance(tokenizer, BSQTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def original(numbers: dict[str, Any], path: Path) -> BSQTokenizer:
    return load(path, numbers["square"]["scales"])


@pytest.mark.parametrize("kind", ["square", "tall"])
def test_bits_equal_the_originals(kind: str, numbers: dict[str, Any], path: Path) -> None:
    wanted = numbers[kind]
    tokenizer = load(path, wanted["scales"])
    assert tokenizer.config == BSQConfig(tuple(wanted["scales"]), 32, (1, 2, 2), 1, 8)
    with torch.no_grad():
        tokens = tokenizer.encode(wanted["image"])
        assert torch.equal(tokens, wanted["tokens"].long())
        torch.testing.assert_close(tokenizer.next_inputs(tokens), wanted["inputs"], atol=1e-5, rtol=0)


def test_latents_and_images_equal_the_originals(numbers: dict[str, Any], original: BSQTokenizer) -> None:
    wanted = numbers["square"]
    with torch.no_grad():
        torch.testing.assert_close(original.latents(wanted["image"]), wanted["latent"], atol=1e-4, rtol=0)
        f_hat = None
        for scale, part in enumerate(wanted["tokens"].long().split([8, 32, 128, 288], dim=1)):
            f_hat = original.add_scale(f_hat, part, scale)
        torch.testing.assert_close(f_hat, wanted["f_hat"], atol=1e-5, rtol=0)
        decoded = original.decode(wanted["tokens"].long())
    # the wanted images are clamped, and stored in half precision
    torch.testing.assert_close(decoded.clamp(-1, 1), wanted["reconstruction"].float(), atol=1e-3, rtol=0)


def test_inputs_of_flipped_bits_equal_the_originals(numbers: dict[str, Any], original: BSQTokenizer) -> None:
    wanted = numbers["square"]["flipped"]
    torch.testing.assert_close(original.next_inputs(wanted["context"].long()), wanted["inputs"], atol=1e-5, rtol=0)
    # the last scale is read by nobody
    other = wanted["context"].long()
    other[:, -288:] = 1 - other[:, -288:]
    torch.testing.assert_close(original.next_inputs(other), wanted["inputs"], atol=1e-5, rtol=0)


def test_a_code_is_a_corner_of_the_unit_spheres_cube(original: BSQTokenizer) -> None:
    tokens = torch.randint(0, 2, (1, 456), generator=torch.Generator().manual_seed(0))
    codes = original.embed(tokens).view(57, 8)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(57))
    assert torch.equal(codes > 0, tokens.view(57, 8).bool())


def test_what_is_nothing_is_minus(original: BSQTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(original, "latents", lambda images: torch.zeros(1, 8, 6, 6))
    tokens = original.encode(torch.zeros(1, 3, 24, 24))
    assert not tokens[:, :8].any()
    assert tokens[:, 8:40].all()  # what the first scale took too much


def test_uint8_is_truncated_not_rounded(original: BSQTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.tensor([-1.2, -1.0, 0.0, 0.999, 1.0, 3.0])
    monkeypatch.setattr(original, "decode", lambda tokens: pixels.view(1, 1, 1, 6).expand(1, 3, 1, 6))
    found = original.decode_images(torch.zeros(1, 456, dtype=torch.long))[0, 0, :, 0].tolist()
    assert found == [0, 0, 127, 254, 255, 255]


def test_images_pass_in_parts(numbers: dict[str, Any], original: BSQTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ((numbers["square"]["image"] + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1)
    whole = original.encode_images(images)
    decoded = original.decode_images(whole)
    monkeypatch.setattr("align.tokenizers.bsq.CHUNK_PIXELS", 24 * 24)
    passed: list[int] = []
    for part in (original.encoder, original.decoder):
        part.register_forward_pre_hook(lambda module, inputs: passed.append(len(inputs[0])))
    assert torch.equal(original.encode_images(images), whole)
    assert torch.equal(original.decode_images(whole), decoded)
    assert passed == [1, 1, 1, 1]


def test_published_file_round_trips(numbers: dict[str, Any], tmp_path: Path) -> None:
    tensors = golden.weights(numbers["vae"])
    # as the authors' module saves it: with the quantiser's constants, under two names; and a loss that it was trained with
    beside = {"quantizer.lfq.mask": 2 ** torch.arange(7, -1, -1), "quantize.lfq.mask": 2 ** torch.arange(7, -1, -1)}
    content = {"vae": {**tensors, **beside, "perceptual_model.net.weight": torch.ones(2)}, "step": 3}
    torch.save(content, tmp_path / "in.pth")
    save_tokenizer(load_tokenizer(tmp_path / "in.pth", scales=[(1, 1), (6, 6)]), tmp_path / "out.pth")
    result = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(result) == ["vae"]
    assert list(result["vae"]) == list(tensors)
    assert all(torch.equal(result["vae"][name], tensor) for name, tensor in tensors.items())


def test_scales_are_asked_for_and_checked(path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not say its scales; pass scales=\[\(1, 1\), \(2, 2\), ...\]"):
        load_tokenizer(path)
    for wrong in ([(1, 1)], [(2, 2), (2, 2)], [(1, 2), (2, 1)], [(0, 1), (2, 2)]):
        with pytest.raises(ValueError, match="two or more growing maps"):
            load_tokenizer(path, scales=wrong)


def test_lost_tensors_are_named(numbers: dict[str, Any], tmp_path: Path) -> None:
    tensors = golden.weights(numbers["vae"])
    del tensors["decoder.mid.block_2.conv1.conv.bias"]
    torch.save({"vae": tensors}, tmp_path / "vae.pth")
    with pytest.raises(ValueError, match="1 missing: decoder.mid.block_2.conv1.conv.bias"):
        load_tokenizer(tmp_path / "vae.pth", scales=[(1, 1), (6, 6)])
