"""The VQ tokenizer against the original authors' numbers."""

from __future__ import annotations

from pathlib import Path

import golden
import torch

from align.checkpoints import load_tokenizer, save_tokenizer
from align.generators import LlamaGen, LlamaGenConfig
from align.tokenizers import VQConfig


def test_tokens_and_images_equal_the_originals(tmp_path: Path) -> None:
    numbers = golden.load("llamagen_vq_tiny")
    torch.save({"model": golden.weights(numbers)}, tmp_path / "vq.pt")
    tokenizer = load_tokenizer(tmp_path / "vq.pt")
    assert tokenizer.config == VQConfig(32, (1, 1, 2), 2, 64, 256, 8)
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.latents(numbers["image"]), numbers["enc_latent"], atol=1e-4, rtol=0)
        assert torch.equal(tokenizer.encode(numbers["image"]), numbers["enc_tokens"])
        decoded = tokenizer.decode(numbers["enc_tokens"], (8, 8))
        torch.testing.assert_close(decoded, numbers["dec_from_enc"], atol=1e-4, rtol=0)
        decoded = tokenizer.decode(numbers["rand_tokens"], (8, 8))
        torch.testing.assert_close(decoded, numbers["dec_from_rand"], atol=1e-4, rtol=0)
    sizes = LlamaGenConfig(dim=8, num_layers=1, num_heads=1, hidden_dim=8, vocab_size=256, num_classes=2, grid=(8, 8))
    images = LlamaGen(sizes, tokenizer).decode(numbers["rand_tokens"])
    # truncation after +128: a float error can move a value over an integer's edge, by one grey level
    difference = (images.int() - numbers["dec_from_rand_uint8"].int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3


def test_published_file_round_trips(tmp_path: Path) -> None:
    tensors = golden.weights(golden.load("llamagen_vq_tiny"))
    torch.save({"model": tensors}, tmp_path / "in.pt")
    save_tokenizer(load_tokenizer(tmp_path / "in.pt"), tmp_path / "out.pt")
    result = torch.load(tmp_path / "out.pt", weights_only=True)["model"]
    assert set(result) == set(tensors)
    assert all(torch.equal(result[name], tensor) for name, tensor in tensors.items())
