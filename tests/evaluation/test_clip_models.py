"""A CLIP model is loaded once, from the file that was meant, with the activation that was said; else it is refused."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.clip.models import load_clip
from evaluation.clip.open_clip_files import read_tensors
from rewards.tiny import clip as tiny


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny.save_transformers_clip(folder, activation="quick_gelu", seed=0)
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(published, tmp_path / "clip"))


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("open_clip")
    tiny.make_hpsv2(folder)
    return folder


def load(model: Path, **more: Any) -> Any:
    return load_clip(str(model), **{"device": "cpu", "dtype": "float32", **more})


def open_clip_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_tiny_models_have_the_published_names(published: Path) -> None:
    names = load_file(published / "model.safetensors").keys()
    assert {
        *("logit_scale", "text_projection.weight", "visual_projection.weight", "vision_model.pre_layrnorm.weight"),
        *("text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.bias"),
        *("vision_model.embeddings.class_embedding", "vision_model.encoder.layers.1.self_attn.q_proj.weight"),
    } <= names
    assert len(names) == 78


def test_the_same_weights_are_loaded_once(folder: Path) -> None:
    first = load(folder)
    assert load(folder) is first
    assert load(folder, dtype="bfloat16") is not first
    save_file({**load_file(first.weights), "logit_scale": torch.tensor(0.0)}, first.weights, {"format": "pt"})
    assert load(folder).scale == 1 < first.scale
    alive = weakref.ref(first)
    del first
    gc.collect()
    assert alive() is None


def test_equal_texts_are_computed_once(published: Path) -> None:
    clip = load(published)
    seen: list[list[str]] = []

    def embed(part: list[str]) -> torch.Tensor:
        seen.append(part)
        return clip.embed_texts(part)

    embeddings_BD = dataclasses.replace(clip, embed_texts=embed).encode_texts(["b", "a", "b", "c", "b"], batch_size=2)
    assert seen == [["b", "a"], ["c"]]
    torch.testing.assert_close(embeddings_BD, clip.encode_texts(["b", "a", "b", "c", "b"], batch_size=5))


def spoil_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))


def spoil_names(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["visual.weight"] = tensors.pop("visual_projection.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def spoil_shapes(folder: Path) -> None:
    tensors = {**load_file(folder / "model.safetensors"), "visual_projection.weight": torch.zeros(8, 32)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def spoil_tokenizer(folder: Path) -> None:
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (spoil_config, ValueError, "holds a model of type 'siglip'; a CLIP is needed"),
        (spoil_names, ValueError, "missing visual_projection.weight; unexpected visual.weight; of another shape none"),
        (spoil_shapes, ValueError, "missing none; unexpected none; of another shape visual_projection.weight"),
        (spoil_tokenizer, ValueError, r"tokenizer in .* has \d+ tokens, the model 514; .*as tokenizer="),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            FileNotFoundError,
            "has neither model.safetensors nor",
        ),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    folder: Path, spoil: Callable[[Path], None], error: type[Exception], message: str
) -> None:
    spoil(folder)
    with pytest.raises(error, match=message):
        load(folder)


def test_positions_of_older_files_are_passed_over(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert load(folder).width == 16


def test_a_tokenizer_may_come_from_elsewhere(folder: Path, published: Path) -> None:
    spoil_tokenizer(folder)
    texts = ["a cat", "a dog"]
    clip = load(folder, tokenizer=str(published))
    torch.testing.assert_close(
        clip.encode_texts(texts, batch_size=2), load(published).encode_texts(texts, batch_size=2)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sha256": "0" * 64}, "sha256 is [0-9a-f]{64}, expected 0000"),
        ({"quick_gelu": True}, "quick_gelu= and filename= are of open_clip's files, which need architecture="),
        ({"filename": "model.safetensors"}, "which need architecture="),
        ({"architecture": "ViT-B-32", "tokenizer": "x"}, "tokenizer= is of transformers' folders"),
        ({"dtype": "half"}, "unknown dtype 'half'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(published: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(published, **settings)


def test_programs_in_files_are_not_run(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "ViT-L-14.pt")
    torch.save({"state_dict": {"a": Path("x")}}, tmp_path / "pickled.pt")
    for name in ("ViT-L-14.pt", "pickled.pt"):
        with pytest.raises(ValueError, match=f"{name} is not a file of tensors alone .*OpenAI's own .pt files"):
            read_tensors(tmp_path / name)


def test_without_open_clip_the_extra_is_named(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"open_clip, which does not import .*pip install 'ar-align\[rewards\]'"):
        load(published / "model.safetensors", architecture="ViT-H-14")


@pytest.mark.slow
def test_the_activation_matters_and_must_be_told(open_clip_folder: Path) -> None:
    file, own = open_clip_folder / "HPS_v2.1_compressed.pt", str(open_clip_folder / "architecture.json")
    gelu, quick = (
        load(file, architecture=own, quick_gelu=quick).encode_images(pixels(), batch_size=2) for quick in (False, True)
    )
    assert (gelu - quick).abs().max() > 0.003
    with pytest.raises(
        ValueError, match="ViT-L-14 may be with GELU or with QuickGELU, .*quick_gelu=true for weights of OpenAI"
    ):
        load(file, architecture="ViT-L-14")
    with pytest.raises(ValueError, match="ViT-L-14-quickgelu is with QuickGELU, and quick_gelu=false says without"):
        load(file, architecture="ViT-L-14-quickgelu", quick_gelu=False)
    for told in ({"architecture": "ViT-L-14-quickgelu"}, {"architecture": "ViT-L-14", "quick_gelu": True}):
        with pytest.raises(ValueError, match="is no ViT-L-14.* of open_clip: missing transformer.resblocks.10"):
            load(file, **told)


@pytest.mark.slow
def test_open_clip_files_come_in_three_wrappings(open_clip_folder: Path, tmp_path: Path) -> None:
    tensors, own = open_clip_tensors(open_clip_folder), str(open_clip_folder / "architecture.json")
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "b.pt")
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, tmp_path / "c.pt")
    embeddings = [
        load(file, architecture=own).encode_images(pixels(), batch_size=2) for file in sorted(tmp_path.iterdir())
    ]
    assert len(embeddings) == 3
    assert torch.equal(embeddings[0], embeddings[1])
    assert torch.equal(embeddings[0], embeddings[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("visual.proj"), "missing visual.proj; unexpected none; of another shape none"),
        (lambda tensors: tensors.update(x=torch.zeros(1)), "missing none; unexpected x; of another shape none"),
        (
            lambda tensors: tensors.update({"ln_final.bias": torch.zeros(3)}),
            "unexpected none; of another shape ln_final.bias",
        ),
    ],
)
def test_open_clip_files_that_do_not_fit_are_refused(
    open_clip_folder: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    tensors = open_clip_tensors(open_clip_folder)
    change(tensors)
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "model.pt", architecture=str(open_clip_folder / "architecture.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "error", "message"),
    [
        ("ViT-X-14", ValueError, "unknown architecture 'ViT-X-14'; known are open_clip.list_models"),
        ("none.json", FileNotFoundError, "there is no architecture none.json"),
        ("ViT-B-16-SigLIP", ValueError, "is no plain CLIP .*custom_text"),
        ("roberta-ViT-B-32", ValueError, "is no plain CLIP .*hf_model_name"),
        ("convnext_base", ValueError, "is no plain CLIP .*timm_model_name"),
    ],
)
def test_architectures_of_other_kinds_are_refused(
    open_clip_folder: Path, architecture: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load(open_clip_folder / "HPS_v2.1_compressed.pt", architecture=architecture)
