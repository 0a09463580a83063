"""A tiny checkpoint of each published family, with its data, as settings of `align train`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import Captions, tiny_infinity, tiny_janus, tiny_llamagen, tiny_llamagen_t2i, tiny_var
from PIL import Image

from align.checkpoints import save_tokenizer
from align.data import Codes, PreferencePairs
from align.generators import Generator, PublishedGenerator
from align.text.features import EncoderFacts
from align.text.store import FeatureStore, caption_key
from recipes.parts import tokenizer_hash

CAPTIONS = ["a picture of one", "a picture of two", "a picture of three"]
SQUARES = ((1, 1), (2, 2), (3, 3))
# of 3x3 tokens in the last or only scale: pixels are cropped to squares
FAMILIES: dict[str, Callable[[], Generator]] = {
    "llamagen": lambda: tiny_llamagen(grid=(3, 3)),
    "llamagen-t2i": lambda: tiny_llamagen_t2i(grid=(3, 3)),
    "var": tiny_var,
    "janus": tiny_janus,
    "infinity": lambda: tiny_infinity(schedule=SQUARES, num_scales=3),
}
# what the tiny files cannot tell, as the published ones do by their names or sizes
UNTOLD = {
    "llamagen": {"grid": (3, 3), "num_heads": 2},
    "llamagen-t2i": {"grid": (3, 3), "num_heads": 2},
    "var": {"patch_nums": (1, 2, 3)},
    "janus": {},
    "infinity": {"schedule": SQUARES, "num_scales": 3},
}
SHORT = [
    "generator.size=null",  # a tiny one is of none
    "evaluation=none",
    "trainer.max_steps=2",
    "trainer.global_batch_size=4",
    "trainer.per_device_train_batch_size=2",
    "trainer.logging_steps=1",
    "trainer.save_steps=2",
    "trainer.sample_every=0",
    "trainer.warmup_steps=0",  # at the published ones the first two steps would be of next to nothing
    "rollout.num_generations=2",
    "actions.num_generations=2",
    "actions.perceptual=null",
    "actions.perceptual_weight=0",
]


def checkpoint(family: str, folder: Path) -> tuple[Generator, list[str]]:
    """A tiny one in the published form, and the settings that name its files."""
    made = FAMILIES[family]()
    assert isinstance(made, PublishedGenerator)
    path = folder / ("generator" if family == "janus" else "generator.pt")
    made.save_published(path)
    settings = [f"generator.checkpoint={path}"]
    for name, value in UNTOLD[family].items():
        settings.append(f"generator.config.{name}={json.dumps(value).replace(' ', '')}")
    if family != "janus":
        save_tokenizer(made.tokenizer, folder / "tokenizer.pt")
        settings.append(f"generator.tokenizer_checkpoint={folder / 'tokenizer.pt'}")
    if family in ("llamagen-t2i", "infinity"):
        settings.append(f"generator.text_encoder={text_features(folder)}")
    return made, settings


def text_features(folder: Path) -> Path:
    """What `align data captions` would have made by a T5."""
    encoder = Captions(length=5, width=6)
    store = FeatureStore(folder / "features", EncoderFacts("tiny", 5, True, 6, "float32"))
    for caption in CAPTIONS:
        found = encoder.encode([caption])
        store.append({caption_key(caption): found.features_BTD[0, found.mask_BT[0]]})
    return folder / "features"


def data(kind: str, made: Generator, folder: Path) -> list[str]:
    """Random data of a kind: codes, images, pairs or prompts, with classes or captions as the generator takes them."""
    stream = torch.Generator().manual_seed(0)

    def tokens() -> torch.Tensor:
        return torch.randint(made.vocab_size, (12, made.layout.length), generator=stream)

    captions = [CAPTIONS[row % 3] for row in range(12)]
    labels = torch.arange(12) % 4 if made.num_classes is not None else captions
    if kind == "codes":
        assert isinstance(labels, torch.Tensor)
        Codes(tokens(), labels, tokenizer_hash(made) or "").save(folder / "codes.safetensors")
        return [f"data.codes={folder / 'codes.safetensors'}"]
    if kind == "images":
        rows = []
        for row in range(12):
            path = folder / "images" / f"c{row % 4}" / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(256, (16, 16, 3), generator=stream, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(path)
            rows.append(json.dumps({"image_path": str(path), "text": captions[row]}))
        if made.num_classes is not None:
            return [f"data.images={folder / 'images'}"]
        (folder / "images.jsonl").write_text("\n".join(rows))
        return [f"data.images={folder / 'images.jsonl'}", "data.kind=jsonl"]
    if kind == "pairs":
        chosen, rejected = torch.ones(12), torch.zeros(12)
        pairs = PreferencePairs(tokens(), tokens(), labels, chosen, rejected, tokenizer_hash(made) or "", "unknown")
        pairs.save(folder / "pairs.safetensors")
        return [f"pairs.file={folder / 'pairs.safetensors'}"]
    code = "def brightness(images, conditions):\n    return images.float().mean(dim=(1, 2, 3))\n"
    (folder / "rewards.py").write_text(code)
    reward = [f"reward.rewards=[{{name: '{folder / 'rewards.py'}:brightness'}}]"]
    if made.num_classes is not None:
        return [*reward, "reward.class_names=null"]  # the file's four classes are none of ImageNet's
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS))
    return [*reward, f"data.prompts={folder / 'prompts.txt'}"]
