"""T5's encoder: captions to features, as LlamaGen's text-to-image models read them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from align.files import sha256_of_tensors
from align.text.features import CaptionFeatures, EncoderFacts, prepare_captions
from align.text.words import unknown_words

# what decides features beside weights and vocabulary; a file's other settings (versions, the decoder) come and go
_SETTINGS = (
    *("d_model", "d_kv", "num_layers", "num_heads", "feed_forward_proj", "layer_norm_epsilon"),
    *("relative_attention_num_buckets", "relative_attention_max_distance"),
)


class T5TextEncoder:
    """A frozen T5 encoder with its tokenizer, from a local folder; nothing is ever downloaded.

    Captions are cut to `max_length` tokens, T5's end-of-sequence token included. Equal captions of one call are encoded
    once. Captions that were cut are counted in `truncated`, and the first of them is said on stderr.

    Args:
        path: a folder with T5's config.json, weights and tokenizer (flan-t5-xl for LlamaGen); or the name of a model
            that the Hugging Face cache already holds.
        clean: clean captions first, as LlamaGen does; see `align.text.clean`.
        dtype: of weights and features. LlamaGen's own features were made in bfloat16.
        batch_size: captions that go through the network at once.

    Raises:
        FileNotFoundError: no such folder, nor a cached model of that name.
        ValueError: another model than T5, weights or a tokenizer that do not fit, or max_length below 1.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        max_length: int = 120,
        clean: bool = True,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        batch_size: int = 64,
    ) -> None:
        for name, value in (("max_length", max_length), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.path = str(path)
        self.max_length = max_length
        self.clean = clean
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.truncated = 0
        self.model, self.tokenizer = _load(str(path), dtype)
        self.model.to(self.device)

    @property
    def width(self) -> int:
        """D of the features."""
        return self.model.config.d_model

    @cached_property
    def facts(self) -> EncoderFacts:
        """Hashes all weights, which takes seconds."""
        config = self.model.config
        settings = {name: getattr(config, name) for name in _SETTINGS}
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        digest = hashlib.sha256(json.dumps([settings, vocabulary]).encode())
        digest.update(sha256_of_tensors(self.model.state_dict()).encode())
        dtype = str(self.model.dtype).removeprefix("torch.")
        return EncoderFacts(digest.hexdigest(), self.max_length, self.clean, config.d_model, dtype)

    def encode(self, captions: Sequence[str]) -> CaptionFeatures:
        """Features on the encoder's device, T = max_length.

        Raises:
            ValueError: none at all, one that is no text, or one with words that an encoder of whole words does not know.
        """
        texts = prepare_captions(captions, clean=self.clean)
        unique = list(dict.fromkeys(texts))
        self._refuse_unknown(unique)
        rows = dict(zip(unique, self.encode_rows(unique), strict=True))
        return CaptionFeatures.of([rows[text] for text in texts], self.max_length)

    def encode_rows(self, texts: Sequence[str]) -> list[Tensor]:
        """The features [n, D] of each text, without padding; texts are taken as they are, cleaned or not."""
        rows: dict[int, Tensor] = {}
        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding in a batch
        for start in range(0, len(texts), self.batch_size):
            batch = by_length[start : start + self.batch_size]
            rows |= zip(batch, self._run([texts[index] for index in batch]), strict=True)
        return [rows[index] for index in range(len(texts))]

    def _refuse_unknown(self, texts: list[str]) -> None:
        if not unknown_words(self.tokenizer, texts):
            return
        text = next(text for text in texts if unknown_words(self.tokenizer, [text]))
        special = set(self.tokenizer.all_special_tokens)
        known = sorted(word for word in self.tokenizer.get_vocab() if word not in special)
        raise ValueError(
            f"the prompt {text!r} has words that the text encoder {self.path} does not know: {', '.join(unknown_words(self.tokenizer, [text]))}; it knows {', '.join(known)}"
        )

    def _run(self, texts: list[str]) -> list[Tensor]:
        tokens = self.tokenizer(
            texts, max_length=self.max_length, truncation=True, padding=True, padding_side="right", return_tensors="pt"
        )
        lengths = tokens["attention_mask"].sum(dim=1).tolist()
        self._count_truncated([text for text, n in zip(texts, lengths, strict=True) if n == self.max_length])
        # features are the same whatever precision the caller computes in
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            features_BTD = self.model(
                input_ids=tokens["input_ids"].to(self.device), attention_mask=tokens["attention_mask"].to(self.device)
            ).last_hidden_state
        return [row_TD[:n] for row_TD, n in zip(features_BTD, lengths, strict=True)]

    def _count_truncated(self, full: list[str]) -> None:
        for text in full:
            length = len(self.tokenizer(text, verbose=False)["input_ids"])
            if length <= self.max_length:
                continue
            if not self.truncated:
                print(
                    f"captions are cut to {self.max_length} tokens; the first that is longer has {length}: {text[:60]!r}...",
                    file=sys.stderr,
                )
            self.truncated += 1


def _load(path: str, dtype: torch.dtype) -> tuple[Any, Any]:
    # transformers takes seconds to import
    from transformers import AutoConfig, AutoTokenizer, T5EncoderModel

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no text encoder at {path}; give the folder of a T5 model (config.json, weights, tokenizer), such as flan-t5-xl for LlamaGen, or of the features that `align data captions` made"
        ) from error
    if config.model_type != "t5":
        raise ValueError(f"{path} holds a {config.model_type!r} model; a T5 encoder was expected")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        loaded: Any = T5EncoderModel.from_pretrained(
            path, config=config, local_files_only=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{path} is no whole T5 model: {error}. It needs weights and a tokenizer: tokenizer.json; or spiece.model, which takes the package sentencepiece (pip install 'ar-align[t2i]')"
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{path} lacks {len(missing)} of a T5 encoder's weights: {', '.join(missing[:4])}")
    # where its files are missing, transformers makes up a tokenizer of a few pieces
    if not config.vocab_size // 2 <= len(tokenizer) <= config.vocab_size:
        raise ValueError(
            f"the tokenizer in {path} has {len(tokenizer)} pieces and the model {config.vocab_size}; put tokenizer.json (or spiece.model) of the same model there"
        )
    if not tokenizer("")["input_ids"]:
        raise ValueError(f"the tokenizer in {path} adds no end-of-sequence token, as T5's does; is it another model's?")
    return model.eval().requires_grad_(False), tokenizer
