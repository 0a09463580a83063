"""What lies beside Janus's weights is read, and what does not fit is refused by its name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import janus_files
import pytest
import torch
from conftest import tiny_janus
from janus_files import BOI, BOS, LAYOUTS, PAD, load_janus, save_janus
from safetensors.torch import save_file

from align import checkpoints, load_generator, sample
from align.checkpoints import load_tokenizer
from align.generators import Janus
from align.inspection import inspect
from align.tensor_files import read_tensors
from align.training.adapters import add_adapters, merge_adapters


def test_without_its_folder_it_says_what_is_missing(tmp_path: Path) -> None:
    folder = save_janus(tmp_path / "in")
    for name in ("tokenizer.json", "generation_config.json"):
        (folder / name).unlink()
    generator = load_janus(folder)
    with pytest.raises(ValueError, match=r"without a text tokenizer: there is no tokenizer\.json beside its weights"):
        generator.encode_condition(["a red cube"])
    condition = generator.encode_condition({"ids": torch.tensor([[BOS, 9, BOI]]), "mask": torch.ones(1, 3)})
    with pytest.raises(ValueError, match=r"neither tokenizer\.json nor generation_config\.json .* pass pad_id="):
        generator.null_condition(condition)
    (folder / "config.json").unlink()
    with pytest.raises(
        ValueError, match="no published Janus is 16 wide, and shapes do not tell the heads; pass num_heads="
    ):
        load_janus(folder)
    load_janus(folder, num_heads=2, pad_id=PAD).null_condition(condition)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{", r"the text tokenizer in .* cannot be read \(.*\); download it again"),
        ("tokenizer_config.json", "{", r"the text tokenizer in .* cannot be read \(.*\); download it again"),
        ("config.json", "{", r"config\.json is not JSON \(.*\); download it again"),
        (
            "tokenizer.json",
            json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}),
            "it is not Janus-Pro's",
        ),
    ],
)
def test_damaged_files_beside_it_are_named(name: str, content: str, message: str, tmp_path: Path) -> None:
    folder = save_janus(tmp_path / "in")
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_janus(folder)


def test_the_settings_beside_it_are_read(tmp_path: Path) -> None:
    folder = save_janus(tmp_path / "in")
    settings = {**janus_files.LANGUAGE, "num_attention_heads": 1, "rope_theta": 100.0, "max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps({"text_config": settings}))
    (folder / "generation_config.json").write_text(json.dumps({"pad_token_id": 9}))
    with pytest.raises(ValueError, match="num_heads=1 does not divide the model's width of 16, or its keys' of 8"):
        load_janus(folder)
    (folder / "config.json").write_text(json.dumps({"text_config": {**settings, "num_attention_heads": 2}}))
    changed, usual = load_janus(folder), tiny_janus()
    assert (changed.pad_id, changed.sizes.max_prompt_tokens) == (9, 56)
    condition, tokens = usual.encode_condition(["a"]), torch.zeros(1, 9, dtype=torch.long)
    with torch.no_grad():
        assert not torch.allclose(changed(tokens, condition), usual(tokens, condition))


# --- what fits, and what does not


def test_the_tokenizer_inside_can_be_loaded_alone_or_replaced(tmp_path: Path) -> None:
    folder = save_janus(tmp_path / "in", "original")
    generator, alone = load_janus(folder), load_tokenizer(folder)
    assert generator.tokenizer is not None
    torch.testing.assert_close(alone.state_dict(), generator.tokenizer.state_dict(), atol=0, rtol=0)
    with torch.no_grad():
        alone.quantize.embedding.weight.neg_()  # type: ignore[union-attr]
    checkpoints.save_tokenizer(alone, tmp_path / "other.pt")
    replaced = load_generator("janus", folder, tmp_path / "other.pt")
    assert isinstance(replaced, Janus)
    assert replaced.tokenizer is not None
    torch.testing.assert_close(replaced.tokenizer.state_dict(), alone.state_dict(), atol=0, rtol=0)


def test_without_an_image_tokenizer_it_handles_tokens_only(tmp_path: Path) -> None:
    folder = save_janus(tmp_path / "in")
    file = read_tensors(folder)
    (folder / "model.safetensors").unlink()
    rest = {name: tensor for name, tensor in file.tensors.items() if "vqmodel" not in name}
    save_file(rest, folder / "model.safetensors")
    generator = load_janus(folder)
    tokens = sample(generator, generator.encode_condition(["a"])).tokens_BL
    with pytest.raises(ValueError, match="loaded without a tokenizer; pass tokenizer_checkpoint="):
        generator.decode(tokens)
    assert any("no image tokenizer inside" in remark for remark in inspect(folder).odd)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_that_do_not_fit_are_refused_by_their_own_names(layout: str, tmp_path: Path) -> None:
    folder = save_janus(tmp_path / "in", layout)
    weights = dict(read_tensors(folder).tensors)
    names = {
        "converted": (
            "model.generation_aligner.hidden_layers.0.bias",
            "model.language_model.layers.1.mlp.up_proj.weight",
        ),
        "original": ("gen_aligner.layers.2.bias", "language_model.model.layers.1.mlp.up_proj.weight"),
    }[layout]
    del weights[names[0]]
    weights[names[1]] = torch.zeros(31, 16)
    torch.save(weights, tmp_path / "wrong.bin")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    message = rf"1 missing: {names[0]}; 1 mis-shaped: {names[1]} is \[31, 16\], should be \[32, 16\]"
    with pytest.raises(ValueError, match=f"does not fit a Janus: {message}"):
        load_janus(tmp_path / "wrong.bin")
    assert message.replace("\\", "") in inspect(tmp_path / "wrong.bin").problems[0]


def test_a_folder_given_as_a_name_is_explained(tmp_path: Path) -> None:
    folder = save_janus(tmp_path / "in")
    with pytest.raises(
        ValueError, match=r"names no family\. For published weights .*: load_generator\('janus', '.*/in'\)"
    ):
        load_generator(str(folder))


def test_patches_that_make_no_square_need_a_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "model.vision_model.embeddings.position_embedding.weight"
    monkeypatch.setitem(janus_files.OTHERS["converted"], name, (6, 8))
    folder = save_janus(tmp_path / "in")
    with pytest.raises(ValueError, match=r"cut into 6 patches, which make no square; pass grid=\(rows, columns\)"):
        load_janus(folder)
    assert load_janus(folder, grid=(3, 2)).image_size == (12, 8)


def test_adapters_merge_into_what_is_exported(tmp_path: Path) -> None:
    generator = load_janus(save_janus(tmp_path / "in", "original"))
    condition, tokens = (
        generator.encode_condition(["a red cube", "two balls on a table", ""]),
        torch.zeros(3, 9, dtype=torch.long),
    )
    add_adapters(generator, rank=2, alpha=4, seed=0)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            parameter += 0.1 * ("lora_B" in name)
        adapted = generator(tokens, condition)
    merge_adapters(generator)
    generator.save_published(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(load_janus(tmp_path / "out")(tokens, condition), adapted, atol=1e-5, rtol=0)
        assert not torch.allclose(load_janus(tmp_path / "in")(tokens, condition), adapted, atol=1e-2)


def test_another_familys_file_is_named(tmp_path: Path) -> None:
    save_file({"pos_1LC": torch.zeros(1, 2, 3)}, tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError, match="this is not a Janus generator; it looks like a VAR generator: load it as var"
    ):
        load_janus(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="this is not a LlamaGen generator; it looks like Janus: load it as janus"):
        load_generator("llamagen", save_janus(tmp_path / "in", "original"))
    with pytest.raises(ValueError, match="a Janus takes grid=, num_heads=, pad_id= and dropout=; got"):
        load_janus(tmp_path / "in", patch_nums=(1, 2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inspection_needs_no_transformers(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_janus(tmp_path / "in", layout, shards=2, dtype=torch.bfloat16)
    monkeypatch.setitem(sys.modules, "transformers", None)
    found = inspect(folder)
    assert (found.kind, found.size_name, found.tokens, found.codes) == ("janus", None, "9 (3x3)", 16)
    assert found.form == "a folder of 2 weight files"
    assert dict(found.dtypes) == {"bfloat16": len(read_tensors(folder).tensors)}
    assert (found.problems, found.odd) == ([], [])
    assert found.beside[0] == "179 tensors of its image tokenizer"
