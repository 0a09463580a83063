"""The multi-scale tokenizer against the original authors' numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden
import pytest
import torch

from align.checkpoints import load_tokenizer, save_tokenizer
from align.tokenizers import MultiscaleVQConfig, MultiscaleVQTokenizer

SCALES = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return golden.load("var_vqvae_p4")


@pytest.fixture(scope="module")
def original(numbers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> MultiscaleVQTokenizer:
    path = tmp_path_factory.mktemp("published") / "vae.pth"
    torch.save(golden.weights(numbers), path)
    tokenizer = load_tokenizer(path, patch_nums=SCALES)
    assert isinstance(tokenizer, MultiscaleVQTokenizer)
    return tokenizer


def test_tokens_equal_the_originals(numbers: dict[str, Any], original: MultiscaleVQTokenizer) -> None:
    assert original.config == MultiscaleVQConfig(SCALES, 32, (1, 1, 2, 2, 4), 2, 128, 8)
    with torch.no_grad():
        torch.testing.assert_close(original.latents(numbers["image"]), numbers["enc_latent"], atol=1e-4, rtol=0)
        assert torch.equal(original.encode(numbers["image"]), numbers["enc_tokens"])


@pytest.mark.parametrize("kind", ["enc", "rand"])
def test_what_the_next_scales_read_equals_the_originals(
    kind: str, numbers: dict[str, Any], original: MultiscaleVQTokenizer
) -> None:
    tokens = numbers[f"{kind}_tokens"]
    with torch.no_grad():
        torch.testing.assert_close(original.next_inputs(tokens), numbers[f"var_input_from_{kind}"], atol=1e-5, rtol=0)
        # the last scale is read by nobody
        other = torch.cat([tokens[:, :14], tokens[:, 14:].roll(1, dims=1)], dim=1)
        assert torch.equal(original.next_inputs(other), original.next_inputs(tokens))
        f_hat = None
        for scale, part in enumerate(tokens.split([1, 4, 9, 16], dim=1)):
            f_hat = original.add_scale(f_hat, part, scale)
    if kind == "rand":
        torch.testing.assert_close(f_hat, numbers["fhat_from_rand"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("tokens", "image"), [("enc_tokens", "rec_image"), ("rand_tokens", "image_from_rand")])
def test_images_equal_the_originals(
    tokens: str, image: str, numbers: dict[str, Any], original: MultiscaleVQTokenizer
) -> None:
    with torch.no_grad():
        decoded = original.decode(numbers[tokens])
    # the wanted images are clamped, and stored in half precision
    torch.testing.assert_close(decoded.clamp(-1, 1), numbers[image].float(), atol=1e-3, rtol=0)
    # truncation to 0..255: half precision's error can move a value over an integer's edge, by one grey level
    wanted = ((numbers[image].float() + 1) / 2 * 255).to(torch.uint8)
    difference = (original.decode_images(numbers[tokens]).permute(0, 3, 1, 2).int() - wanted.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.06


def test_uint8_is_truncated_not_rounded(original: MultiscaleVQTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.tensor([-1.2, -1.0, 0.0, 0.999, 1.0, 3.0])
    monkeypatch.setattr(original, "decode", lambda tokens: pixels.view(1, 1, 1, 6).expand(1, 3, 1, 6))
    assert original.decode_images(torch.zeros(1, 30, dtype=torch.long))[0, 0, :, 0].tolist() == [
        0,
        0,
        127,
        254,
        255,
        255,
    ]


def test_ten_scales_share_four_convolutions() -> None:
    """Two of the ten lie exactly between two convolutions; the published weights depend on which one serves them."""
    tokenizer = MultiscaleVQTokenizer(
        MultiscaleVQConfig(channels=32, channel_multipliers=(1,), num_res_blocks=1, codebook_size=2, codebook_dim=1)
    )
    for number, phi in enumerate(tokenizer.quantize.quant_resi.qresi_ls):
        torch.nn.init.zeros_(phi.weight)
        torch.nn.init.constant_(phi.bias, number)
    with torch.no_grad():
        sums = tokenizer.quantize.quant_resi
        served = [int(2 * sums(torch.zeros(1, 1, 1, 1), scale / 9).item()) for scale in range(10)]
    assert served == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


def test_published_file_round_trips(numbers: dict[str, Any], tmp_path: Path) -> None:
    tensors = golden.weights(numbers)
    tensors["quantize.ema_vocab_hit_SV"] = torch.rand(4, 128)
    torch.save(tensors, tmp_path / "in.pth")
    save_tokenizer(load_tokenizer(tmp_path / "in.pth", patch_nums=SCALES), tmp_path / "out.pth")
    result = torch.load(tmp_path / "out.pth", weights_only=True)
    assert list(result) == list(tensors)
    assert all(torch.equal(result[name], tensor) for name, tensor in tensors.items())


def test_statistics_of_other_scales_are_left_out(numbers: dict[str, Any], tmp_path: Path) -> None:
    tensors = golden.weights(numbers)
    tensors["quantize.ema_vocab_hit_SV"] = torch.ones(10, 128)
    torch.save(tensors, tmp_path / "vae.pth")
    tokenizer = load_tokenizer(tmp_path / "vae.pth", patch_nums=SCALES)
    assert not tokenizer.state_dict()["quantize.ema_vocab_hit_SV"].any()


def test_scales_are_asked_for_and_checked(numbers: dict[str, Any], tmp_path: Path) -> None:
    torch.save(golden.weights(numbers), tmp_path / "vae.pth")
    with pytest.raises(
        ValueError, match=r"does not say its scales; pass patch_nums=\(1, 2, 3, 4, 5, 6, 8, 10, 13, 16\)"
    ):
        load_tokenizer(tmp_path / "vae.pth")
    for wrong in ((1,), (2, 2), (3, 1), (0, 4)):
        with pytest.raises(ValueError, match="two or more growing side lengths"):
            load_tokenizer(tmp_path / "vae.pth", patch_nums=wrong)
