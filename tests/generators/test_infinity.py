"""Infinity against the original authors' numbers, and its published file format."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from conftest import Captions, tiny_infinity
from text.tiny import save_tiny_t5
from torch import Tensor

from align import SamplingConfig, load_generator, sample, score
from align.checkpoints import save_tokenizer
from align.generators import Infinity
from align.generators.infinity_sizes import published_schedules
from align.inspection import inspect
from align.objectives import token_logprobs
from align.tensor_files import read_tensors, save_tensors
from align.text import CaptionFeatures
from align.training.adapters import add_adapters, merge_adapters
from align.types import Condition
from recipes.config import compose
from recipes.parts import make_generator

# the published schedule that each golden takes the first four scales of
PIXELS = {"square": (1024, 1024), "tall": (1248, 832)}


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return golden.load("infinity_tiny")


@pytest.fixture(scope="module")
def files(numbers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    torch.save(golden.weights(numbers), folder / "infinity.pth")
    # as the authors' module saves it: with its quantiser's constants
    constants = {f"{name}.lfq.mask": 2 ** torch.arange(7, -1, -1) for name in ("quantizer", "quantize")}
    torch.save({"vae": golden.weights(numbers["vae"]) | constants}, folder / "vae.pth")
    return folder


def load(files: Path, kind: str) -> Infinity:
    schedule, _ = published_schedules()[PIXELS[kind]]
    generator = load_generator("infinity", files / "infinity.pth", files / "vae.pth", schedule=schedule, num_scales=4)
    assert isinstance(generator, Infinity)
    return generator


@pytest.fixture(scope="module")
def original(files: Path) -> Infinity:
    return load(files, "square")


@pytest.fixture(scope="module")
def captions(numbers: dict[str, Any]) -> CaptionFeatures:
    return CaptionFeatures.of(numbers["features"].split(numbers["lens"]), 9)


@pytest.fixture(scope="module")
def condition(captions: CaptionFeatures, original: Infinity) -> Condition:
    return original.encode_condition(captions)


def bits(logits_BNC: Tensor) -> Tensor:
    """Theirs, which are those of all bits of a position in one row, as ours."""
    return logits_BNC.reshape(len(logits_BNC), -1, 2)


@pytest.mark.parametrize("kind", PIXELS)
def test_logits_equal_the_originals(kind: str, numbers: dict[str, Any], files: Path, captions: CaptionFeatures) -> None:
    generator, wanted = load(files, kind), numbers[kind]
    condition, tokens = generator.encode_condition(captions), wanted["tokens"].long()
    with torch.no_grad():
        torch.testing.assert_close(generator(tokens, condition), bits(wanted["logits"]), atol=1e-4, rtol=0)
        if kind == "square":
            null = generator(tokens, generator.null_condition(condition))
            torch.testing.assert_close(null, bits(wanted["logits_null"]), atol=1e-4, rtol=0)


def test_logits_given_flipped_bits_equal_the_originals(
    numbers: dict[str, Any], original: Infinity, condition: Condition
) -> None:
    """As in the authors' training (bitwise self-correction): what is read has flipped bits, and what is learnt mends them."""
    wanted = numbers["square"]["flipped"]
    assert (wanted["context"] != wanted["tokens"]).any()
    with torch.no_grad():
        logits = original(wanted["tokens"].long(), condition, context_BL=wanted["context"].long())
    torch.testing.assert_close(logits, bits(wanted["logits"]), atol=1e-4, rtol=0)


def test_gradients_equal_the_originals(numbers: dict[str, Any], original: Infinity, condition: Condition) -> None:
    wanted = numbers["square"]
    tokens = wanted["tokens"].long()
    original.zero_grad()
    loss = -token_logprobs(original(tokens, condition), tokens).mean()
    loss.backward()
    assert loss.item() == pytest.approx(wanted["train_loss"], rel=1e-5)
    norms = {name: p.grad.norm().item() for name, p in original.named_parameters() if p.grad is not None}
    assert norms == pytest.approx(wanted["grad_norms"], rel=1e-3)
    original.zero_grad()


