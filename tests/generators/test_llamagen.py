"""LlamaGen against the original authors' numbers, and its published file format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden
import pytest
import torch

from align import SamplingConfig, load_generator, sample, score
from align.generators import LlamaGen
from align.objectives import token_logprobs
from align.tensor_files import read_tensors, save_tensors


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return golden.load("llamagen_c2i_tiny")


@pytest.fixture(scope="module")
def original(numbers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> LlamaGen:
    path = tmp_path_factory.mktemp("published") / "c2i.pt"
    torch.save({"model": golden.weights(numbers)}, path)
    return load_generator("llamagen", path, grid=(4, 4), num_heads=2)


def test_logits_equal_the_originals(numbers: dict[str, Any], original: LlamaGen) -> None:
    condition = original.encode_condition(numbers["labels"])
    with torch.no_grad():
        torch.testing.assert_close(original(numbers["tokens"], condition), numbers["logits"], atol=1e-4, rtol=0)
        null = original(numbers["tokens"], original.null_condition(condition))
    torch.testing.assert_close(null, numbers["logits_uncond"], atol=1e-4, rtol=0)


def test_gradients_equal_the_originals(numbers: dict[str, Any], original: LlamaGen) -> None:
    logits = original(numbers["tokens"], original.encode_condition(numbers["labels"]))
    logprobs = token_logprobs(logits, numbers["tokens"])
    torch.testing.assert_close(logprobs.sum(dim=1).detach(), numbers["logprob_sum"], atol=1e-3, rtol=0)
    original.zero_grad()
    (-logprobs.mean()).backward()
    norms = {
        name: parameter.grad.norm().item()
        for name, parameter in original.named_parameters()
        if parameter.grad is not None
    }
    assert norms == pytest.approx(numbers["grad_norms"], rel=1e-3)
    original.zero_grad()


SAMPLES = ("greedy_cfg1", "greedy_cfg2", "greedy_cfg4_interval5", "topk1_cfg1.75")


@pytest.mark.parametrize("name", SAMPLES)
def test_greedy_tokens_equal_the_originals(name: str, numbers: dict[str, Any], original: LlamaGen) -> None:
    wanted = numbers["samples"][name]
    rollout = sample(original, original.encode_condition(numbers["labels"]), _config(wanted["kwargs"]))
    assert torch.equal(rollout.tokens_BL, wanted["tokens"].long())


def test_sampling_distribution_equals_the_originals(numbers: dict[str, Any], original: LlamaGen) -> None:
    """Guidance 2, temperature .9, top-k 20, top-p .9: the probabilities it gave to the tokens that it drew."""
    wanted = numbers["samples"]["seeded_t0.9_k20_p0.9_cfg2"]
    condition = original.encode_condition(numbers["labels"])
    with torch.no_grad():
        logprobs = score(original, wanted["tokens"].long(), condition, _config(wanted["kwargs"]))
    torch.testing.assert_close(logprobs.exp(), wanted["token_probs"], atol=1e-4, rtol=0)


def _config(kwargs: dict[str, Any]) -> SamplingConfig:
    return SamplingConfig(
        guidance_scale=kwargs["cfg_scale"],
        guided_blocks=kwargs["cfg_interval"] + 2 if "cfg_interval" in kwargs else None,
        temperature=kwargs["temperature"] if kwargs["sample_logits"] else 0,
        top_k=kwargs["top_k"],
        top_p=kwargs["top_p"],
    )


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
def test_published_file_round_trips(wrapper: str | None, numbers: dict[str, Any], tmp_path: Path) -> None:
    tensors = golden.weights(numbers)
    # half of it in another precision and in an odd order, with the extra table that some published files carry
    tensors = {name: tensor.half() if i % 2 else tensor for i, (name, tensor) in enumerate(reversed(tensors.items()))}
    tensors["freqs_cis"] = torch.randn(17, 32, 2)
    save_tensors(tmp_path / "in.pt", tensors, wrapper)
    load_generator("llamagen", tmp_path / "in.pt", grid=(4, 4), num_heads=2).save_published(tmp_path / "out.pt")
    result = read_tensors(tmp_path / "out.pt")
    assert result.wrapper == wrapper
    assert list(result.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert result.tensors[name].dtype == tensor.dtype
        assert torch.equal(result.tensors[name], tensor), name


def test_safetensors_are_read_and_written(numbers: dict[str, Any], tmp_path: Path) -> None:
    save_tensors(tmp_path / "in.safetensors", golden.weights(numbers))
    generator = load_generator("llamagen", tmp_path / "in.safetensors", grid=(4, 4), num_heads=2)
    generator.save_published(tmp_path / "out.safetensors")
    assert (tmp_path / "in.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()


def test_context_replaces_the_inputs(generator: LlamaGen) -> None:
    tokens, context = torch.zeros(1, 6, dtype=torch.long), torch.full((1, 6), 5)
    condition = generator.encode_condition([1])
    assert torch.equal(generator(tokens, condition, context_BL=context), generator(context, condition))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([4], "label 4 is out of range; this generator knows 0 to 3"),
        ([-1], "label -1 is out of range"),
        ([0.5], "integers"),
    ],
)
def test_a_wrong_label_is_refused(generator: LlamaGen, labels: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generator.encode_condition(labels)


def test_wrong_images_and_token_counts_are_refused(generator: LlamaGen) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[B, 12, 8, 3\]"):
        generator.encode(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="has 6"):
        generator(torch.zeros(1, 5, dtype=torch.long), generator.encode_condition([0]))
