"""VAR against the original authors' numbers, and its published file format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from conftest import tiny_llamagen, tiny_var

from align import SamplingConfig, load_generator, sample, score
from align.checkpoints import save_tokenizer
from align.generators import VAR, VARConfig
from align.objectives import token_logprobs
from align.sampling import sampling_logprobs
from align.tensor_files import read_tensors, save_tensors


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return golden.load("var_d2_p4")


@pytest.fixture(scope="module")
def original(numbers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> VAR:
    folder = tmp_path_factory.mktemp("published")
    torch.save(golden.weights(numbers), folder / "var.pth")
    torch.save(golden.weights(numbers["vae"]), folder / "vae.pth")
    generator = load_generator("var", folder / "var.pth", folder / "vae.pth")
    assert isinstance(generator, VAR)
    return generator


def test_logits_equal_the_originals(numbers: dict[str, Any], original: VAR) -> None:
    condition = original.encode_condition(numbers["labels"])
    with torch.no_grad():
        torch.testing.assert_close(original(numbers["tokens"], condition), numbers["logits"], atol=1e-4, rtol=0)
        null = original(numbers["tokens"], original.null_condition(condition))
    torch.testing.assert_close(null, numbers["logits_uncond"], atol=1e-4, rtol=0)


def test_gradients_equal_the_originals(numbers: dict[str, Any], original: VAR) -> None:
    logits = original(numbers["tokens"], original.encode_condition(numbers["labels"]))
    logprobs = token_logprobs(logits, numbers["tokens"])
    torch.testing.assert_close(logprobs.sum(dim=1).detach(), numbers["logprob_sum"], atol=1e-3, rtol=0)
    original.zero_grad()
    (-logprobs.mean()).backward()
    assert -logprobs.mean().item() == pytest.approx(numbers["train_loss"], rel=1e-5)
    norms = {
        name: parameter.grad.norm().item()
        for name, parameter in original.named_parameters()
        if parameter.grad is not None
    }
    assert norms == pytest.approx(numbers["grad_norms"], rel=1e-3)
    original.zero_grad()


@pytest.mark.parametrize("name", ["top1_cfg0", "top1_cfg1.5", "top1_cfg4"])
def test_greedy_tokens_equal_the_originals(name: str, numbers: dict[str, Any], original: VAR) -> None:
    wanted = numbers["samples"][name]
    # VAR's number, whose 0 is off, and its ramp over the scales
    config = SamplingConfig(guidance_scale=1 + wanted["kwargs"]["cfg"], guidance_schedule="linear", temperature=0)
    rollout = sample(original, original.encode_condition(numbers["labels"]), config)
    assert torch.equal(rollout.tokens_BL, wanted["tokens"])
    if "image" in wanted:
        pixels = wanted["image"].float().permute(0, 2, 3, 1) * 255
        assert (original.decode(rollout.tokens_BL) - pixels).abs().max() < 1.1


def test_sampling_distribution_equals_the_originals(numbers: dict[str, Any], original: VAR) -> None:
    """cfg 1.5, top-k 40, top-p .96 of VAR: the probabilities of the tokens that it drew."""
    wanted = numbers["samples"]["seeded_cfg1.5_k40_p0.96"]
    config = SamplingConfig(guidance_scale=2.5, guidance_schedule="linear", top_k=40, top_p=0.96)
    condition = original.encode_condition(numbers["labels"])
    with torch.no_grad():
        logprobs = score(original, wanted["tokens"], condition, config)
    expected = sampling_logprobs(wanted["step_logits"], config).gather(-1, wanted["tokens"].unsqueeze(-1)).squeeze(-1)
    assert logprobs.isfinite().all()
    torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=0)


# --- published files


@pytest.mark.parametrize("wrapper", [None, "trainer", "trainer/var_wo_ddp"])
def test_published_file_round_trips(wrapper: str | None, numbers: dict[str, Any], tmp_path: Path) -> None:
    tensors = golden.weights(numbers)
    # half of it in another precision and in an odd order; integers as they are
    tensors = {
        name: tensor.half() if i % 2 and tensor.is_floating_point() else tensor
        for i, (name, tensor) in enumerate(reversed(tensors.items()))
    }
    tensors["blocks.0.attn.zero_k_bias"] = torch.full((128,), -0.0)
    save_tensors(tmp_path / "in.pth", tensors, wrapper)
    load_generator("var", tmp_path / "in.pth").save_published(tmp_path / "out.pth")
    result = read_tensors(tmp_path / "out.pth")
    assert result.wrapper == wrapper
    assert list(result.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert result.tensors[name].dtype == tensor.dtype
        width = torch.int16 if tensor.dtype == torch.float16 else torch.int32
        if tensor.is_floating_point():  # bits, so that -0.0 and -inf count
            assert torch.equal(result.tensors[name].view(width), tensor.view(width)), name
        else:
            assert torch.equal(result.tensors[name], tensor), name


def test_a_training_file_is_read(numbers: dict[str, Any], tmp_path: Path) -> None:
    """As VAR's trainer saves it: the generator beside the tokenizer, the optimiser and settings."""
    trainer = {"config": {"depth": 2}, "var_wo_ddp": golden.weights(numbers), "vae_local": {"x": torch.ones(1)}}
    torch.save({"epoch": 3, "iter": 0, "trainer": trainer, "args": {"depth": 2}}, tmp_path / "ckpt.pth")
    assert load_generator("var", tmp_path / "ckpt.pth").layout.block_sizes == (1, 4, 9, 16)


