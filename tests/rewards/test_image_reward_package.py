"""Our ImageReward and its authors' package, in an environment of its own, give the same scores for the same weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rewards.builtin.image_reward import ImageReward
from rewards.client import load_worker_reward
from rewards.environments import build_environment
from rewards.tiny.blip import WORD_PIECES, Sizes, published_tensors
from rewards.tiny.fill import fill

pytestmark = [
    pytest.mark.packages,
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("AR_ALIGN_TEST_ENVIRONMENTS") != "1",
        reason="installs packages and needs 6 GB of memory; opt in by AR_ALIGN_TEST_ENVIRONMENTS=1",
    ),
]
# as published; the package takes no other sizes of the vision tower and of the head
PUBLISHED = Sizes(
    vision_width=1024,
    vision_layers=24,
    vision_hidden=4096,
    patches=14 * 14,
    text_width=768,
    text_layers=12,
    text_hidden=3072,
    positions=512,
    word_pieces=30522,
    projection=256,
    head_widths=(1024, 128, 64, 16, 1),
)
MED_CONFIG = {
    "hidden_size": PUBLISHED.text_width,
    "intermediate_size": PUBLISHED.text_hidden,
    "num_hidden_layers": PUBLISHED.text_layers,
    "num_attention_heads": 12,
    "max_position_embeddings": PUBLISHED.positions,
    "vocab_size": PUBLISHED.word_pieces + 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "add_cross_attention": True,
}
PROMPTS = ["a red bus", "", "Two zébras, under 1 tree [ENC]!", "many words " * 12]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("AR_ALIGN_IMAGE_REWARD_PYTHON")
    return Path(given) if given else build_environment("image-reward", tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("image-reward")
    torch.save(fill(published_tensors(PUBLISHED), seed=1), folder / "ImageReward.pt")
    unused = [f"[unused{index}]" for index in range(PUBLISHED.word_pieces - len(WORD_PIECES))]
    (folder / "vocab.txt").write_text("\n".join(WORD_PIECES + unused) + "\n")
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    return {name: str(folder / file) for name, file in (("model", "ImageReward.pt"), ("tokenizer", "vocab.txt"))}


def images() -> Tensor:
    stream = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (4, 3, 5, 7), dtype=torch.uint8, generator=stream)
    return F.interpolate(coarse, size=(100, 133), mode="nearest").permute(0, 2, 3, 1).contiguous()


def test_in_process_and_the_package_agree(python: Path, files: dict[str, Any]) -> None:
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    ours = ImageReward(**files, device="cpu", dtype="float32")(images(), rows)
    med_config = str(Path(files["model"]).with_name("med_config.json"))
    kwargs = {**files, "med_config": med_config, "device": "cpu"}
    worker = load_worker_reward("image-reward-package", kwargs, {"python": str(python), "call_timeout": 300})
    try:
        theirs = torch.as_tensor(worker(images(), rows), dtype=torch.float32)
    finally:
        worker.close()
    print(f"\nlargest difference {float((ours - theirs).abs().max()):.2g} of scores {ours.tolist()}")
    assert ours.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
