"""Captions to features: right-aligned as LlamaGen reads them, cut where they are too long, from a local folder only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from text.tiny import save_tiny_t5
from transformers import AutoTokenizer, T5EncoderModel

from align.text import CaptionFeatures, T5TextEncoder, load_text_encoder

CAPTIONS = ["red cat", "a very blue dog", "photo", "", "red cat"]
F32 = {"dtype": torch.float32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_t5(tmp_path_factory.mktemp("t5"))


def test_padding_is_rolled_as_the_authors_do() -> None:
    numbers = golden.load("llamagen_t2i_tiny")
    lengths = numbers["caption_mask"].sum(dim=1).tolist()
    assert len(set(lengths)) == 3
    assert max(lengths) == 120
    found = CaptionFeatures.of([raw[:n] for raw, n in zip(numbers["caption_raw"], lengths, strict=True)], 120)
    assert torch.equal(found.features_BTD, numbers["caption"])
    assert torch.equal(found.mask_BT, numbers["emb_masks"].bool())


def test_features_are_those_of_transformers(folder: Path) -> None:
    """As LlamaGen calls it: padded to max_length behind the caption, with the attention mask; then rolled."""
    encoder = T5TextEncoder(folder, max_length=12, batch_size=2, **F32)
    found = encoder.encode(CAPTIONS)
    tokens = AutoTokenizer.from_pretrained(folder)(CAPTIONS, max_length=12, padding="max_length", return_tensors="pt")
    with torch.no_grad():
        raw = T5EncoderModel.from_pretrained(folder)(**tokens).last_hidden_state
    assert found.features_BTD.shape == (5, 12, 16)
    assert found.mask_BT.dtype == torch.bool
    assert found.mask_BT.sum(dim=1).tolist() == tokens["attention_mask"].sum(dim=1).tolist() == [3, 10, 2, 1, 3]
    for row, n in enumerate([3, 10, 2, 1, 3]):
        torch.testing.assert_close(found.features_BTD[row, 12 - n :], raw[row, :n], atol=1e-5, rtol=1e-5)
        assert not found.features_BTD[row, : 12 - n].any()
        assert not found.mask_BT[row, : 12 - n].any()
    assert not found.features_BTD.requires_grad
    # equal captions have equal features, to the last bit
    assert torch.equal(found.features_BTD[0], found.features_BTD[4])


def test_captions_are_cleaned_or_taken_as_they_are(folder: Path) -> None:
    cleaning, plain = (T5TextEncoder(folder, max_length=12, clean=clean, **F32) for clean in (True, False))
    dirty = "RED <b>cat</b> http://cats.com"
    assert torch.equal(cleaning.encode([dirty]).features_BTD, plain.encode(["red cat"]).features_BTD)
    assert plain.encode([dirty]).mask_BT.sum() == 12
    assert not torch.equal(plain.encode(["ABC"]).features_BTD, plain.encode(["abc"]).features_BTD)


def test_a_caption_of_ten_thousand_characters_is_cut_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "red cat " * 1250
    assert len(long) == 10_000
    encoder = T5TextEncoder(folder, **F32)
    found = encoder.encode([long, "red cat", "blue dog " * 60 + "x"])
    assert found.mask_BT.sum(dim=1).tolist() == [120, 3, 120]
    error = capsys.readouterr().err
    # shorter ones go through the network first; the last of them is the end-of-sequence token
    assert "captions are cut to 120 tokens; the first that is longer has 123: 'blue dog blue dog" in error
    assert error.count("captions are cut") == 1
    assert encoder.truncated == 2
    encoder.encode(["photo " * 200])
    assert encoder.truncated == 3
    assert "captions are cut" not in capsys.readouterr().err
    # one that just fits is not cut
    fits = T5TextEncoder(folder, max_length=3, **F32)
    fits.encode(["red cat"])
    assert fits.truncated == 0
    assert found.features_BTD.isfinite().all()


def test_features_do_not_depend_on_the_callers_precision(folder: Path) -> None:
    encoder = T5TextEncoder(folder, **F32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = encoder.encode(CAPTIONS)
    assert torch.equal(inside.features_BTD, encoder.encode(CAPTIONS).features_BTD)
    assert T5TextEncoder(folder).encode(CAPTIONS).features_BTD.dtype == torch.bfloat16


def test_the_facts_tell_encoders_apart(folder: Path, tmp_path: Path) -> None:
    facts = T5TextEncoder(folder, **F32).facts
    assert facts == T5TextEncoder(folder, batch_size=3, **F32).facts
    assert (facts.max_length, facts.clean, facts.width, facts.dtype) == (120, True, 16, "float32")
    others = [
        T5TextEncoder(folder),
        T5TextEncoder(folder, max_length=77, **F32),
        T5TextEncoder(folder, clean=False, **F32),
        T5TextEncoder(save_tiny_t5(tmp_path / "other", seed=1), **F32),
    ]
    assert len({facts, *(other.facts for other in others)}) == 5
    assert others[0].facts.encoder != facts.encoder != others[3].facts.encoder


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _with_setting(name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {name: value}))

    return change


def _cut_short(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (_without("config.json"), FileNotFoundError, "no text encoder at .*; give the folder of a T5 model"),
        (_without("tokenizer.json"), ValueError, "tokenizer in .* has 6 pieces and the model 42; put tokenizer.json"),
        (_without("model.safetensors"), ValueError, "is no whole T5 model"),
        (_cut_short, ValueError, "is no whole T5 model"),
        (_with_setting("num_layers", 3), ValueError, "lacks .* of a T5 encoder's weights: encoder.block.2"),
        (_with_setting("d_ff", 64), ValueError, "is no whole T5 model"),
        (_with_setting("model_type", "bert"), ValueError, "holds a 'bert' model; a T5 encoder was expected"),
    ],
)
def test_other_folders_are_refused(
    tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    damage(save_tiny_t5(tmp_path / "t5"))
    with pytest.raises(error, match=f"(?s){message}"):
        T5TextEncoder(tmp_path / "t5", **F32)


def test_nothing_is_downloaded() -> None:
    with pytest.raises(FileNotFoundError, match="no text encoder at someone/no-such-model"):
        load_text_encoder("someone/no-such-model")


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([], "there are no captions to encode"),
        (["a cat", None], "captions must be texts, got None"),
        (["a \ud800cat"], "holds half a character"),
    ],
)
def test_what_is_no_caption_is_refused(folder: Path, captions: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        T5TextEncoder(folder, **F32).encode(captions)


def test_lengths_below_one_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="max_length is 0; it must be at least 1"):
        T5TextEncoder(folder, max_length=0)
