"""Pretraining a small text-to-image generator from nothing, together with the text encoder that it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from align.generators import LlamaGenT2I
from align.objectives import token_logprobs
from align.types import Condition


def train_text_to_image(
    generator: LlamaGenT2I,
    encoder: Any,
    tokenizer: Any,
    tokens_NL: Tensor,
    captions: Sequence[str],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    warmup_steps: int,
    weight_decay: float,
    caption_drop: float,
    seed: int,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Next-token likelihood of images given their captions, in place; both networks end in eval mode.

    AdamW with betas (0.9, 0.95), linear warm-up, cosine decay to zero. A share `caption_drop` of captions becomes the null
    caption, so that guidance has an unconditional branch.

    Args:
        encoder, tokenizer: a T5EncoderModel and its tokenizer.
        tokens_NL: int64 [N, L]; captions: one for each image, of at most the generator's caption_tokens tokens.
        on_step: called with (step, {"loss": nats per token}).
    """
    order = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    unique = list(dict.fromkeys(captions))
    of_caption = {caption: index for index, caption in enumerate(unique)}
    caption_N = torch.tensor([of_caption[caption] for caption in captions])
    length = generator.caption_shape[0]
    read = tokenizer(unique, padding="max_length", max_length=length, padding_side="left", return_tensors="pt")
    if read["input_ids"].shape[1] > length:
        raise ValueError(f"captions have up to {read['input_ids'].shape[1]} tokens; the generator reads {length}")
    parameters = [*generator.parameters(), *encoder.parameters()]
    decayed = [parameter for parameter in parameters if parameter.dim() >= 2]
    plain = [parameter for parameter in parameters if parameter.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, warmup_steps, steps))
    generator.train()
    encoder.train()
    for step in range(steps):
        rows = torch.randint(len(tokens_NL), (batch_size,), generator=order)
        dropped_B = torch.rand(batch_size, generator=order) < caption_drop
        ids_BT, mask_BT = (read[name][caption_N[rows]] for name in ("input_ids", "attention_mask"))
        features_BTD = encoder(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        own = Condition({"caption": features_BTD * mask_BT.unsqueeze(-1), "mask": mask_BT.bool()})
        condition = own.where(dropped_B, generator.null_condition(own))
        tokens_BL = tokens_NL[rows]
        loss = -token_logprobs(generator(tokens_BL, condition), tokens_BL).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if on_step:
            on_step(step + 1, {"loss": loss.item()})
    generator.eval()
    encoder.eval()


def _rate(step: int, warmup_steps: int, steps: int) -> float:
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(steps - warmup_steps, 1)))
