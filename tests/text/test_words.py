"""The text encoder of whole words: its files load as any T5's, and words that it does not know are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align.text import T5TextEncoder
from align.text.words import make_word_encoder, make_word_tokenizer, save_word_encoder, unknown_words

WORDS = ["a", "blue", "cat", "dog", "red"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = make_word_encoder(WORDS, width=16, num_layers=1, num_heads=2)
    save_word_encoder(folder, encoder, make_word_tokenizer(WORDS))
    return folder


def load(folder: Path) -> T5TextEncoder:
    return T5TextEncoder(folder, max_length=6, clean=False, dtype=torch.float32)


def test_a_caption_is_its_words_and_an_end() -> None:
    tokenizer = make_word_tokenizer(WORDS)
    # pad, end and unknown come first
    assert tokenizer("A red cat")["input_ids"] == [3, 7, 5, 1]
    assert tokenizer("")["input_ids"] == [1]


def test_it_is_saved_and_loaded_as_a_t5(folder: Path) -> None:
    features = load(folder).encode(["a red cat", "dog"])
    assert features.features_BTD.shape == (2, 6, 16)
    assert features.mask_BT.sum(1).tolist() == [4, 2]  # right-aligned, with the end
    assert features.mask_BT[:, -1].all()
    assert not torch.equal(features.features_BTD[0, -1], features.features_BTD[1, -1])


def test_unknown_words_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError) as refused:
        load(folder).encode(["a cat", "a green cat, asleep"])
    message = str(refused.value)
    assert "'a green cat, asleep' has words that the text encoder" in message
    assert "does not know: green, ,, asleep; it knows a, blue, cat, dog, red" in message


def test_only_tokenizers_of_whole_words_have_unknown_words(folder: Path) -> None:
    from text.tiny import save_tiny_t5

    spelling = T5TextEncoder(save_tiny_t5(folder.parent / "spelling"), max_length=12, dtype=torch.float32)
    assert unknown_words(spelling.tokenizer, ["a zebra 7"]) == []
    assert unknown_words(make_word_tokenizer(WORDS), ["a zebra", "A Zebra dog 7"]) == ["zebra", "7"]