@pytest.mark.parametrize("l2_norm", [True, False])
@pytest.mark.parametrize("shared_adaln", [True, False])
def test_every_variant_is_told_from_its_file(l2_norm: bool, shared_adaln: bool, tmp_path: Path) -> None:
    generator = tiny_var(l2_norm=l2_norm, shared_adaln=shared_adaln)
    assert generator.tokenizer is not None
    generator.save_published(tmp_path / "var.pth")
    save_tokenizer(generator.tokenizer, tmp_path / "vae.pth")
    heads = {} if l2_norm else {"num_heads": 2}  # the learnt scales of l2-normalised attention tell them
    again = load_generator("var", tmp_path / "var.pth", tmp_path / "vae.pth", **heads)
    assert again.sizes == generator.sizes
    condition = generator.encode_condition([0, 3])
    tokens = sample(generator, condition).tokens_BL
    with torch.no_grad():
        assert torch.equal(generator(tokens, condition), again(tokens, condition))
    assert (l2_norm, shared_adaln) == (
        "blocks.0.attn.scale_mul_1H11" in generator.state_dict(),
        "blocks.0.ada_gss" in generator.state_dict(),
    )


@pytest.mark.parametrize(("length", "levels", "last"), [(680, 10, 16), (2240, 10, 32)])
def test_published_sizes_are_known(length: int, levels: int, last: int) -> None:
    """On the meta device no values are known, only shapes."""
    shapes = {
        "head.weight": (4096, 1024),
        "pos_1LC": (1, length, 1024),
        "class_emb.weight": (1001, 1024),
        "word_embed.weight": (1024, 32),
        "lvl_1L": (1, length),
        **{f"blocks.{block}.ffn.fc1.weight": (4096, 1024) for block in range(16)},
    }
    sizes = VARConfig.infer({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    assert (len(sizes.patch_nums), sizes.patch_nums[-1], sizes.num_heads, sizes.num_classes) == (levels, last, 16, 1000)


def test_what_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    generator = tiny_var()
    generator.save_published(tmp_path / "var.pth")
    with pytest.raises(
        ValueError, match=r"patch_nums=\(1, 2, 4\) does not fit this file of 14 tokens, scales \(1, 2, 3\)"
    ):
        load_generator("var", tmp_path / "var.pth", patch_nums=(1, 2, 4))
    with pytest.raises(ValueError, match="num_heads=4, but the file has 2 heads"):
        load_generator("var", tmp_path / "var.pth", num_heads=4)
    with pytest.raises(ValueError, match="takes patch_nums=, num_heads=, dropout= and drop_path=; got"):
        load_generator("var", tmp_path / "var.pth", grid=(3, 3))
    state = {**generator.state_dict(), "lvl_1L": torch.zeros(1, 14, dtype=torch.long)}
    torch.save(state, tmp_path / "silent.pth")
    with pytest.raises(ValueError, match="has 14 tokens and does not tell their scales; pass patch_nums="):
        load_generator("var", tmp_path / "silent.pth")
    tiny_var(l2_norm=False).save_published(tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="does not tell its heads; pass num_heads="):
        load_generator("var", tmp_path / "plain.pth")


def test_the_tokenizer_must_be_there_and_fit(tmp_path: Path) -> None:
    generator = tiny_var(with_tokenizer=False)
    condition = generator.encode_condition([0])
    for call in (
        lambda: generator(torch.zeros(1, 14, dtype=torch.long), condition),
        lambda: sample(generator, condition),
        lambda: generator.decode(torch.zeros(1, 14, dtype=torch.long)),
    ):
        with pytest.raises(ValueError, match="without a tokenizer.*pass tokenizer_checkpoint="):
            call()
    generator.save_published(tmp_path / "var.pth")
    other = tiny_llamagen().tokenizer
    assert other is not None
    save_tokenizer(other, tmp_path / "vq.pt")
    with pytest.raises(ValueError, match="a VAR takes a MultiscaleVQTokenizer; got a VQTokenizer"):
        load_generator("var", tmp_path / "var.pth", tmp_path / "vq.pt")
    tokenizer = tiny_var().tokenizer
    assert tokenizer is not None
    save_tokenizer(tokenizer, tmp_path / "vae.pth")
    state = generator.state_dict()
    state["word_embed.weight"] = torch.ones(16, 5)
    torch.save(state, tmp_path / "wide.pth")
    with pytest.raises(ValueError, match="reads codes of 5 numbers and its tokenizer's have 4"):
        load_generator("var", tmp_path / "wide.pth", tmp_path / "vae.pth")


def test_another_familys_file_is_named(tmp_path: Path) -> None:
    tiny_llamagen().save_published(tmp_path / "generator.pt")
    with pytest.raises(ValueError, match="not a VAR generator.*looks like a class-conditional LlamaGen"):
        load_generator("var", tmp_path / "generator.pt")


# --- training


def test_initialisation_is_the_authors() -> None:
    """Gamma near zero closes the residual branches: at first the logits depend on nothing but class and position."""
    generator = tiny_var()
    generator.initialize(torch.Generator().manual_seed(0))
    weights = dict(generator.named_parameters())
    modulation = weights["blocks.0.ada_lin.1.weight"]
    assert modulation[:32].abs().max() < 1e-5  # gamma1, gamma2
    assert 0.03 < modulation[32:].std() < 0.1  # half of (3 dim)^-1/2 = .144
    assert weights["blocks.1.attn.scale_mul_1H11"].exp().mean().item() == pytest.approx(4)
    assert weights["blocks.0.attn.proj.weight"].std() < 0.1
    assert not weights["head.bias"].any()
    assert weights["head.weight"].abs().max() < 0.02
    again = tiny_var(seed=5)
    again.initialize(torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(generator.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["dropout", "drop_path"])
def test_dropouts_act_in_train_mode_only(kind: str) -> None:
    generator, plain = tiny_var(**{kind: 0.5}), tiny_var()
    tokens = torch.zeros(4, 14, dtype=torch.long)
    condition = generator.encode_condition([0, 1, 2, 3])
    with torch.no_grad():
        assert torch.equal(generator(tokens, condition), plain(tokens, condition))
        torch.manual_seed(0)
        assert not torch.equal(generator.train()(tokens, condition), plain(tokens, condition))
        # labels are never dropped by the generator itself
        assert torch.equal(plain.train()(tokens, condition), plain.eval()(tokens, condition))
