"""Settings of tiny generators of images of 12x12 pixels, and commands that encode images for them and train on the codes."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import tiny_llamagen, tiny_var
from data.pictures import tokenizer_file
from text.tiny_t2i import save_tiny_t2i

SHORT = [
    "evaluation=none",
    "output_dir=run",
    "trainer.max_steps=2",
    "trainer.per_device_train_batch_size=2",
    "trainer.save_steps=2",
    "trainer.report_to=[]",
    "trainer.sample_every=2",
]


def llamagen(side: int = 3, *, seed: int = 0) -> list[str]:
    """Settings for a generator of side x side tokens of 4 pixels each, and its files."""
    tiny_llamagen(grid=(side, side)).save_published(Path(f"c2i_{side}.pt"))
    tokenizer_file(Path(f"vq_{seed}.pt"), seed=seed)
    return [
        "generator=llamagen",
        f"generator.checkpoint=c2i_{side}.pt",
        f"generator.tokenizer_checkpoint=vq_{seed}.pt",
        f"generator.config.grid=[{side},{side}]",
        "generator.config.num_heads=2",
    ]


def var() -> list[str]:
    tiny_var().save_published(Path("var.pth"))
    tokenizer_file(Path("vae.pth"), var=True)
    patches = "generator.config.patch_nums=[1,2,3]"
    return ["generator=var", "generator.checkpoint=var.pth", "generator.tokenizer_checkpoint=vae.pth", patches]


def t2i() -> list[str]:
    files = save_tiny_t2i(Path("t2i"))
    return [
        "generator=llamagen-t2i",
        *(f"generator.{name}={path}" for name, path in files.items()),
        "generator.config.grid=[3,3]",
        "generator.config.num_heads=2",
    ]


def encode(source: str, *more: str) -> list[str]:
    tokenizer_file(Path("vq_0.pt"))
    tokenizer = ["generator=llamagen", "generator.tokenizer_checkpoint=vq_0.pt"]
    return ["data", "encode", f"source={source}", *tokenizer, "image_size=12", "workers=0", *more]


def train(settings: list[str], objective: str = "sft", *more: str) -> list[str]:
    return ["train", *settings, f"objective={objective}", *SHORT, *more]


def losses() -> list[float]:
    return [json.loads(line)["loss"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
