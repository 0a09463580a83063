"""A small T5 over a closed vocabulary of whole words, for generators of small worlds that are trained together with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def make_word_tokenizer(words: Sequence[str]) -> Any:
    """A transformers tokenizer of lower-case words, with T5's end-of-sequence token."""
    # transformers takes seconds to import
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: index for index, piece in enumerate((PAD, END, UNKNOWN, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def make_word_encoder(words: Sequence[str], *, width: int, num_layers: int, num_heads: int) -> Any:
    """An untrained T5EncoderModel for the vocabulary of `make_word_tokenizer`, of the gated kind as flan-t5 is.

    Its weights are drawn from torch's global random stream.
    """
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(words) + 3,
            d_model=width,
            d_kv=width // num_heads,
            d_ff=2 * width,
            num_layers=num_layers,
            num_heads=num_heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def save_word_encoder(folder: Path, model: Any, tokenizer: Any) -> None:
    """As transformers writes them: config.json, model.safetensors, tokenizer.json, tokenizer_config.json."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def unknown_words(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Words that a tokenizer of whole words does not know, each once; none for other tokenizers, which spell."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "WordLevel":
        return []
    split = [
        word
        for text in texts
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
    ]
    known = tokenizer.get_vocab()
    return [word for word in dict.fromkeys(split) if word not in known]
