"""What the recipes of published models cost at true size: memory, seconds a step, and how near to the machine's limit.

    python benchmarks/true_size.py llamagen/cca_b trainer.per_device_train_batch_size=1  # what a CPU can do
    python benchmarks/true_size.py --results benchmarks/results/true-size-h100.json      # on a GPU, all of them
    python benchmarks/true_size.py --table benchmarks/results/true-size-*.json           # for the README

Files of the published sizes and forms are made with random weights, then loaded, sampled from and trained on as a user's
would be, on random codes, images and captions. A step is of two micro-batches; what the published batch takes is
computed from it. The limit is the rate of a large matrix product, measured in the same run, at the operations that
torch counts in a step: 1.0 would be a step of nothing but such products. Peak memory is that of the GPU, or of the
whole process on a CPU, which has made the files, too. Sampling is plain, without guidance; VA-pi goes without LPIPS.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode

import align.training.callbacks as callbacks
from align import SamplingConfig, sample
from align.checkpoints import save_tokenizer
from align.data import Codes, PreferencePairs
from align.files import sha256_of_tensors, write_text
from align.generators import JanusConfig, LlamaGenConfig, PublishedGenerator, VARConfig
from align.text.features import EncoderFacts
from align.text.store import FeatureStore, caption_key
from align.tokenizers import MultiscaleVQTokenizer, VQConfig, VQTokenizer
from recipes.choices import CONF, options
from recipes.config import compose
from recipes.parts import make_generator, make_objective, use_bf16
from recipes.run import describe_device
from recipes.speed.machine import matmul_rate, peak_bytes, reset_peak, synchronize
from recipes.speed.models import published_sizes, random_generator
from recipes.supplies import check_recipe, make_supplies
from recipes.train import train_generator

RECIPES = [name for name in options("experiment") if name.split("/")[0] in ("llamagen", "var", "janus")]
ROWS = 4096  # codes and pairs to draw from
CAPTIONS = [f"a photo of {count} things" for count in range(16)]


def read_recipe(recipe: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Its file, and what it chooses of each group."""
    experiment: dict[str, Any] = yaml.safe_load((CONF / "experiment" / f"{recipe}.yaml").read_text())
    return experiment, {
        key.removeprefix("override /"): v for entry in experiment["defaults"] for key, v in entry.items()
    }


def make_files(recipe: str, folder: Path) -> list[str]:
    """Random weights and data of the recipe's family and size; the settings that name them."""
    experiment, chosen = read_recipe(recipe)
    family = chosen["generator"]
    if family == "janus":
        made = make_janus(folder / "janus", recipe_sizes(family, experiment["generator"]))
        settings = [f"generator.checkpoint={made}"]
        classes, length, codes, digest = None, 576, 16384, ""
    else:
        generator, tokenizer = make_models(family, experiment["generator"])
        generator.cpu().save_published(folder / "generator.pt")
        save_tokenizer(tokenizer, folder / "tokenizer.pt")
        classes, length, codes = generator.num_classes, generator.layout.length, generator.vocab_size
        digest = sha256_of_tensors(tokenizer.state_dict())
        settings = [
            f"generator.checkpoint={folder / 'generator.pt'}",
            f"generator.tokenizer_checkpoint={folder / 'tokenizer.pt'}",
        ]
    stream = torch.Generator().manual_seed(0)
    if family == "llamagen-t2i":
        settings.append(f"generator.text_encoder={make_features(folder / 'features')}")
    if chosen["data"] == "codes":
        tokens = torch.randint(codes, (ROWS, length), generator=stream)
        Codes(tokens, torch.randint(1000, (ROWS,), generator=stream), digest).save(folder / "codes.safetensors")
        settings.append(f"data.codes={folder / 'codes.safetensors'}")
    elif chosen["data"] == "images":
        settings.append(f"data.images={make_images(folder / 'images', captions=classes is None)}")
        settings.append(f"data.kind={'jsonl' if classes is None else 'folder'}")
    elif classes is None:
        write_text(folder / "prompts.txt", "\n".join(CAPTIONS))
        settings.append(f"data.prompts={folder / 'prompts.txt'}")
    if chosen["objective"] == "dpo":
        two = [torch.randint(codes, (ROWS, length), generator=stream) for _ in range(2)]
        labels, rewards = torch.randint(1000, (ROWS,), generator=stream), torch.zeros(ROWS)
        PreferencePairs(*two, labels, rewards + 1, rewards, digest, "unknown").save(folder / "pairs.safetensors")
        settings.append(f"pairs.file={folder / 'pairs.safetensors'}")
    if chosen["objective"] == "grpo":
        settings.append("reward.rewards=[{name: jpeg-compressibility}]")
    if chosen["objective"] == "va_pi":  # the perceptual network's file is the user's
        settings += ["actions.perceptual=null", "actions.perceptual_weight=0"]
    return settings


