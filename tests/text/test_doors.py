"""From a path or an object to the text encoder of a generator that reads captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Captions, tiny_llamagen
from text.tiny import save_tiny_t5
from text.tiny_t2i import CAPTION_DIM, CAPTION_TOKENS, save_tiny_t2i

from align import load_generator
from align.generators import LlamaGenT2I
from align.text import CachedTextEncoder, FeatureStore, T5TextEncoder

SIZES: dict[str, Any] = {"grid": (3, 3), "num_heads": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("t2i")
    return {**save_tiny_t2i(folder), "t5": save_tiny_t5(folder / "t5")}


def load(files: dict[str, Path], text_encoder: Any) -> LlamaGenT2I:
    generator = load_generator("llamagen-t2i", files["checkpoint"], text_encoder=text_encoder, **SIZES)
    assert isinstance(generator, LlamaGenT2I)
    return generator


def test_a_folder_with_t5_is_read_as_the_generator_was_trained(files: dict[str, Path]) -> None:
    generator = load(files, files["t5"])
    encoder = generator.text_encoder
    assert isinstance(encoder, T5TextEncoder)
    assert (encoder.max_length, encoder.clean) == (CAPTION_TOKENS, True)
    condition = generator.encode_condition(["RED <b>cat</b>", "a very very very blue dog"])
    expected = T5TextEncoder(files["t5"], max_length=CAPTION_TOKENS).encode(["red cat", "a very very very blue dog"])
    assert torch.equal(condition.tensors["caption"], expected.features_BTD)
    assert condition.tensors["mask"].sum(dim=1).tolist() == [3, 12]
    # frozen, and no part of the module
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not any("text" in name for name in generator.state_dict())


def test_a_folder_with_features_gives_the_same_without_t5(files: dict[str, Path], tmp_path: Path) -> None:
    encoder = T5TextEncoder(files["t5"], max_length=CAPTION_TOKENS)
    cached = CachedTextEncoder(encoder, FeatureStore(tmp_path, encoder.facts))
    cached.add(["a red cat", "dog"])
    cached.flush()
    generator = load(files, str(tmp_path))
    assert isinstance(generator.text_encoder, CachedTextEncoder)
    assert generator.text_encoder.encoder is None
    tokens = torch.randint(16, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = generator(tokens, generator.encode_condition(["a red cat", "dog"]))
        other = load(files, files["t5"])
        assert torch.equal(logits, other(tokens, other.encode_condition(["A red cat", "dog"])))
    with pytest.raises(ValueError, match="the first of them is 'a blue cat'; make them: align data captions"):
        generator.encode_condition(["dog", "a blue cat"])


def test_an_object_is_taken_as_it_is(files: dict[str, Path]) -> None:
    mine = Captions(length=CAPTION_TOKENS, width=CAPTION_DIM)
    generator = load(files, mine)
    assert generator.text_encoder is mine
    assert generator.encode_condition(["a red cat"]).tensors["mask"].sum() == 4


def test_without_one_what_to_set_is_said(files: dict[str, Path]) -> None:
    with pytest.raises(
        ValueError, match=r"pass text_encoder= to load_generator, or set generator.text_encoder= of a c"
    ):
        load(files, None).encode_condition(["dog"])


def test_encoders_of_another_shape_are_refused_at_once(files: dict[str, Path], tmp_path: Path) -> None:
    encoder = T5TextEncoder(files["t5"], max_length=7)
    FeatureStore(tmp_path / "short", encoder.facts)
    with pytest.raises(ValueError, match="short gives captions of 7 x 16 features, and this generator reads 12 x 16"):
        load(files, tmp_path / "short")


@pytest.mark.parametrize("place", ["nothing/there", "empty", "file.txt"])
def test_what_is_no_text_encoder_is_refused(files: dict[str, Path], tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("a red cat\n")
    with pytest.raises(FileNotFoundError, match="no text encoder at .*features that `align data captions` made"):
        load(files, tmp_path / place)


def test_generators_of_classes_take_none(files: dict[str, Path], tmp_path: Path) -> None:
    tiny_llamagen().save_published(tmp_path / "c2i.pt")
    with pytest.raises(ValueError, match="a llamagen generator reads no captions by a text encoder; leave text_enc"):
        load_generator("llamagen", tmp_path / "c2i.pt", text_encoder=files["t5"], grid=(3, 2), num_heads=2)