@pytest.mark.parametrize(
    ("kind", "name"), [("square", "greedy_cfg1"), ("square", "greedy_cfg3"), ("tall", "greedy_cfg3")]
)
def test_greedy_bits_equal_the_originals(
    kind: str, name: str, numbers: dict[str, Any], files: Path, captions: CaptionFeatures
) -> None:
    generator, wanted = load(files, kind), numbers[kind]["samples"][name]
    config = SamplingConfig(guidance_scale=wanted["cfg"], temperature=0)
    rollout = sample(generator, generator.encode_condition(captions), config)
    assert torch.equal(rollout.tokens_BL, wanted["tokens"].long())
    if "image" in wanted:
        difference = (generator.decode(rollout.tokens_BL).int() - wanted["image"].int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 1e-3


@pytest.mark.parametrize("name", ["seeded_cfg1_tau1", "seeded_cfg4_tau0.5_p0.97"])
def test_sampling_distribution_equals_the_originals(
    name: str, numbers: dict[str, Any], original: Infinity, condition: Condition
) -> None:
    wanted = numbers["square"]["samples"][name]
    config = SamplingConfig(
        guidance_scale=wanted["cfg"], temperature=wanted["tau"], top_k=wanted["top_k"], top_p=wanted["top_p"] or 1.0
    )
    with torch.no_grad():
        logprobs = score(original, wanted["tokens"].long(), condition, config)
    torch.testing.assert_close(logprobs.exp(), wanted["token_probs"], atol=1e-4, rtol=0)


def test_attention_is_never_sharper_than_the_authors_limit() -> None:
    generator, tokens = tiny_infinity(), torch.zeros(1, 52, dtype=torch.long)
    condition = generator.encode_condition(["red"])
    logits = []
    with torch.no_grad():
        for scale in (50.0, 100.0, 1000.0):
            for block in generator.blocks:
                block.sa.scale_mul_1H11.fill_(math.log(scale))
            logits.append(generator(tokens, condition))
    assert not torch.allclose(logits[0], logits[1])
    torch.testing.assert_close(logits[2], logits[1])


# --- captions


def test_a_caption_does_not_depend_on_its_padding(numbers: dict[str, Any], original: Infinity) -> None:
    """Nor on what stands there, nor on the captions beside it; the null caption is as long as the caption."""
    rows = numbers["features"].split(numbers["lens"])
    tokens = numbers["square"]["tokens"].long()
    together = original.encode_condition(CaptionFeatures.of(rows, 9))
    assert together.tensors["mask"].shape == (2, 7)  # columns that no caption needs are gone
    noise = torch.where(together.tensors["mask"].unsqueeze(-1), together.tensors["caption"], 100.0)
    with torch.no_grad():
        for null in (False, True):
            conditions = [
                together,
                Condition({**together.tensors, "caption": noise}),
                Condition.cat([original.encode_condition(CaptionFeatures.of([row], len(row))) for row in rows]),
            ]
            if null:
                conditions = [original.null_condition(each) for each in conditions]
            expected = original(tokens, conditions[0])
            for each in conditions[1:]:
                torch.testing.assert_close(original(tokens, each), expected, atol=1e-5, rtol=0)
        mixed = together.where(torch.tensor([False, True]), original.null_condition(together))
        both = original(tokens, together)[:1], original(tokens, original.null_condition(together))[1:]
        torch.testing.assert_close(original(tokens, mixed), torch.cat(both), atol=1e-5, rtol=0)


def test_the_null_caption_stands_at_beta_one() -> None:
    generator = tiny_infinity()
    generator.add_beta_embedding(0.5)
    condition = generator.encode_condition(["red", "a blue cone"])
    assert condition.tensors["beta"].tolist() == [0.5, 0.5]
    assert generator.null_condition(condition).tensors["beta"].tolist() == [1.0, 1.0]


def test_the_null_caption_is_learnt() -> None:
    generator = tiny_infinity()
    condition = generator.null_condition(generator.encode_condition(["a red cube"]))
    generator(torch.zeros(1, 52, dtype=torch.long), condition).square().sum().backward()
    gradient = generator.cfg_uncond.grad
    assert gradient is not None
    assert gradient.abs().sum(dim=1).bool().tolist() == [True, True, True, True, False]  # three words and an end


def test_captions_need_an_encoder_that_fits() -> None:
    generator = tiny_infinity()
    assert generator.caption_shape == (5, 6)
    assert not generator.clean_captions
    with pytest.raises(ValueError, match="caption features are 9 wide, and this generator reads 6"):
        generator.encode_condition(Captions(length=5, width=9).encode(["red"]))
    with pytest.raises(ValueError, match="captions have 2 to 7 features; this generator reads 1 to 5"):
        generator.encode_condition(Captions(length=7, width=6).encode(["red", "one two three four five six"]))
    generator.attach_text(None)
    with pytest.raises(ValueError, match="without a text encoder; pass text_encoder="):
        generator.encode_condition(["a red cube"])


def test_settings_name_files_and_a_t5(tmp_path: Path) -> None:
    generator = tiny_infinity(text_dim=16)
    generator.save_published(tmp_path / "infinity.pth")
    assert generator.tokenizer is not None
    save_tokenizer(generator.tokenizer, tmp_path / "vae.pth")
    paths = {"checkpoint": "infinity.pth", "tokenizer_checkpoint": "vae.pth", "text_encoder": "t5"}
    save_tiny_t5(tmp_path / "t5")
    settings = ["generator=infinity", "generator.config.schedule=[[1,1],[2,1],[2,2],[3,2],[4,3]]"]
    settings += [
        "generator.config.num_scales=4",
        *(f"generator.{key}={tmp_path / name}" for key, name in paths.items()),
    ]
    made: Any = make_generator(compose("sample", settings).generator)
    assert made.sizes == generator.sizes
    # as the authors read captions: whole and not cleaned, up to the length of the null caption
    assert (made.text_encoder.max_length, made.text_encoder.clean) == (5, False)
    condition = made.encode_condition(["A", "red cat", "a very blue photo of dogs"])
    assert condition.tensors["mask"].sum(dim=1).tolist() == [3, 3, 5]
    assert made.decode(sample(made, condition).tokens_BL).shape == (3, 12, 8, 3)


# --- published files


@pytest.mark.parametrize("wrapper", [None, "trainer/gpt_fsdp"])
@pytest.mark.parametrize("heads_last", [False, True])
def test_published_file_round_trips(wrapper: str | None, heads_last: bool, tmp_path: Path) -> None:
    """Whichever way round the attention scales lie, in several precisions, and with buffers that are not needed."""
    generator = tiny_infinity(heads_last=heads_last)
    assert generator.state_dict()["block_chunks.1.module.0.sa.scale_mul_1H11"].shape[2 if heads_last else 1] == 2
    tensors = {
        name: tensor.bfloat16() if i % 2 else tensor for i, (name, tensor) in enumerate(generator.state_dict().items())
    }
    tensors["lvl_1L"] = torch.zeros(1, 13, dtype=torch.long)
    tensors["block_chunks.0.module.0.sa.zero_k_bias"] = torch.full((16,), -0.0)
    save_tensors(tmp_path / "in.pth", tensors, wrapper)
    scales = {"schedule": generator.sizes.schedule, "num_scales": 4}
    again = load_generator("infinity", tmp_path / "in.pth", **scales)
    assert isinstance(again, Infinity)
    assert again.sizes == generator.sizes
    again.save_published(tmp_path / "out.pth")
    result = read_tensors(tmp_path / "out.pth")
    assert result.wrapper == wrapper
    assert list(result.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert result.tensors[name].dtype == tensor.dtype
        assert torch.equal(result.tensors[name].view(torch.uint8), tensor.view(torch.uint8)), name
    again.attach(generator.tokenizer)
    tokens, condition = torch.zeros(1, 52, dtype=torch.long), generator.encode_condition(["red"])
    with torch.no_grad():
        torch.testing.assert_close(again(tokens, condition), generator(tokens, condition), atol=0.1, rtol=0)


def test_a_new_file_is_bare_and_in_the_authors_order(numbers: dict[str, Any], files: Path, tmp_path: Path) -> None:
    generator = load(files, "square")
    generator.file = None
    generator.save_published(tmp_path / "new.pth")
    found = torch.load(tmp_path / "new.pth", weights_only=True)
    assert list(found) == [name for name, *_ in numbers["spec"]]


def test_inspection_knows_both_files(files: Path, tmp_path: Path) -> None:
    found = inspect(files / "infinity.pth")
    assert (found.kind, found.codes, found.tokens) == (
        "infinity",
        2,
        "8 bits a position; how many positions is not told by the file",
    )
    assert not found.problems
    assert found.odd[0].startswith("the image size is not told: pass image_size=1024")
    # a published name tells it
    shutil.copy(files / "infinity.pth", tmp_path / "infinity_2b_reg.pth")
    found = inspect(tmp_path / "infinity_2b_reg.pth")
    assert found.tokens == "10521 of 8 bits in 13 scales, up to 64x64"
    assert not found.odd
    found = inspect(files / "vae.pth")
    assert (found.kind, found.tokens, found.problems, found.odd) == ("bsq", "8 bits for 4x4 pixels", [], [])


# --- running


def test_sampling_keeps_no_keys_of_the_last_scale(original: Infinity, condition: Condition) -> None:
    cache = original.new_cache(2)
    assert {tuple(kv.shape) for kv in cache.blocks} == {(2, 2, 4, 1 + 4 + 16, 16)}
    with torch.no_grad():
        original.start(condition, cache)
        original.select_rows(cache, torch.tensor([0]))
    # the other rows' memory is given back
    assert {kv.untyped_storage().nbytes() for kv in cache.blocks} == {4 * 2 * 4 * 21 * 16}


def test_half_precision_runs_and_stays_near(original: Infinity, numbers: dict[str, Any], files: Path) -> None:
    schedule, _ = published_schedules()[1024, 1024]
    half = load_generator(
        "infinity", files / "infinity.pth", files / "vae.pth", dtype=torch.bfloat16, schedule=schedule, num_scales=4
    )
    condition = half.encode_condition(CaptionFeatures.of(numbers["features"].split(numbers["lens"]), 7))
    rollout = sample(half, condition, SamplingConfig(guidance_scale=3.0, seed=1))
    with torch.no_grad():
        logits = half(rollout.tokens_BL, condition)
        expected = original(rollout.tokens_BL, condition)
    assert logits.dtype == torch.float32
    assert 0 < (logits - expected).abs().max() < 0.5  # of logits with a deviation of 5


@pytest.mark.parametrize("kind", ["dropout", "drop_path"])
def test_dropouts_act_in_train_mode_only(kind: str) -> None:
    make: Callable[..., Infinity] = tiny_infinity
    generator, plain = make(**{kind: 0.5}), make()
    tokens = torch.zeros(4, 52, dtype=torch.long)
    condition = generator.encode_condition(["red", "a blue cone", "two balls", "green"])
    if kind == "drop_path":  # the deeper the more
        assert [block.drop_path.p for block in generator.blocks] == [0.0, 0.5]
    with torch.no_grad():
        assert torch.equal(generator(tokens, condition), plain(tokens, condition))
        torch.manual_seed(0)
        assert not torch.equal(generator.train()(tokens, condition), plain(tokens, condition))
        # captions are never dropped by the generator itself
        assert torch.equal(plain.train()(tokens, condition), plain.eval()(tokens, condition))


def test_adapters_reach_every_linear_layer_and_merge() -> None:
    generator = tiny_infinity()
    linear = {name for name, module in generator.named_modules() if isinstance(module, torch.nn.Linear)}
    rollout = sample(generator, generator.encode_condition(["red", "a blue cone"]), SamplingConfig(seed=2))
    with torch.no_grad():
        plain = generator(rollout.tokens_BL, rollout.condition)
        add_adapters(generator, rank=2, alpha=4, seed=1)
        assert torch.equal(generator(rollout.tokens_BL, rollout.condition), plain)
        adapted = {name for name, _ in generator.named_parameters() if "lora_B" in name}
        assert adapted == {f"{name}.lora_B.default.weight" for name in linear}
        for name in adapted:
            torch.nn.init.normal_(generator.get_parameter(name), std=0.1)
        moved = generator(rollout.tokens_BL, rollout.condition)
        again = sample(generator, rollout.condition, SamplingConfig(seed=2))
        scored = score(generator, again.tokens_BL, rollout.condition, SamplingConfig())
        torch.testing.assert_close(again.logprobs_BL, scored, atol=2e-5, rtol=1e-5)
        merge_adapters(generator)
        torch.testing.assert_close(generator(rollout.tokens_BL, rollout.condition), moved, atol=1e-4, rtol=0)
    assert not torch.allclose(moved, plain)
