"""LlamaGen's text-to-image generator against the original authors' numbers, and its published file format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from conftest import Captions, tiny_llamagen, tiny_llamagen_t2i
from torch import Tensor

from align import SamplingConfig, load_generator, sample, score
from align.generators import LlamaGenT2I
from align.objectives import token_logprobs
from align.tensor_files import read_tensors, save_tensors
from align.types import Condition


@dataclass(frozen=True)
class Features:
    features_BTD: Tensor
    mask_BT: Tensor


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return golden.load("llamagen_t2i_tiny")


@pytest.fixture(scope="module")
def original(numbers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> LlamaGenT2I:
    path = tmp_path_factory.mktemp("published") / "t2i.pt"
    torch.save({"model": golden.weights(numbers)}, path)
    generator = load_generator("llamagen-t2i", path, grid=(4, 4), num_heads=2)
    assert isinstance(generator, LlamaGenT2I)
    return generator


@pytest.fixture(scope="module")
def condition(numbers: dict[str, Any], original: LlamaGenT2I) -> Condition:
    return original.encode_condition(Features(numbers["caption"], numbers["emb_masks"]))


def test_logits_equal_the_originals(numbers: dict[str, Any], original: LlamaGenT2I, condition: Condition) -> None:
    with torch.no_grad():
        torch.testing.assert_close(original(numbers["tokens"], condition), numbers["logits"], atol=1e-4, rtol=0)
        null = original(numbers["tokens"], original.null_condition(condition))
    torch.testing.assert_close(null, numbers["logits_uncond"], atol=1e-4, rtol=0)


def test_gradients_equal_the_originals(numbers: dict[str, Any], original: LlamaGenT2I, condition: Condition) -> None:
    """Their loss is the mean over the images marked valid."""
    valid_B = numbers["valid"].float()
    original.zero_grad()
    nll_B = -token_logprobs(original(numbers["tokens"], condition), numbers["tokens"]).mean(dim=1)
    loss = (nll_B * valid_B).sum() / valid_B.sum()
    loss.backward()
    assert loss.item() == pytest.approx(numbers["train_loss"], rel=1e-5)
    norms = {name: p.grad.norm().item() for name, p in original.named_parameters() if p.grad is not None}
    assert norms == pytest.approx(numbers["grad_norms"], rel=1e-3)
    original.zero_grad()


def settings(kwargs: dict[str, Any]) -> SamplingConfig:
    return SamplingConfig(
        guidance_scale=kwargs["cfg_scale"],
        guided_blocks=kwargs["cfg_interval"] + 2 if "cfg_interval" in kwargs else None,
        temperature=kwargs["temperature"] if kwargs["sample_logits"] else 0,
        top_k=kwargs["top_k"],
        top_p=kwargs["top_p"],
    )


@pytest.mark.parametrize("name", ["greedy_cfg1", "greedy_cfg2", "greedy_cfg4_interval5", "topk1_cfg1.75"])
def test_greedy_tokens_equal_the_originals(
    name: str, numbers: dict[str, Any], original: LlamaGenT2I, condition: Condition
) -> None:
    wanted = numbers["samples"][name]
    rollout = sample(original, condition, settings(wanted["kwargs"]))
    assert torch.equal(rollout.tokens_BL, wanted["tokens"].long())


def test_sampling_distribution_equals_the_originals(
    numbers: dict[str, Any], original: LlamaGenT2I, condition: Condition
) -> None:
    wanted = numbers["samples"]["seeded_t0.9_k20_p0.9_cfg2"]
    with torch.no_grad():
        logprobs = score(original, wanted["tokens"].long(), condition, settings(wanted["kwargs"]))
    torch.testing.assert_close(logprobs.exp(), wanted["token_probs"], atol=1e-4, rtol=0)


def test_padding_is_not_looked_at(numbers: dict[str, Any], original: LlamaGenT2I, condition: Condition) -> None:
    """Whatever stands where the mask is off, the image tokens' logits stay the same."""
    caption, mask = condition.tensors["caption"], condition.tensors["mask"]
    noised = Condition({"caption": torch.where(mask[..., None], caption, torch.randn_like(caption)), "mask": mask})
    with torch.no_grad():
        expected = original(numbers["tokens"], condition)
        torch.testing.assert_close(original(numbers["tokens"], noised), expected, atol=1e-6, rtol=0)
        seen = Condition({"caption": caption.flip(0), "mask": mask})
        assert not torch.allclose(original(numbers["tokens"], seen), expected)


