"""What every `align pretrain` does: timed stages, and the tokenizer, stored and loaded back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from align.checkpoints import load_tokenizer, save_tokenizer
from align.files import write_text
from align.progress import progress_bar
from align.tokenizers import MultiscaleVQConfig, MultiscaleVQTokenizer, VQConfig, VQTokenizer
from align.training.tokenizer import train_tokenizer
from recipes.run import say

FILES = {
    "generator": "generator.pt",
    "tokenizer": "tokenizer.pt",
    "codes": "train_codes.safetensors",
}
Tokenizer = VQTokenizer | MultiscaleVQTokenizer


class Stages:
    """The parts of a pretraining, their times, and what was found out in them: kept in the folder as each is finished.

    facts: {"seconds": {part: seconds}, ...}; whatever is added inside of a step is kept with it.
    resume: begin with the facts that an earlier run has left.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        self._path = folder / "stages.json"
        self.facts: dict[str, Any] = {"seconds": {}}
        if resume and self._path.exists():
            self.facts = json.loads(self._path.read_text())

    def done(self, name: str) -> bool:
        return name in self.facts["seconds"]

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        say(f"--- {name}")
        started = time.monotonic()
        yield
        self.facts["seconds"][name] = round(time.monotonic() - started)
        write_text(self._path, json.dumps(self.facts, indent=2) + "\n")

    def finish(self) -> None:
        """All is made, and run.json will have the facts."""
        self._path.unlink(missing_ok=True)


def make_tokenizer(config: DictConfig, images: Tensor, seed: int, folder: Path) -> Tokenizer:
    settings: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    training = {key: settings.pop(key) for key in ("steps", "batch_size", "learning_rate", "rate") if key in settings}
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    patch_nums = settings.get("patch_nums")
    sizes = VQConfig(**settings) if patch_nums is None else MultiscaleVQConfig(**settings)
    bar = progress_bar(total=training["steps"], description="tokenizer", unit="step")

    def show(step: int, metrics: dict[str, float]) -> None:
        bar.update()
        bar.set_postfix({name: f"{value:.3g}" for name, value in metrics.items()}, refresh=False)

    tokenizer = train_tokenizer(images, sizes, seed=seed, on_step=show, **training)
    bar.close()
    # half precision halves the file; everything after works with the rounded weights, so nothing drifts
    save_tokenizer(tokenizer, folder / FILES["tokenizer"], dtype=torch.float16)
    stored = load_tokenizer(folder / FILES["tokenizer"], patch_nums=patch_nums)
    assert isinstance(stored, VQTokenizer | MultiscaleVQTokenizer)
    return stored


def tokenizer_facts(tokenizer: Tokenizer, images_NHWC: Tensor) -> dict[str, float]:
    tokens = tokenizer.encode_images(images_NHWC)
    side = images_NHWC.shape[1] // tokenizer.config.downsampling
    decode = partial(tokenizer.decode, grid=(side, side)) if isinstance(tokenizer, VQTokenizer) else tokenizer.decode
    with torch.no_grad():
        output = torch.cat([decode(part) for part in tokens.split(32)])
    images = images_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
    shares = torch.bincount(tokens.flatten(), minlength=tokenizer.config.codebook_size).double() / tokens.numel()
    return {
        "reconstruction_mse_held_out": (output - images).square().mean().item(),
        "codebook_perplexity": torch.special.entr(shares).sum().exp().item(),
    }
