"""From a name or a file to a generator: the one door to published checkpoints and to the zoo."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.files import TensorFile, read_tensors, save_tensors
from align.generators import Generator, LlamaGen, LlamaGenConfig
from align.tokenizers import VQConfig, VQTokenizer

FAMILIES = ("llamagen",)
ZOO = Path(__file__).parent / "zoo"
# in some published files; recomputed from the grid, so its value is ignored but its presence is remembered
LLAMAGEN_EXTRAS = ("freqs_cis",)


def zoo_entries() -> dict[str, Path]:
    """Names and folders of the shipped generators."""
    return {folder.parent.name: folder.parent for folder in sorted(ZOO.glob("*/config.json"))}


def zoo_entry(name: str) -> Path:
    """Folder of a zoo entry, by name or by path (of one rebuilt by `align pretrain`).

    Raises:
        ValueError: neither a known name nor a folder with a config.json.
    """
    if name in (entries := zoo_entries()):
        return entries[name]
    if (Path(name) / "config.json").exists():
        return Path(name)
    raise ValueError(
        f"unknown zoo entry {name!r}; known: {', '.join(entries) or 'none'}, or the folder of one made by `align pretrain`. Try: align zoo"
    )


def load_generator(
    name: str,
    checkpoint: Path | str | None = None,
    tokenizer_checkpoint: Path | str | None = None,
    *,
    device: torch.device | str = "cpu",
    **config: Any,
) -> Generator:
    """Load a generator, in float32 and eval mode.

    Args:
        name: a zoo entry (`mnist-llamagen`), the folder of one, or a family (`llamagen`).
        checkpoint: generator weights in the published format; required for a family, and for a zoo entry the weights
            to use instead of the shipped ones (an aligned checkpoint).
        tokenizer_checkpoint: tokenizer weights; without them a family's generator handles tokens but no pixels.
        config: what shapes cannot tell: `grid=(rows, columns)`, `num_heads=`; `dropout=` for training.

    Raises:
        ValueError: unknown name, another family's file, or keys that do not fit (missing, unexpected, mis-shaped).
        FileNotFoundError: no file at the path.
    """
    if name in FAMILIES:
        if checkpoint is None:
            raise ValueError(
                f"the family {name!r} has no weights of its own; pass checkpoint=, or a zoo entry: {', '.join(zoo_entries())}"
            )
    elif name in zoo_entries() or (Path(name) / "config.json").exists():
        folder = zoo_entry(name)
        entry = json.loads((folder / "config.json").read_text())
        checkpoint = checkpoint or folder / entry["generator"]
        tokenizer_checkpoint = tokenizer_checkpoint or folder / entry["tokenizer"]
        config = {**entry["config"], **config}
    else:
        raise ValueError(
            f"unknown generator {name!r}; known zoo entries: {', '.join(zoo_entries()) or 'none'}; families: {', '.join(FAMILIES)}. Try: align zoo"
        )
    tokenizer = load_tokenizer(tokenizer_checkpoint) if tokenizer_checkpoint is not None else None
    return _load_llamagen(read_tensors(Path(checkpoint)), tokenizer, config).to(device).eval()


def load_tokenizer(path: Path | str) -> VQTokenizer:
    """Load a VQ tokenizer in float32 from the published format.

    Raises:
        ValueError: not a tokenizer, or keys that do not fit.
    """
    file = read_tensors(Path(path))
    try:
        tokenizer = VQTokenizer(VQConfig.infer(file.tensors))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # statistics, which some exports leave out
    optional = {"quantize.codebook_used"}
    _fill(tokenizer, file, optional=optional)
    return tokenizer.eval()


def save_tokenizer(tokenizer: VQTokenizer, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a tokenizer in the published format."""
    save_tensors(path, {name: tensor.to(dtype) for name, tensor in tokenizer.state_dict().items()}, "model")


def _load_llamagen(file: TensorFile, tokenizer: VQTokenizer | None, config: Mapping[str, Any]) -> LlamaGen:
    try:
        sizes = LlamaGenConfig.infer(file.tensors, **config)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    except TypeError as error:
        raise ValueError(f"a LlamaGen takes grid=, num_heads= and dropout=; got {sorted(config)}") from error
    if tokenizer is not None and tokenizer.config.codebook_size != sizes.vocab_size:
        raise ValueError(
            f"{file.path} speaks {sizes.vocab_size} tokens and its tokenizer has {tokenizer.config.codebook_size} codes; they were not trained together"
        )
    with torch.device("meta"):
        generator = LlamaGen(sizes)
    generator.to_empty(device="cpu")
    generator.__dict__["tokenizer"] = tokenizer.requires_grad_(False) if tokenizer else None
    extras = {name: file.tensors[name].clone() for name in LLAMAGEN_EXTRAS if name in file.tensors}
    _fill(generator, file, ignored=set(extras))
    generator.published_wrapper = file.wrapper
    generator.published_dtypes = {name: tensor.dtype for name, tensor in file.tensors.items()}
    generator.published_extras = extras
    return generator


def _fill(
    module: nn.Module, file: TensorFile, *, optional: Collection[str] = (), ignored: Collection[str] = ()
) -> None:
    """Copy tensors into a module of the same names and shapes, whatever their dtype."""
    state = module.state_dict()
    problems = key_report(state, {k: v for k, v in file.tensors.items() if k not in ignored}, optional)
    if problems:
        raise ValueError(f"{file.path} does not fit a {type(module).__name__}: {problems}")
    module.load_state_dict({name: file.tensors.get(name, tensor).to(tensor.dtype) for name, tensor in state.items()})


def key_report(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], optional: Collection[str]) -> str:
    """What is missing, unexpected or mis-shaped, in words; empty if all fits."""
    lists = {
        "missing": [name for name in expected if name not in found and name not in optional],
        "unexpected": [name for name in found if name not in expected],
        "mis-shaped": [
            f"{name} is {list(found[name].shape)}, should be {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ],
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for kind, names in lists.items()
        if names
    )