def test_the_null_caption_belongs_to_the_file_and_is_not_trained(original: LlamaGenT2I, tmp_path: Path) -> None:
    name = "cls_embedding.uncond_embedding"
    assert name not in dict(original.named_parameters())
    original.save_published(tmp_path / "t2i.pt")
    file = read_tensors(tmp_path / "t2i.pt")
    assert file.wrapper == "model"
    assert next(iter(file.tensors)) == name
    assert torch.equal(file.tensors[name], original.state_dict()[name])


def test_the_other_kind_of_file_is_named(tmp_path: Path) -> None:
    tiny_llamagen_t2i().save_published(tmp_path / "t2i.pt")
    tiny_llamagen().save_published(tmp_path / "c2i.pt")
    with pytest.raises(
        ValueError, match="not a LlamaGen generator; it looks like a text-to-image LlamaGen: load it as"
    ):
        load_generator("llamagen", tmp_path / "t2i.pt", grid=(3, 2), num_heads=2)
    with pytest.raises(ValueError, match="not a LlamaGenT2I generator; it looks like a class-conditional LlamaGen"):
        load_generator("llamagen-t2i", tmp_path / "c2i.pt", grid=(3, 2), num_heads=2)


def test_captions_need_an_encoder_that_fits() -> None:
    generator = tiny_llamagen_t2i()
    with pytest.raises(ValueError, match="captions must be a list of texts, got"):
        generator.encode_condition([3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"caption features are \[5, 9\], and this generator reads \[5, 6\]"):
        generator.encode_condition(Captions(length=5, width=9).encode(["red"]))
    generator.attach_text(None)
    with pytest.raises(ValueError, match="without a text encoder; pass text_encoder="):
        generator.encode_condition(["a red cube"])


def test_a_training_file_gives_back_all_that_it_held(tmp_path: Path) -> None:
    generator = tiny_llamagen_t2i()
    moments = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save({"model": generator.state_dict(), "optimizer": moments, "steps": 7}, tmp_path / "in.pt")
    again = load_generator("llamagen-t2i", tmp_path / "in.pt", grid=(3, 2), num_heads=2)
    with torch.no_grad():
        again.get_parameter("output.weight").add_(1.0)
    again.save_published(tmp_path / "out.pt")
    before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("in.pt", "out.pt"))
    assert after["steps"] == 7
    assert torch.equal(after["optimizer"]["state"][0]["exp_avg"], torch.ones(3))
    changed = [name for name in before["model"] if not torch.equal(before["model"][name], after["model"][name])]
    assert changed == ["output.weight"]
    assert torch.equal(read_tensors(tmp_path / "in.pt").tensors["output.weight"], before["model"]["output.weight"])


def test_the_file_is_mapped_and_never_written_to(tmp_path: Path) -> None:
    save_tensors(tmp_path / "t2i.pt", tiny_llamagen_t2i().state_dict(), "model")
    bytes_before = (tmp_path / "t2i.pt").read_bytes()
    generator = load_generator("llamagen-t2i", tmp_path / "t2i.pt", grid=(3, 2), num_heads=2)
    assert isinstance(generator, LlamaGenT2I)
    assert generator.file is not None
    for name, parameter in generator.named_parameters():
        assert parameter.data_ptr() == generator.file.tensors[name].data_ptr(), name
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.zero_()
    assert (tmp_path / "t2i.pt").read_bytes() == bytes_before
