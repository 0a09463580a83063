"""Pretraining a generator and its text encoder together: both learn, captions decide, and what trains is what loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align.generators import LlamaGenConfig, LlamaGenT2I
from align.objectives import token_logprobs
from align.text import T5TextEncoder
from align.text.words import make_word_encoder, make_word_tokenizer, save_word_encoder
from align.training.text_to_image import train_text_to_image

WORDS = ["high", "low", "tone"]
CAPTIONS = ["high tone", "low tone"]
SIZES = LlamaGenConfig(
    dim=16, num_layers=1, num_heads=2, hidden_dim=32, vocab_size=6, grid=(2, 2), caption_tokens=4, caption_dim=16
)


def untrained() -> tuple[LlamaGenT2I, object, object]:
    torch.manual_seed(0)
    encoder = make_word_encoder(WORDS, width=16, num_layers=1, num_heads=2)
    generator = LlamaGenT2I(SIZES)
    generator.initialize(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(generator.get_buffer("cls_embedding.uncond_embedding"))
    return generator, encoder, make_word_tokenizer(WORDS)


def train(steps: int, **changes: float) -> tuple[LlamaGenT2I, object, object, list[float]]:
    generator, encoder, tokenizer = untrained()
    tokens = torch.tensor([[5, 4, 5, 4], [0, 1, 0, 1]]).repeat(20, 1)
    losses: list[float] = []
    settings = {"batch_size": 16, "learning_rate": 1e-2, "warmup_steps": 2, "weight_decay": 0.0, "caption_drop": 0.2}
    train_text_to_image(
        generator,
        encoder,
        tokenizer,
        tokens,
        CAPTIONS * 20,
        steps=steps,
        seed=0,
        on_step=lambda step, metrics: losses.append(metrics["loss"]),
        **(settings | changes),  # type: ignore[arg-type]
    )
    return generator, encoder, tokenizer, losses


def test_captions_decide_what_is_drawn(tmp_path: Path) -> None:
    generator, encoder, tokenizer, losses = train(60)
    assert len(losses) == 60
    assert losses[-1] < 0.35 < losses[0]  # a fifth of the captions is dropped, and then the first token is a coin's
    save_word_encoder(tmp_path, encoder, tokenizer)
    reader = T5TextEncoder(tmp_path, max_length=4, clean=False, dtype=torch.float32)
    generator.attach_text(reader)
    condition = generator.encode_condition(CAPTIONS)
    own = torch.tensor([[5, 4, 5, 4], [0, 1, 0, 1]])
    with torch.no_grad():
        likely = token_logprobs(generator(own, condition), own).sum(1).exp()
        swapped = token_logprobs(generator(own.flip(0), condition), own.flip(0)).sum(1).exp()
        null = generator(own, generator.null_condition(condition))[:, 0].softmax(-1)
    assert (likely > 0.9).all()
    assert (swapped < 0.05).all()
    assert (null[:, [0, 5]] > 0.2).all()  # the null caption is of both


def test_without_dropped_captions_the_null_caption_learns_nothing() -> None:
    assert train(3, caption_drop=0.0)[3] != train(3, caption_drop=1.0)[3]
    never = train(3, caption_drop=1.0)
    assert all(p.grad is None or not p.grad.any() for p in never[1].parameters())  # type: ignore[attr-defined]


def test_it_is_deterministic_and_ends_in_eval_mode() -> None:
    first, again = train(3), train(3)
    assert first[3] == again[3]
    assert not first[0].training
    assert not first[1].training  # type: ignore[attr-defined]


def test_captions_that_are_too_long_are_refused() -> None:
    generator, encoder, tokenizer = untrained()
    with pytest.raises(ValueError, match="captions have up to 5 tokens; the generator reads 4"):
        train_text_to_image(
            generator,
            encoder,
            tokenizer,
            torch.zeros(1, 4, dtype=torch.long),
            ["high low high tone"],
            steps=1,
            batch_size=1,
            learning_rate=1e-3,
            warmup_steps=1,
            weight_decay=0.0,
            caption_drop=0.0,
            seed=0,
        )
