"""A Janus as the causal language model that TRL trains: stock LlamaForCausalLM with the same weights."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align.generators import Janus
from recipes.speed.models import PAD


def causal_lm(janus: Janus) -> LlamaForCausalLM:
    """With the Janus' own parameters, not copies of them.

    One vocabulary: an image's codes, which alone the head predicts, then the text tokens. Codes come in and logits go
    out by the Janus' networks, which stand in the places of a Llama's embedding, last norm and head; the rest is stock.
    """
    sizes, own = janus.sizes, janus.model
    config = LlamaConfig(**{**sizes.language, "vocab_size": sizes.vocab_size, "attn_implementation": "sdpa"})
    model: Any = LlamaForCausalLM(config)
    model.to(janus.device)
    for ours, theirs in ((own.language_model.layers, model.model.layers), (own.language_model.norm, model.model.norm)):
        theirs.load_state_dict(ours.state_dict(keep_vars=True), assign=True)
    head = own.generation_head
    model.model.embed_tokens = _Embedding(janus)
    model.model.norm = nn.Sequential(model.model.norm, head.proj_out, head.activation_fn)
    model.lm_head = head.vision_head
    end = sizes.vocab_size + sizes.text_vocab_size  # which is no token, and is never drawn
    model.config.eos_token_id, model.config.pad_token_id = end, sizes.vocab_size + PAD
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=sizes.vocab_size + PAD, do_sample=True)
    return model


class _Embedding(nn.Module):
    def __init__(self, janus: Janus) -> None:
        super().__init__()
        self.text, self.codes = janus.model.language_model.embed_tokens, janus.model.generation_embeddings
        self.aligner, self.vocab_size = janus.model.generation_aligner, janus.sizes.vocab_size

    def forward(self, ids: Tensor) -> Tensor:
        codes = self.aligner(self.codes(ids.clamp(max=self.vocab_size - 1)))
        texts = self.text((ids - self.vocab_size).clamp(min=0))
        return torch.where((ids < self.vocab_size).unsqueeze(-1), codes, texts)


def number_tokenizer(janus: Janus) -> PreTrainedTokenizerFast:
    """Reads a prompt of numbers, "0 17 5 1", as these text tokens of the one vocabulary."""
    first, words = janus.sizes.vocab_size, janus.sizes.text_vocab_size
    # special tokens are found inside of words too, and must not look like a number
    names = ["<pad>" if number == PAD else str(number) for number in range(words)]
    vocabulary = {name: first + number for number, name in enumerate([*names, "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


class NumberPrompts:
    """The same for the Janus itself."""

    pad_id = PAD

    def encode(self, prompts: list[str]) -> list[list[int]]:
        return [[int(word) for word in prompt.split()] for prompt in prompts]
