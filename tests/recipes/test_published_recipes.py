"""The experiments with the papers' settings: each composes, says what it should, and runs two steps on a tiny checkpoint."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Captions, tiny_janus, tiny_llamagen, tiny_llamagen_t2i, tiny_var
from PIL import Image

from align.checkpoints import load_generator, save_tokenizer
from align.data import Codes, PreferencePairs
from align.generators import Generator
from align.tensor_files import read_tensors
from align.text.features import EncoderFacts
from align.text.store import FeatureStore, caption_key
from recipes.cli import main
from recipes.config import CONF, compose, options
from recipes.parts import tokenizer_hash
from recipes.supplies import check_recipe

PUBLISHED = [name for name in options("experiment") if name.split("/")[0] in ("llamagen", "var", "janus")]
# what each file's header has to say
SAID = ("published:", "files:", "8 GPUs:", "1 GPU:", "memory:", "time:")
CAPTIONS = ["a picture of one", "a picture of two", "a picture of three"]
FAMILIES: dict[str, Callable[[], Generator]] = {
    "llamagen": lambda: tiny_llamagen(grid=(3, 3)),
    "llamagen-t2i": lambda: tiny_llamagen_t2i(grid=(3, 3)),
    "var": tiny_var,
    "janus": tiny_janus,
}


def header(name: str) -> str:
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def files_of(name: str) -> list[str]:
    """The settings that the header's FILES stands for, and the reward that it asks for."""
    text = header(name)
    found = re.search(r"FILES='([^']*)'", text)
    assert found, f"{name}: its header gives no FILES"
    return [*shlex.split(found[1]), *re.findall(r"'(reward\.rewards=[^']*)'", text)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_header_says_what_a_researcher_asks(name: str) -> None:
    text = header(name)
    assert [word for word in SAID if word not in text] == []
    assert "ithout guidance" in text and "scale 1 here" in text, "the convention of guidance is not said"
    assert f"torchrun --nproc-per-node 8 -m recipes.cli train experiment={name} $FILES" in text
    assert f"align train experiment={name} $FILES" in text


@pytest.mark.parametrize("world", [1, 8])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_commands_of_the_header_compose(name: str, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    settings = [
        "reward.rewards=[{name: jpeg-compressibility}]" if setting.startswith("reward.rewards=") else setting
        for setting in files_of(name)
        if not setting.startswith("data.prompts=")  # a file
    ]
    config = compose("train", [f"experiment={name}", *settings])
    check_recipe(config)
    trainer = config.trainer
    rows = trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps * world
    assert rows == trainer.global_batch_size
    assert config.name == name
    if trainer.lr_scheduler_type == "warmup_stable_decay":
        # the released schedule: 2 % warm-up, full rate to 5 %, then down to the end
        assert trainer.warmup_steps == 0.02 * trainer.max_steps
        assert trainer.lr_scheduler_kwargs.num_decay_steps == 0.95 * trainer.max_steps


def test_no_family_lacks_its_recipes() -> None:
    wanted = (
        "llamagen/cca_b llamagen/cca_l llamagen/cca_xl llamagen/cca_xxl llamagen/cca_3b var/cca_d16 var/cca_d20 var/cca_d24 "
        "var/cca_d30 var/ddo_d16 var/ddo_d30 llamagen/va_pi_xxl llamagen/va_pi_t2i janus/va_pi llamagen/grpo_c2i "
        "llamagen/grpo_t2i janus/grpo llamagen/dpo var/dpo"
    )
    assert set(wanted.split()) <= set(PUBLISHED)


# --- two steps each


def checkpoint(family: str, folder: Path) -> tuple[Generator, list[str]]:
    """A tiny one in the published form, and the settings that name its files."""
    made = FAMILIES[family]()
    path = folder / ("generator" if family == "janus" else "generator.pt")
    made.save_published(path)
    settings = [f"generator.checkpoint={path}"]
    if family == "var":
        settings += ["generator.config.patch_nums=[1,2,3]"]
    elif family != "janus":
        settings += ["generator.config.grid=[3,3]", "generator.config.num_heads=2"]
    if family != "janus":
        save_tokenizer(made.tokenizer, folder / "tokenizer.pt")  # type: ignore[attr-defined]
        settings += [f"generator.tokenizer_checkpoint={folder / 'tokenizer.pt'}"]
    return made, settings


def data_settings(choice: str, family: str, made: Generator, folder: Path) -> list[str]:
    """Random data of the kind that an experiment asks for."""
    stream = torch.Generator().manual_seed(0)

    def tokens() -> torch.Tensor:
        return torch.randint(made.vocab_size, (12, made.layout.length), generator=stream)

    labels = torch.arange(12) % 4
    if choice == "codes":
        Codes(tokens(), labels, tokenizer_hash(made) or "").save(folder / "codes.safetensors")
        return [f"data.codes={folder / 'codes.safetensors'}"]
    if choice == "images":
        rows = []
        for row in range(12):
            path = folder / "images" / f"c{row % 4}" / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(256, (16, 16, 3), generator=stream, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(path)
            rows.append(json.dumps({"image_path": str(path), "text": CAPTIONS[row % 3]}))
        if made.num_classes is not None:
            return [f"data.images={folder / 'images'}"]
        (folder / "images.jsonl").write_text("\n".join(rows))
        return [f"data.images={folder / 'images.jsonl'}"]
    if choice == "pairs":
        chosen, rejected = torch.ones(12), torch.zeros(12)
        pairs = PreferencePairs(tokens(), tokens(), labels, chosen, rejected, tokenizer_hash(made) or "", "unknown")
        pairs.save(folder / "pairs.safetensors")
        return [f"pairs.file={folder / 'pairs.safetensors'}"]
    if made.num_classes is not None:
        return []
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS))
    return [f"data.prompts={folder / 'prompts.txt'}"]


def text_features(folder: Path) -> Path:
    """What `align data captions` would have made of a T5."""
    encoder = Captions(length=5, width=6)
    store = FeatureStore(folder / "features", EncoderFacts("tiny", 5, True, 6, "float32"))
    for caption in CAPTIONS:
        found = encoder.encode([caption])
        store.append({caption_key(caption): found.features_BTD[0, found.mask_BT[0]]})
    return folder / "features"


SHORT = [
    "generator.size=null",  # a tiny one is of none
    "trainer.max_steps=2",
    "trainer.global_batch_size=4",
    "trainer.per_device_train_batch_size=2",
    "trainer.logging_steps=1",
    "trainer.save_steps=2",
    "trainer.sample_every=0",
    "trainer.warmup_steps=0",  # at the published ones the first two steps would be of next to nothing
]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_it_runs_two_steps_and_exports(name: str, tmp_path: Path) -> None:
    experiment = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    chosen = {key.removeprefix("override /"): value for entry in experiment["defaults"] for key, value in entry.items()}
    family, objective = chosen["generator"], chosen["objective"]
    made, settings = checkpoint(family, tmp_path)
    settings += data_settings("pairs" if objective == "dpo" else chosen["data"], family, made, tmp_path)
    if objective == "grpo":
        settings += ["reward.rewards=[{name: jpeg-compressibility}]", "rollout.num_generations=2"]
    if objective == "va_pi":
        settings += ["actions.num_generations=2", "actions.perceptual=null", "actions.perceptual_weight=0"]
    if family == "llamagen-t2i":
        settings += [f"generator.text_encoder={text_features(tmp_path)}"]
    run = tmp_path / "run"
    assert main(["train", f"experiment={name}", f"output_dir={run}", *settings, *SHORT]) == 0

    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    exported = next(run / form for form in ("generator.pt", "generator") if (run / form).exists())
    before, after = read_tensors(tmp_path / exported.name).tensors, read_tensors(exported).tensors
    assert list(before) == list(after)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    if family != "janus":
        options_ = {"grid": (3, 3), "num_heads": 2} if family != "var" else {"patch_nums": (1, 2, 3)}
        load_generator(family, exported, tmp_path / "tokenizer.pt", **options_)
