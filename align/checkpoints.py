"""From a name or a file to a generator: the one door to published checkpoints and to the zoo."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.files import TensorFile, read_tensors, save_tensors
from align.generators import BETA_PREFIX, VAR, Generator, LlamaGen, LlamaGenConfig, VARConfig
from align.tokenizers import MultiscaleVQConfig, MultiscaleVQTokenizer, VQConfig, VQTokenizer

Tokenizer = VQTokenizer | MultiscaleVQTokenizer


@dataclass(frozen=True)
class _Family:
    """How the files of a family become a generator."""

    generator: type[LlamaGen] | type[VAR]
    sizes: type[LlamaGenConfig] | type[VARConfig]
    tokenizer: type[Tokenizer]
    keywords: str  # what shapes cannot tell, and dropouts
    # in some published files; recomputed, so the value is ignored but the presence is remembered
    extras: tuple[str, ...] = ()


_FAMILIES = {
    "llamagen": _Family(LlamaGen, LlamaGenConfig, VQTokenizer, "grid=, num_heads= and dropout=", ("freqs_cis",)),
    "var": _Family(VAR, VARConfig, MultiscaleVQTokenizer, "patch_nums=, num_heads=, dropout= and drop_path="),
}
FAMILIES = tuple(_FAMILIES)
ZOO = Path(__file__).parent / "zoo"


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
        name: a zoo entry (`mnist-llamagen`, `mnist-var`), the folder of one, or a family (`llamagen`, `var`).
        checkpoint: generator weights in the published format; required for a family, and for a zoo entry the weights
            to use instead of the shipped ones (an aligned checkpoint).
        tokenizer_checkpoint: tokenizer weights; without them a LlamaGen handles tokens but no pixels, and a VAR can only
            be saved again (it reads tokens through its tokenizer).
        config: what a file may not tell: `grid=(rows, columns)` of a LlamaGen, `patch_nums=(1, 2, ...)` of a VAR,
            `num_heads=`; `dropout=` for training, and a VAR's `drop_path=`.

    Raises:
        ValueError: unknown name, another family's file, or keys that do not fit (missing, unexpected, mis-shaped).
        FileNotFoundError: no file at the path.
    """
    if name in FAMILIES:
        family = name
        if checkpoint is None:
            raise ValueError(
                f"the family {name!r} has no weights of its own; pass checkpoint=, or a zoo entry: {', '.join(zoo_entries())}"
            )
    elif name in zoo_entries() or (Path(name) / "config.json").exists():
        folder = zoo_entry(name)
        entry = json.loads((folder / "config.json").read_text())
        family = entry["family"]
        checkpoint = checkpoint or folder / entry["generator"]
        tokenizer_checkpoint = tokenizer_checkpoint or folder / entry["tokenizer"]
        config = {**entry["config"], **config}
    else:
        raise ValueError(
            f"unknown generator {name!r}; known zoo entries: {', '.join(zoo_entries()) or 'none'}; families: {', '.join(FAMILIES)}. Try: align zoo"
        )
    return _load(_FAMILIES[family], read_tensors(Path(checkpoint)), tokenizer_checkpoint, config).to(device).eval()


def load_tokenizer(path: Path | str, *, patch_nums: Sequence[int] | None = None) -> Tokenizer:
    """Load a tokenizer, LlamaGen's or VAR's, in float32 from the published format.

    Args:
        patch_nums: the scales of a VAR tokenizer, whose file does not tell them.

    Raises:
        ValueError: not a tokenizer, or keys that do not fit.
    """
    file = read_tensors(Path(path))
    tokenizer: Tokenizer
    try:
        if "encoder.down.0.block.0.conv1.weight" in file.tensors:
            tokenizer = MultiscaleVQTokenizer(MultiscaleVQConfig.infer(file.tensors, patch_nums=patch_nums))
        else:
            tokenizer = VQTokenizer(VQConfig.infer(file.tensors))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # usage statistics: some exports leave them out, and VAR's are of the scales that the tokenizer was trained with
    statistics = {"quantize.codebook_used", "quantize.ema_vocab_hit_SV"}
    state = tokenizer.state_dict()
    foreign = {n for n in statistics if n in state and n in file.tensors and file.tensors[n].shape != state[n].shape}
    _fill(tokenizer, file, optional=statistics, ignored=foreign)
    return tokenizer.eval()


def save_tokenizer(tokenizer: Tokenizer, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a tokenizer in the published format."""
    wrapper = "model" if isinstance(tokenizer, VQTokenizer) else None
    save_tensors(path, {name: tensor.to(dtype) for name, tensor in tokenizer.state_dict().items()}, wrapper)


def _load(
    family: _Family, file: TensorFile, tokenizer_checkpoint: Path | str | None, config: Mapping[str, Any]
) -> LlamaGen | VAR:
    try:
        sizes = family.sizes.infer(file.tensors, **config)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    except TypeError as error:
        raise ValueError(f"a {family.generator.__name__} takes {family.keywords}; got {sorted(config)}") from error
    tokenizer = None
    if tokenizer_checkpoint is not None:
        tokenizer = load_tokenizer(tokenizer_checkpoint, patch_nums=getattr(sizes, "patch_nums", None))
        _check_together(family, file, sizes, tokenizer)
    with torch.device("meta"):
        generator = family.generator(sizes)  # type: ignore[arg-type]
    generator.to_empty(device="cpu")
    if any(name.startswith(BETA_PREFIX) for name in file.tensors):
        generator.add_beta_embedding(sampling_beta=1.0)  # the file's own value is filled in below
    generator.attach(tokenizer)  # type: ignore[arg-type]
    extras = {name: file.tensors[name].clone() for name in family.extras if name in file.tensors}
    _fill(generator, file, ignored=set(extras))
    generator.published_wrapper = file.wrapper
    generator.published_dtypes = {name: tensor.dtype for name, tensor in file.tensors.items()}
    generator.published_extras = extras
    return generator


def _check_together(family: _Family, file: TensorFile, sizes: LlamaGenConfig | VARConfig, tokenizer: Tokenizer) -> None:
    if not isinstance(tokenizer, family.tokenizer):
        raise ValueError(
            f"a {family.generator.__name__} takes a {family.tokenizer.__name__}; got a {type(tokenizer).__name__}"
        )
    if tokenizer.config.codebook_size != sizes.vocab_size:
        raise ValueError(
            f"{file.path} speaks {sizes.vocab_size} tokens and its tokenizer has {tokenizer.config.codebook_size} codes; they were not trained together"
        )
    if isinstance(sizes, VARConfig) and tokenizer.config.codebook_dim != sizes.codebook_dim:
        raise ValueError(
            f"{file.path} reads codes of {sizes.codebook_dim} numbers and its tokenizer's have {tokenizer.config.codebook_dim}; they were not trained together"
        )


def _fill(
    module: nn.Module, file: TensorFile, *, optional: Collection[str] = (), ignored: Collection[str] = ()
) -> None:
    """Copy tensors into a module of the same names and shapes, whatever their dtype."""
    state = module.state_dict()
    taken = {name: tensor for name, tensor in file.tensors.items() if name not in ignored}
    problems = key_report(state, taken, optional)
    if problems:
        raise ValueError(f"{file.path} does not fit a {type(module).__name__}: {problems}")
    module.load_state_dict({name: taken.get(name, tensor).to(tensor.dtype) for name, tensor in state.items()})


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
