"""All 23 published files fit, to the last name, shape and position: on the meta device, where they take no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from published_files import LISTS, meta_file

from align import checkpoints, load_generator
from align.tensor_files import TensorFile

GENERATORS = [name for name in LISTS if name.startswith(("c2i", "t2i", "var", "infinity_2b"))]
TOKENIZERS = [name for name in LISTS if name not in GENERATORS]
FAMILY = {"c2i": "llamagen", "t2i": "llamagen-t2i", "var": "var", "inf": "infinity"}
# tokens, layers, heads, million parameters
SIZES = {
    "c2i_B_256": (256, 12, 12, 110.9),
    "c2i_B_384": (576, 12, 12, 110.9),
    "c2i_L_256": (256, 24, 16, 342.9),
    "c2i_L_384": (576, 24, 16, 342.9),
    "c2i_XL_256": (256, 36, 20, 774.7),
    "c2i_XL_384": (576, 36, 20, 774.7),
    "c2i_XXL_256": (256, 48, 24, 1411.0),
    "c2i_XXL_384": (576, 48, 24, 1411.0),
    "c2i_3B_256": (256, 24, 32, 3096.7),
    "c2i_3B_384": (576, 24, 32, 3096.7),
    "t2i_XL_stage1_256": (256, 36, 20, 777.7),
    "t2i_XL_stage2_512": (1024, 36, 20, 777.7),
    "var_d16": (680, 16, 16, 310.3),
    "var_d20": (680, 20, 20, 600.9),
    "var_d24": (680, 24, 24, 1033.4),
    "var_d30": (680, 30, 30, 2010.0),
    "var_d36": (2240, 36, 36, 2353.9),
    "infinity_2b_reg": (10521 * 32, 32, 16, 2204.6),
}


@pytest.fixture(autouse=True)
def files_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path | str) -> TensorFile:
        return meta_file(Path(path).stem)

    monkeypatch.setattr(checkpoints, "read_tensors", read)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_published_generator_fits(name: str) -> None:
    generator: Any = load_generator(FAMILY[name[:3]], f"{name}.pt", device="meta")
    millions = sum(parameter.numel() for parameter in generator.parameters()) / 1e6
    found = (generator.layout.length, generator.sizes.num_layers, generator.sizes.num_heads, round(millions, 1))
    assert found == SIZES[name]
    assert generator.size_name == ("2B" if name == "infinity_2b_reg" else name.split("_")[1])
    # what would be written is the file again: names, order, shapes and dtypes
    written, file = generator.published_state(), meta_file(name)
    assert list(written) == list(file.tensors)
    for key, tensor in file.tensors.items():
        assert (written[key].shape, written[key].dtype) == (tensor.shape, tensor.dtype), key
    assert generator.file.wrapper == file.wrapper


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_published_tokenizer_fits(name: str) -> None:
    told: Any = {"patch_nums": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), "scales": ((1, 1), (16, 16))}
    tokenizer: Any = checkpoints.load_tokenizer(f"{name}.pt", **told)
    # but for a quantiser's constants, which follow from its size
    assert list(tokenizer.state_dict()) == [key for key in meta_file(name).tensors if not key.endswith("lfq.mask")]
    assert tokenizer.config.downsampling == (8 if name == "vq_ds8_c2i" else 16)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("c2i_L_384", lambda t: t.pop("layers.23.ffn_norm.weight"), "1 missing: layers.23.ffn_norm.weight"),
        (
            "var_d16",
            lambda t: t.update({"blocks.3.attn.k_bias": torch.empty(1024, device="meta")}),
            "1 unexpected: blocks.3.attn.k_bias",
        ),
        (
            "c2i_B_256",
            lambda t: t.update({"output.weight": torch.empty(8192, 768, device="meta")}),
            r"1 mis-shaped: output.weight is \[8192, 768\], should be \[16384, 768\]",
        ),
    ],
)
def test_a_file_that_does_not_fit_says_where(
    name: str, change: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = meta_file(name)
    change(file.tensors)
    monkeypatch.setattr(checkpoints, "read_tensors", lambda path: file)
    with pytest.raises(ValueError, match=f"does not fit a .*: {message}"):
        load_generator(FAMILY[name[:3]], f"{name}.pt")


def test_the_grid_comes_from_the_name_the_settings_or_the_keyword(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = meta_file("c2i_B_384").tensors
    for file, told, tokens in (
        (TensorFile(Path("c2i_B_384.pt"), tensors), {}, 576),
        (TensorFile(Path("c2i_B_384.pt"), tensors), {"grid": (16, 16)}, 256),
        (TensorFile(Path("mine.pt"), tensors), {"grid": (24, 24)}, 576),
        (TensorFile(Path("0300000.pt"), tensors, "model", {"args": {"image_size": 384, "downsample_size": 16}}), {}, 576),
        (TensorFile(Path("x.pt"), {**tensors, "freqs_cis": torch.empty(577, 32, 2, device="meta")}), {}, 576),
    ):  # fmt: skip
        monkeypatch.setattr(checkpoints, "read_tensors", lambda path, file=file: file)
        assert load_generator("llamagen", file.path, device="meta", **told).layout.length == tokens
    monkeypatch.setattr(checkpoints, "read_tensors", lambda path: TensorFile(Path("mine.pt"), tensors))
    with pytest.raises(ValueError, match=r"does not say its token grid; pass grid=\(16, 16\)"):
        load_generator("llamagen", "mine.pt")
    with pytest.raises(ValueError, match=r"grid=\(16, 16\) is 256 tokens, but the file's rotary table is of 576"):
        monkeypatch.setattr(checkpoints, "read_tensors", lambda path: file)
        load_generator("llamagen", "x.pt", grid=(16, 16))
