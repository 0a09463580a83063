"""Prompts as Janus-Pro reads them: a chat with one request, and the mark after which the image's tokens come."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# what the published vocabularies call the tokens that matter here, and where a folder may give them other names
_MARKS = {
    "bos": ("<｜begin▁of▁sentence｜>", "bos_token"),
    "boi": ("<begin_of_image>", "boi_token"),
    "pad": ("<｜▁pad▁｜>", "pad_token"),
}


class PromptTokenizer:
    """Texts to ids, by a vocabulary in the format of the package tokenizers.

    The vocabulary is read as its file says, and not through transformers' AutoTokenizer: the published folders name a
    LlamaTokenizer, for which some versions replace the file's byte-level splitting by another one.

    Args:
        vocabulary: a `tokenizers.Tokenizer`.
        names: other names for the marks, by their keys in tokenizer_config.json (bos_token, boi_token, pad_token).

    Raises:
        ValueError: the vocabulary lacks one of the marks.
    """

    def __init__(self, vocabulary: Any, names: Mapping[str, Any] | None = None) -> None:
        vocabulary.no_truncation()
        vocabulary.no_padding()
        self.vocabulary = vocabulary
        self.bos_id, self.boi_id, self.pad_id = (self._find(*mark, names or {}) for mark in _MARKS.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptTokenizer:
        return self  # it does not change: copies of a generator share it

    def _find(self, published: str, key: str, names: Mapping[str, Any]) -> int:
        given = names.get(key)
        other = given.get("content") if isinstance(given, Mapping) else given
        for name in (published, other):
            if isinstance(name, str) and (found := self.vocabulary.token_to_id(name)) is not None:
                return int(found)
        raise ValueError(f"the text tokenizer has no {published!r}, nor another {key}: it is not Janus-Pro's")

    @staticmethod
    def load(folder: Path) -> PromptTokenizer:
        """From tokenizer.json, and tokenizer_config.json if there is one.

        Raises:
            ValueError: a damaged file, or another model's vocabulary.
        """
        from tokenizers import Tokenizer

        settings = folder / "tokenizer_config.json"
        try:
            names = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
            vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the package raises nothing more exact
            raise ValueError(f"the text tokenizer in {folder} cannot be read ({error}); download it again") from error
        try:
            return PromptTokenizer(vocabulary, names)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of each prompt in the published chat format, from BOS to BOI."""
        found = [self.vocabulary.encode(_chat(prompt), add_special_tokens=False).ids for prompt in prompts]
        return [[self.bos_id, *ids, self.boi_id] for ids in found]


def _chat(prompt: str) -> str:
    """The authors' template, which leaves out what follows the name of who says nothing."""
    prompt = prompt.strip()
    request = f"<|User|>: {prompt}\n\n" if prompt else "<|User|>:"
    return f"{request}<|Assistant|>:"
