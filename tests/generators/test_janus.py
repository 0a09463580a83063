"""Janus against transformers' numbers with the authors' image tokenizer, and its two published layouts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from conftest import tiny_janus
from janus_files import BOI, BOS, LAYOUTS, PAD, load_janus, save_janus, text_tokenizer
from safetensors.torch import save_file
from training.harness import BRIGHTNESS, OBJECTIVES, SETTINGS, logs

from align import SamplingConfig, checkpoints, sample
from align.data import Codes, PromptStream, TrainingStream
from align.generators import Janus
from align.tensor_files import TensorFile, read_tensors
from align.training.inputs import Scoring
from align.training.reference import FrozenReference
from align.training.rollouts import Rollouts, RolloutSettings
from align.training.sources import RealData, Source
from align.types import Condition
from recipes.supplies import Supplies
from recipes.train import train_generator

GUIDED = SamplingConfig(guidance_scale=2.0, seed=1)
PROMPTS = ["a red cube", "two balls on a table", ""]


@pytest.fixture(scope="module")
def numbers() -> dict[str, Any]:
    return golden.load("janus_tiny")


@pytest.fixture(scope="module")
def published(numbers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Janus:
    path = tmp_path_factory.mktemp("published") / "model.safetensors"
    save_file(golden.weights(numbers), path, {"format": "pt"})
    return load_janus(path, num_heads=2, pad_id=numbers["ids"]["pad"])


@pytest.fixture(scope="module")
def condition(numbers: dict[str, Any], published: Janus) -> Condition:
    return published.encode_condition({"ids": numbers["input_ids"], "mask": numbers["attention_mask"]})


# --- parity


def test_logits_equal_theirs(numbers: dict[str, Any], published: Janus, condition: Condition) -> None:
    with torch.no_grad():
        torch.testing.assert_close(published(numbers["tokens"], condition), numbers["logits_cond"], atol=1e-4, rtol=0)
        null = published(numbers["tokens"], published.null_condition(condition))
    torch.testing.assert_close(null, numbers["logits_uncond"], atol=1e-4, rtol=0)


def test_the_null_condition_is_theirs(numbers: dict[str, Any], published: Janus, condition: Condition) -> None:
    null, mask = published.null_condition(condition), numbers["attention_mask"].bool()
    assert torch.equal(null.tensors["ids"][mask], numbers["uncond_ids"][mask])
    assert torch.equal(null.tensors["mask"], mask)


@pytest.mark.parametrize("scale", ["5.0", "2.0"])
def test_greedy_tokens_equal_theirs(
    scale: str, numbers: dict[str, Any], published: Janus, condition: Condition
) -> None:
    rollout = sample(published, condition, SamplingConfig(guidance_scale=float(scale), temperature=0))
    assert torch.equal(rollout.tokens_BL, numbers["greedy"][scale])


def test_without_guidance_a_row_is_drawn_as_if_it_were_alone(published: Janus, condition: Condition) -> None:
    """transformers' own sampler fails at scale 1."""
    together = sample(published, condition, SamplingConfig(seed=1), index_B=torch.tensor([0, 1])).tokens_BL
    short = Condition({name: tensor[1:, 2:] for name, tensor in condition.tensors.items()})
    alone = sample(published, short, SamplingConfig(seed=1), index_B=torch.tensor([1])).tokens_BL
    assert torch.equal(together[1:], alone)


def test_pixels_and_codes_equal_the_authors(numbers: dict[str, Any], published: Janus) -> None:
    """transformers' encoder leaves out the normalisation of the codebook, and finds other codes."""
    assert published.tokenizer is not None
    assert torch.equal(published.tokenizer.encode(numbers["image"]), numbers["enc_tokens_original"])
    assert not torch.equal(numbers["enc_tokens_original"], numbers["enc_tokens_hf"])
    images = published.decode(numbers["tokens"])
    wanted = ((numbers["decoded"] + 1) / 2 * 255).clamp(0, 255)
    assert ((images.float() - wanted.floor()).abs() <= (wanted - wanted.round()).abs().lt(2e-3)).all()
    assert images.shape == (2, 64, 64, 3)