def recipe_sizes(family: str, section: dict[str, Any]) -> LlamaGenConfig | VARConfig | JanusConfig:
    """Of the published model that a recipe's `generator:` section is for."""
    tokens = {name: value for name, value in section.get("config", {}).items() if name in ("grid", "patch_nums")}
    return published_sizes(family, section["size"], **tokens)


def make_models(
    family: str, section: dict[str, Any]
) -> tuple[PublishedGenerator[Any], VQTokenizer | MultiscaleVQTokenizer]:
    generator = random_generator(recipe_sizes(family, section), DEVICE)
    return generator, (generator.tokenizer or VQTokenizer(VQConfig())).cpu()


def make_janus(folder: Path, sizes: JanusConfig) -> Path:
    """Janus-Pro in its authors' layout, without what only understands images; prompts are read byte by byte."""
    torch.manual_seed(0)
    weights = {}
    for name, shape in sizes.shapes().items():
        weights[name] = torch.ones(shape) if "norm" in name else torch.randn(shape, device=DEVICE).mul_(0.02).cpu()
    weights |= {f"gen_vision_model.{name}": tensor for name, tensor in VQTokenizer(VQConfig()).state_dict().items()}
    folder.mkdir()
    torch.save(weights, folder / "pytorch_model.bin")
    settings = {"model_type": "multi_modality", "language_config": sizes.language}
    write_text(folder / "config.json", json.dumps(settings))
    marks = [
        *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>"),
        *("<|User|>", "<|Assistant|>"),
    ]
    words = [*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    text = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    text.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    text.save(str(folder / "tokenizer.json"))
    write_text(folder / "tokenizer_config.json", json.dumps({"bos_token": marks[0], "pad_token": marks[2]}))
    return folder


def make_images(folder: Path, *, captions: bool) -> Path:
    """JPEGs of the size of ImageNet's, of smooth noise."""
    rows, random = [], np.random.default_rng(0)
    for number in range(256):
        path = folder / f"class{number % 16:02d}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (32, 40, 3), dtype=np.uint8))
        coarse.resize((500, 400), Image.Resampling.BICUBIC).save(path, quality=90)
        rows.append(json.dumps({"image_path": str(path.resolve()), "text": CAPTIONS[number % len(CAPTIONS)]}))
    if not captions:
        return folder
    write_text(folder / "images.jsonl", "\n".join(rows))
    return folder / "images.jsonl"


def make_features(folder: Path) -> Path:
    """Caption features as flan-t5-xl's would lie in a store."""
    store = FeatureStore(folder, EncoderFacts("random", 120, True, 2048, "bfloat16"))
    store.append({caption_key(caption): torch.randn(9, 2048, dtype=torch.bfloat16) for caption in CAPTIONS})
    return folder


class Watch(callbacks.ProgressBar):
    """Notes when each step ends, and counts the first one's operations."""

    ends: list[float]
    flops: float

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        Watch.ends, Watch.flops = [], 0.0
        self.counter = FlopCounterMode(display=False)
        self.counter.__enter__()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if not self.ends:
            self.counter.__exit__(None, None, None)
            Watch.flops = float(self.counter.get_total_flops())
        synchronize()
        self.ends.append(time.perf_counter())


@contextmanager
def watching() -> Iterator[None]:
    plain, callbacks.ProgressBar = callbacks.ProgressBar, Watch  # type: ignore[misc]
    try:
        yield
    finally:
        callbacks.ProgressBar = plain  # type: ignore[misc]


def measure(recipe: str, overrides: list[str], folder: Path, steps: int, images: int) -> dict[str, Any]:
    files = make_files(recipe, folder)
    overrides = [*overrides, "trainer.global_batch_size=null", "trainer.gradient_accumulation_steps=2"]
    published = compose("train", [f"experiment={recipe}", *files]).trainer
    short = [f"trainer.max_steps={steps}", "trainer.sample_every=0", "trainer.save_steps=1000000", "preflight=false"]
    config = compose("train", [f"experiment={recipe}", f"output_dir={folder / 'run'}", *files, *overrides, *short])
    check_recipe(config)
    gc.collect()
    reset_peak()
    start = time.perf_counter()
    generator = make_generator(config.generator, dropout=config.trainer.dropout)
    synchronize()
    load = time.perf_counter() - start
    conditions = [CAPTIONS[0]] * images if generator.num_classes is None else list(range(images))
    sampled: dict[str, Any] = {}
    if images:
        start = time.perf_counter()
        generator.decode(sample(generator, generator.encode_condition(conditions), SamplingConfig()).tokens_BL)
        synchronize()
        sampled = {"images_sampled": images, "sample_seconds": round(time.perf_counter() - start, 1)}
    (folder / "run").mkdir()
    with watching():
        train_generator(
            generator,
            make_objective(config.objective),
            make_supplies(config, generator, folder / "run"),
            {**OmegaConf.to_container(config.trainer), "report_to": [], "seed": 0},
            folder=folder / "run",
            resume=False,
            description=recipe,
            alarms=None,
            prompts=config.data.get("prompts"),
        )
    rows = config.trainer.per_device_train_batch_size * config.trainer.gradient_accumulation_steps
    step = statistics.median(after - before for before, after in zip(Watch.ends, Watch.ends[1:], strict=False))
    floor = Watch.flops / training_rate()
    return {
        "parameters": sum(p.numel() for p in generator.parameters()),
        "rows_of_a_micro_batch": config.trainer.per_device_train_batch_size,
        "rows_of_a_step": rows,
        "load_seconds": round(load, 1),
        **sampled,
        "step_seconds": round(step, 3),
        "flops_of_a_step": Watch.flops,
        "share_of_matmul_rate": round(floor / step, 3),
        "peak_gb": round(peak_bytes() / 1e9, 1),
        "published_rows_of_a_step": published.global_batch_size,
        "published_step_seconds": round(step * published.global_batch_size / rows, 2),
        "published_steps": published.max_steps,
    }


# --- the machine

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def training_rate() -> float:
    """Operations a second of a large matrix product, in the precision that training multiplies in."""
    size, dtype = (8192, torch.bfloat16) if use_bf16("auto") else (2048, torch.float32)
    return matmul_rate(size, size, size, torch.device(DEVICE), dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="recipes, and settings as key=value")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--images", type=int, default=4, help="that are sampled at once, before training")
    parser.add_argument("--results", type=Path, help="a JSON to add to")
    parser.add_argument("--folder", type=Path, help="where files are made and deleted again; up to 13 GB at once")
    parser.add_argument("--table", type=Path, nargs="+", help="print what such JSONs hold, and measure nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.table))
        return
    recipes = [word for word in arguments.words if "=" not in word] or RECIPES
    overrides = [word for word in arguments.words if "=" in word]
    if len(recipes) > 1:  # each in a process of its own, so that none inherits another's memory
        given = [word for word in sys.argv[1:] if word not in recipes]
        for recipe in recipes:
            subprocess.run([sys.executable, __file__, recipe, *given], check=True)
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    row: dict[str, Any] = {"overrides": overrides}
    try:
        row |= measure(recipes[0], overrides, folder, arguments.steps, arguments.images)
    except torch.OutOfMemoryError as error:  # what does not fit is a result, too
        row["failed"] = str(error).split(". ")[0]
    finally:
        shutil.rmtree(folder)
    print(f"{recipes[0]}: {json.dumps(row)}", flush=True)
    if arguments.results is not None:
        add(arguments.results, recipes[0], row)


def table(paths: list[Path]) -> str:
    """Markdown; the recipes that did not fit are left out."""
    lines = [
        "| recipe | device | rows at once | seconds for the published batch | share of the matmul rate | peak, GB |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for path in paths:
        content = json.loads(path.read_text())
        for recipe, row in content["recipes"].items():
            if "failed" not in row:
                batch = f"{row['published_step_seconds']:,.1f} (of {row['published_rows_of_a_step']})"
                cells = [f"`{recipe}`", content["device"], row["rows_of_a_micro_batch"], batch]
                cells += [row["share_of_matmul_rate"], row["peak_gb"]]
                lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def add(path: Path, recipe: str, row: dict[str, Any]) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= {"device": describe_device(), "torch": torch.__version__}
    content.setdefault("recipes", {})[recipe] = row
    write_text(path, json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