# --- layouts


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]])
def test_both_layouts_hold_the_same_generator(prompts: list[str]) -> None:
    converted, original = (tiny_janus(layout) for layout in LAYOUTS)
    rollouts = [sample(g, g.encode_condition(prompts), GUIDED) for g in (converted, original)]
    assert torch.equal(rollouts[0].logprobs_BL, rollouts[1].logprobs_BL)
    assert torch.equal(converted.decode(rollouts[0].tokens_BL), original.decode(rollouts[1].tokens_BL))
    # codes made with the one are codes of the other
    assert converted.tokenizer is not None
    assert original.tokenizer is not None
    torch.testing.assert_close(converted.tokenizer.state_dict(), original.tokenizer.state_dict(), atol=0, rtol=0)


def test_the_authors_names() -> None:
    file = tiny_janus("original").file
    assert file is not None
    layer = "language_model.model.layers.1"
    assert set(tiny_janus("original").published_state()) >= {
        "gen_embed.weight",
        *(f"gen_aligner.layers.{index}.{leaf}" for index in (0, 2) for leaf in ("weight", "bias")),
        *(f"gen_head.{part}.{leaf}" for part in ("output_mlp_projector", "vision_head") for leaf in ("weight", "bias")),
        "language_model.model.embed_tokens.weight",
        *(f"{layer}.self_attn.{part}_proj.weight" for part in "qkvo"),
        *(f"{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
        f"{layer}.input_layernorm.weight",
        f"{layer}.post_attention_layernorm.weight",
        "language_model.model.norm.weight",
    }
    assert set(tiny_janus("original").published_state()) <= set(file.tensors)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_sizes_tell_all_tensors(layout: str) -> None:
    generator = tiny_janus(layout)
    found = {name: tuple(tensor.shape) for name, tensor in generator.published_state().items()}
    assert found == generator.sizes.shapes()


@pytest.mark.parametrize(
    ("name", "width", "layers", "heads", "hidden", "millions"),
    [("1B", 2048, 24, 16, 5632, 1485.1), ("7B", 4096, 30, 32, 11008, 6591.8)],
)
def test_the_published_sizes_fit(
    name: str, width: int, layers: int, heads: int, hidden: int, millions: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers defines them, on the meta device."""
    from transformers.models.janus.configuration_janus import JanusConfig, JanusVisionConfig, JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusForConditionalGeneration

    language = {
        "model_type": "llama",
        "vocab_size": 102400,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    config = JanusConfig(
        text_config=language,
        vision_config=JanusVisionConfig(projection_dim=width),
        vq_config=JanusVQVAEConfig(projection_dim=width, image_token_embed_dim=width),
    )
    with torch.device("meta"):
        tensors = JanusForConditionalGeneration(config).to(torch.bfloat16).state_dict()
    monkeypatch.setattr(checkpoints, "read_tensors", lambda path: TensorFile(Path(path), dict(tensors)))
    generator = load_janus(Path(f"Janus-Pro-{name}.safetensors"), device="meta")
    assert generator.size_name == name
    assert generator.layout.length == 576
    assert generator.image_size == (384, 384)
    assert generator.sizes.num_heads == heads
    assert generator.sizes.max_prompt_tokens == 16384 - 575
    assert round(sum(parameter.numel() for parameter in generator.parameters()) / 1e6, 1) == millions
    written = generator.published_state()
    assert all((tensors[key].shape, tensors[key].dtype) == (t.shape, t.dtype) for key, t in written.items())
    unused = {key.split(".")[1] for key in tensors.keys() - written.keys()}
    assert unused == {"vision_model", "aligner", "vqmodel", "weight"}  # the last one is lm_head


# --- files


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("tower", [True, False])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_comes_back_to_the_last_bit(layout: str, shards: int, tower: bool, tmp_path: Path) -> None:
    folder = save_janus(tmp_path / "in", layout, shards=shards, dtype=torch.bfloat16, tower=tower)
    generator = load_janus(folder, dtype=torch.float32, grid=None if tower else (3, 3))
    assert generator.suffix == ""
    generator.save_published(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(folder)


def test_weights_stay_mapped_to_the_file(tmp_path: Path) -> None:
    generator = load_janus(save_janus(tmp_path / "in", shards=2))
    assert generator.file is not None
    for name, parameter in generator.named_parameters():
        assert parameter.data_ptr() == generator.file.tensors[name].data_ptr(), name


class Step:
    """Two updates of a tiny one, exported."""

    def __init__(self, folder: Path, layout: str, objective: str) -> None:
        self.before = save_janus(folder / "in", layout, shards=2)
        generator = load_janus(self.before)
        settings = {**SETTINGS, "max_steps": 2}
        rows = settings["per_device_train_batch_size"]
        source: Source
        stream: Any
        if objective == "grpo":
            source = Rollouts(RolloutSettings(num_generations=3, sampling=GUIDED, scoring=Scoring(GUIDED)), BRIGHTNESS)
            stream = PromptStream(PROMPTS, length=2 * rows, seed=1, num_generations=3, rows_per_step=rows)
        else:
            tokens_NL = torch.randint(generator.vocab_size, (20, 9), generator=torch.Generator().manual_seed(5))
            captions: Any = [f"{prompt} {row}" for row, prompt in enumerate(PROMPTS[:2] * 10)]
            stream = TrainingStream(Codes(tokens_NL, captions, "tokenizer"), length=2 * rows, seed=1, label_drop=0.3)
            source = RealData()
        self.twin = copy.deepcopy(generator)
        supplies = Supplies(stream, source, FrozenReference(generator), [])
        train_generator(
            generator,
            OBJECTIVES[objective],
            supplies,
            settings,
            folder=folder / "run",
            resume=False,
            description="test",
            check_first=True,
        )
        self.records = logs(folder / "run")
        self.after = folder / "out"
        generator.save_published(self.after)


@pytest.mark.parametrize("objective", ["cca", "grpo"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_after_training_only_what_trains_differs(layout: str, objective: str, tmp_path: Path) -> None:
    step = Step(tmp_path, layout, objective)
    assert [record["step"] for record in step.records] == [1, 2]
    if objective == "grpo":
        assert step.records[0]["ratio_max"] == 1
        assert step.records[0]["mismatch_max"] < 1e-5
    before, after = read_tensors(step.before).tensors, read_tensors(step.after).tensors
    assert list(after) == list(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    own = set(step.twin.published_state())
    assert changed <= own
    assert len(changed) > len(own) / 2
    weights = (".safetensors", ".bin")
    assert {name: data for name, data in contents(step.after).items() if not name.endswith(weights)} == {
        name: data for name, data in contents(step.before).items() if not name.endswith(weights)
    }
    again = load_janus(step.after)
    assert again.prompt_tokenizer is not None


def test_transformers_reads_the_export_and_draws_the_same(
    numbers: dict[str, Any], published: Janus, tmp_path: Path
) -> None:
    from transformers import GenerationConfig, JanusForConditionalGeneration
    from transformers.models.janus.configuration_janus import JanusConfig, JanusVisionConfig, JanusVQVAEConfig

    ids = numbers["ids"]
    language = {
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    tower = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64}
    vq = {
        "embed_dim": 8,
        "num_embeddings": 64,
        "base_channels": 32,
        "latent_channels": 64,
        "image_token_embed_dim": 128,
    }
    JanusConfig(
        text_config=language,
        vision_config=JanusVisionConfig(**tower, projection_dim=128, num_image_tokens=16),
        vq_config=JanusVQVAEConfig(**vq, projection_dim=128),
    ).save_pretrained(tmp_path / "in")
    save_file(golden.weights(numbers), tmp_path / "in" / "model.safetensors", {"format": "pt"})
    generator = load_janus(tmp_path / "in", pad_id=ids["pad"])
    with torch.no_grad():
        generator.model.generation_head.vision_head.bias.add_(torch.arange(64) % 5)
    generator.save_published(tmp_path / "out")
    theirs = JanusForConditionalGeneration.from_pretrained(tmp_path / "out")
    theirs.generation_config = GenerationConfig(
        pad_token_id=ids["pad"], bos_token_id=ids["bos"], generation_kwargs={"boi_token_id": ids["boi"]}
    )
    inputs = {"input_ids": numbers["input_ids"], "attention_mask": numbers["attention_mask"]}
    drawn = theirs.generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=5.0)
    condition = generator.encode_condition({"ids": numbers["input_ids"], "mask": numbers["attention_mask"]})
    ours = sample(generator, condition, SamplingConfig(guidance_scale=5.0, temperature=0)).tokens_BL
    assert torch.equal(ours, drawn)
    assert not torch.equal(ours, numbers["greedy"]["5.0"])


# --- prompts


def test_prompts_stand_in_the_authors_chat_format() -> None:
    generator = tiny_janus()
    assert generator.prompt_tokenizer is not None
    rows = generator.prompt_tokenizer.encode([" a red cube\n", ""])
    texts = [text_tokenizer().decode(row, skip_special_tokens=False) for row in rows]
    assert texts == [
        "<｜begin▁of▁sentence｜><|User|>: a red cube\n\n<|Assistant|>:<begin_of_image>",
        "<｜begin▁of▁sentence｜><|User|>:<|Assistant|>:<begin_of_image>",
    ]
    tensors = generator.encode_condition([" a red cube\n", ""]).tensors
    length = len(rows[0])
    assert tensors["ids"].tolist() == [rows[0], [0] * (length - 6) + rows[1]]
    assert tensors["mask"].tolist() == [[True] * length, [False] * (length - 6) + [True] * 6]


def test_the_null_prompt_keeps_its_first_and_last_token() -> None:
    generator = tiny_janus()
    null = generator.null_condition(generator.encode_condition(["a", ""])).tensors
    length = null["ids"].shape[1]
    padding = [0] * (length - 6)
    assert null["ids"].tolist() == [[BOS] + [PAD] * (length - 2) + [BOI], [*padding, BOS, *[PAD] * 4, BOI]]
    assert null["mask"][1].tolist() == [False] * (length - 6) + [True] * 6  # these pad tokens are attended to


def test_padding_changes_nothing() -> None:
    generator = tiny_janus()
    tokens = torch.randint(16, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = generator(tokens, generator.encode_condition(["a", "a much longer prompt than that"]))
        alone = generator(tokens[:1], generator.encode_condition(["a"]))
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=0)
    condition = generator.encode_condition(["a", "a much longer prompt than that"])
    noised = condition.tensors["ids"].masked_fill(~condition.tensors["mask"], 7)
    with torch.no_grad():
        moved = generator(tokens, Condition({"ids": noised, "mask": condition.tensors["mask"]}))
    torch.testing.assert_close(moved, together, atol=0, rtol=0)


def test_a_prompt_too_long_is_refused() -> None:
    generator = tiny_janus()
    longest = "x" * (120 - len("<|User|>: \n\n<|Assistant|>:") + len("<|User|><|Assistant|>") - 4)
    assert generator.encode_condition([longest]).tensors["ids"].shape == (
        1,
        120,
    )  # and 8 image tokens are 128 positions
    with pytest.raises(
        ValueError, match="a prompt is 121 tokens long; this model reads up to 120 before the 9 of an image"
    ):
        generator.encode_condition(["a", longest + "x"])


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[BOS, 9, 9, BOI]], [[1, 1, 0, 1]], "must be left-padded"),
        ([[9, 9, 9, BOI]], [[0, 0, 0, 1]], "must be left-padded"),
        ([[BOS, 9, 264, BOI]], [[1, 1, 1, 1]], "ids reach from 0 to 264; the text vocabulary has 264"),
        ([[BOI]], [[1]], r"with T from 2 to 120, got \[1, 1\] and \[1, 1\]"),
        ([[BOS, BOI]], [[1]], r"got \[1, 2\] and \[1, 1\]"),
    ],
)
def test_ids_that_are_no_prompts_are_refused(ids: Any, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_janus().encode_condition({"ids": torch.tensor(ids), "mask": torch.tensor(mask)})


def test_what_are_no_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ids with their mask; got a mapping with \['ids'\]"):
        tiny_janus().encode_condition({"ids": torch.ones(1, 3)})
    with pytest.raises(ValueError, match="prompts must be a list of texts, got 'a red cube'"):
        tiny_janus().encode_condition("a red cube")
    with pytest.raises(ValueError, match="captions must be texts, got 3"):
        tiny_janus().encode_condition([3])  # type: ignore[list-item]
