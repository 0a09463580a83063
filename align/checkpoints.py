"""From a name or a file to a generator: the one door to published checkpoints and to the zoo."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from align.generators import (
    BETA_PREFIX,
    VAR,
    Generator,
    Infinity,
    InfinityConfig,
    Janus,
    JanusConfig,
    LlamaGen,
    LlamaGenConfig,
    LlamaGenT2I,
    PublishedGenerator,
    VARConfig,
    janus_keys,
)
from align.generators.captions import CaptionConditional, TextEncoder, attach_text_encoder
from align.generators.janus_config import read_settings
from align.generators.janus_prompts import PromptTokenizer
from align.generators.published import describe
from align.shapes import shapes_only
from align.tensor_files import TensorFile, read_tensors, save_tensors
from align.text import T5TextEncoder
from align.tokenizers import (
    SIGNS,
    BSQConfig,
    BSQTokenizer,
    MultiscaleVQConfig,
    MultiscaleVQTokenizer,
    VQConfig,
    VQTokenizer,
)
from align.tokenizers.bsq import PARTS as BSQ_PARTS
from align.zoo_entries import zoo_entries, zoo_entry

Tokenizer = VQTokenizer | MultiscaleVQTokenizer | BSQTokenizer
Sizes = LlamaGenConfig | VARConfig | InfinityConfig | JanusConfig


@dataclass(frozen=True)
class _Family:
    """How the files of a family become a generator."""

    generator: type[PublishedGenerator[Any]]
    sizes: type[Sizes]
    tokenizer: type[Tokenizer]
    signs: tuple[str, ...]  # tensors one of which the family's files have, and no others
    keywords: str  # what shapes cannot tell, and dropouts
    # in some published files; recomputed, so the value is ignored but written back
    extras: tuple[str, ...] = ()


_LLAMAGEN = "grid=, num_heads= and dropout="
_FAMILIES = {
    "llamagen": _Family(
        LlamaGen, LlamaGenConfig, VQTokenizer, ("cls_embedding.embedding_table.weight",), _LLAMAGEN, ("freqs_cis",)
    ),
    "llamagen-t2i": _Family(
        LlamaGenT2I, LlamaGenConfig, VQTokenizer, ("cls_embedding.uncond_embedding",), _LLAMAGEN, ("freqs_cis",)
    ),
    "var": _Family(
        VAR, VARConfig, MultiscaleVQTokenizer, ("pos_1LC",), "patch_nums=, num_heads=, dropout= and drop_path="
    ),
    "infinity": _Family(
        Infinity,
        InfinityConfig,
        BSQTokenizer,
        ("text_proj_for_sos.ca.mat_q",),
        "image_size= (or schedule= and num_scales=), dropout= and drop_path=",
        ("lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen"),
    ),
    "janus": _Family(
        Janus,
        JanusConfig,
        VQTokenizer,
        tuple(janus_keys.SIGNS.values()),
        "grid=, num_heads=, pad_id= and dropout=",
    ),
}
FAMILIES = tuple(_FAMILIES)
# the published names of LlamaGen's generators, which end in the image size; the tokenizer makes 16 pixels one token
_LLAMAGEN_NAME = re.compile(r"(c2i_(B|L|XL|XXL|3B)|t2i_XL_stage[12])_(256|384|512)")
_PIXELS_PER_TOKEN = 16
_INFINITY_NAMES = {"infinity_2b_reg": 1024}


def load_generator(
    name: str,
    checkpoint: Path | str | None = None,
    tokenizer_checkpoint: Path | str | None = None,
    *,
    text_encoder: TextEncoder | Path | str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    **config: Any,
) -> Generator:
    """Load a generator, in eval mode.

    Weights stay mapped to their file until they are changed or converted, and take no memory before they are used.

    Args:
        name: a zoo entry (`mnist-llamagen`, `mnist-var`), the folder of one, or a family (`llamagen`, `llamagen-t2i`,
            `var`, `infinity`, `janus`).
        checkpoint: generator weights in the published format, a file or a folder; required for a family, and for a zoo
            entry the weights to use instead of the shipped ones (an aligned checkpoint).
        tokenizer_checkpoint: tokenizer weights, which a Janus holds itself; without them a LlamaGen handles tokens but no
            pixels, and a VAR or an Infinity can only be saved again (they read tokens through their tokenizers).
        text_encoder: of a generator that reads captions by one (`llamagen-t2i`, `infinity`): a folder with T5, one with the
            features that `align data captions` made, or an object with `encode`, as T5TextEncoder has it.
        dtype: of the weights; None is the file's own, or float32 where it has several. Train in float32: in bfloat16
            small updates round away. The tokenizer is always in float32.
        config: what a file may not tell: `grid=(rows, columns)` of a LlamaGen, `patch_nums=(1, 2, ...)` of a VAR,
            `num_heads=`, `image_size=1024` of an Infinity, `pad_id=` of a Janus without its folder; `dropout=` for training,
            and `drop_path=` of VAR and Infinity.

    Raises:
        ValueError: unknown name, another family's file, or keys that do not fit (missing, unexpected, mis-shaped).
        FileNotFoundError: no file at the path, or no text encoder.
    """
    reads = None  # a zoo entry's own text encoder
    if name in FAMILIES:
        family = name
        if checkpoint is None:
            raise ValueError(
                f"the family {name!r} has no weights of its own; pass checkpoint=, or a zoo entry: {', '.join(zoo_entries())}"
            )
    elif name in zoo_entries() or (Path(name) / "config.json").exists():
        folder = zoo_entry(name)
        entry = json.loads((folder / "config.json").read_text())
        if "family" not in entry:
            raise ValueError(
                f"{folder} is no zoo entry: its config.json names no family. For published weights name the family, and "
                f"the folder as checkpoint: load_generator('janus', {str(folder)!r})"
            )
        family = entry["family"]
        checkpoint = checkpoint or folder / entry["generator"]
        tokenizer_checkpoint = tokenizer_checkpoint or folder / entry["tokenizer"]
        config = {**entry["config"], **config}
        reads = entry.get("text_encoder")
    else:
        raise ValueError(
            f"unknown generator {name!r}; known zoo entries: {', '.join(zoo_entries()) or 'none'}; families: {', '.join(FAMILIES)}. Try: align zoo"
        )
    generator = _load(family, read_tensors(Path(checkpoint)), tokenizer_checkpoint, dtype, config)
    if text_encoder is None and reads is not None and isinstance(generator, CaptionConditional):
        # pretrained together with the generator: in float32, on captions as they are
        width, own = generator.caption_shape[0], zoo_entry(name) / reads
        text_encoder = T5TextEncoder(own, max_length=width, clean=False, device=device, dtype=torch.float32)
    if text_encoder is not None:
        attach_text_encoder(generator, text_encoder, device)
    return generator.to(device).eval()


def load_tokenizer(
    path: Path | str, *, patch_nums: Sequence[int] | None = None, scales: Sequence[Sequence[int]] | None = None
) -> Tokenizer:
    """Load a tokenizer, LlamaGen's, VAR's or Infinity's, in float32 from the published format.

    Args:
        patch_nums: the scales of a VAR tokenizer, whose file does not tell them.
        scales: the same of an Infinity tokenizer, (height, width) each.

    Raises:
        ValueError: not a tokenizer, or keys that do not fit.
    """
    return _make_tokenizer(read_tensors(Path(path)), patch_nums=patch_nums, scales=scales)


def _make_tokenizer(
    file: TensorFile, *, patch_nums: Sequence[int] | None = None, scales: Sequence[Sequence[int]] | None = None
) -> Tokenizer:
    family = family_of(file)
    if family == "janus":  # holds its tokenizer
        file = replace(file, tensors=janus_keys.tokenizer_tensors(file.tensors))
    elif family is not None:
        raise ValueError(f"{file.path} is no tokenizer but a {family} generator: pass it as checkpoint")
    tokenizer: Tokenizer
    try:
        with shapes_only():
            if SIGNS["bsq"] in file.tensors:
                tokenizer = BSQTokenizer(BSQConfig.infer(file.tensors, scales=scales))
            elif SIGNS["multiscale-vq"] in file.tensors:
                tokenizer = MultiscaleVQTokenizer(MultiscaleVQConfig.infer(file.tensors, patch_nums=patch_nums))
            else:
                tokenizer = VQTokenizer(VQConfig.infer(file.tensors))
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    # usage statistics: some exports leave them out, and VAR's are of the scales that the tokenizer was trained with
    statistics = {"quantize.codebook_used", "quantize.ema_vocab_hit_SV"}
    state = tokenizer.state_dict()
    foreign = {n for n in statistics if n in state and n in file.tensors and file.tensors[n].shape != state[n].shape}
    if isinstance(tokenizer, BSQTokenizer):
        foreign = {name for name in file.tensors if not name.startswith(BSQ_PARTS)}
    fill(tokenizer, file, torch.float32, optional=statistics, ignored=foreign)
    return tokenizer.eval()


def save_tokenizer(tokenizer: Tokenizer, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a tokenizer in the published format."""
    wrapper = {VQTokenizer: "model", BSQTokenizer: "vae"}.get(type(tokenizer))
    save_tensors(path, {name: tensor.to(dtype) for name, tensor in tokenizer.state_dict().items()}, wrapper)


def family_of(file: TensorFile) -> str | None:
    """The family whose generator a file holds."""
    return next((name for name, family in _FAMILIES.items() if not file.tensors.keys().isdisjoint(family.signs)), None)


def foreign_names(family: str, file: TensorFile) -> Collection[str]:
    """Tensors in a generator's file that the generator does without, and that are written back as they were."""
    return janus_keys.others(file.tensors) if family == "janus" else _FAMILIES[family].extras


def folder_of(file: TensorFile) -> Path:
    """Where the settings and text tokenizer of weights in the manner of Hugging Face are."""
    return file.path if file.path.is_dir() else file.path.parent


def infer_sizes(family: str, file: TensorFile, config: Mapping[str, Any]) -> Sizes:
    """A generator's sizes as its file tells them, or its settings, or its published name.

    Raises:
        ValueError: another family's file, or what is needed and not told.
    """
    kind = _FAMILIES[family]
    if family_of(file) != family:
        raise ValueError(f"{file.path}: this is not a {kind.generator.__name__} generator; {describe(file.tensors)}")
    settings = dict(config)
    if kind.sizes is JanusConfig:
        settings["settings"] = read_settings(folder_of(file))
    if kind.sizes is LlamaGenConfig and settings.get("grid") is None and "freqs_cis" not in file.tensors:
        settings["grid"] = told_grid(file)
    if kind.sizes is InfinityConfig and settings.get("image_size") is None and settings.get("schedule") is None:
        settings["image_size"] = told_image_size(file)
    try:
        return kind.sizes.infer(file.tensors, **settings)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    except TypeError as error:
        raise ValueError(f"a {kind.generator.__name__} takes {kind.keywords}; got {sorted(config)}") from error


def told_grid(file: TensorFile) -> tuple[int, int] | None:
    """The token grid of a LlamaGen file, from the settings of the training that wrote it or from its published name."""
    arguments = file.arguments
    if "image_size" in arguments:
        side = int(arguments["image_size"]) // int(arguments.get("downsample_size", _PIXELS_PER_TOKEN))
        return side, side
    published = _LLAMAGEN_NAME.fullmatch(file.path.stem)
    return None if published is None else (int(published[3]) // _PIXELS_PER_TOKEN,) * 2


def told_image_size(file: TensorFile) -> int | None:
    """The side in pixels that an Infinity was trained for, from its published name."""
    return _INFINITY_NAMES.get(file.path.stem)


def empty_generator(family: str, sizes: Sizes) -> PublishedGenerator[Any]:
    """A generator on the meta device: names and shapes, no numbers."""
    with shapes_only():
        return _FAMILIES[family].generator(sizes)


def expected_tensors(family: str, sizes: Sizes) -> dict[str, Tensor]:
    """What a generator's file must hold, on the meta device."""
    if isinstance(sizes, JanusConfig):  # told without transformers, whose import takes seconds
        return {name: torch.empty(shape, device="meta") for name, shape in sizes.shapes().items()}
    return empty_generator(family, sizes).published_state()


def _load(
    name: str,
    file: TensorFile,
    tokenizer_checkpoint: Path | str | None,
    dtype: torch.dtype | None,
    config: Mapping[str, Any],
) -> PublishedGenerator[Any]:
    family, sizes = _FAMILIES[name], infer_sizes(name, file, config)
    tokenizer = None
    if tokenizer_checkpoint is not None:
        told = {name: getattr(sizes, name, None) for name in ("patch_nums", "scales")}
        tokenizer = load_tokenizer(tokenizer_checkpoint, **told)
        _check_together(family, file, sizes, tokenizer)
    elif isinstance(sizes, JanusConfig) and janus_keys.tokenizer_tensors(file.tensors):
        tokenizer = _make_tokenizer(file)
        _check_together(family, file, sizes, tokenizer)
    generator = empty_generator(name, sizes)
    if any(key.startswith(BETA_PREFIX) for key in file.tensors):
        generator.add_beta_embedding(sampling_beta=1.0)  # the file's own value is filled in below
    generator.attach(tokenizer)
    if isinstance(generator, Janus) and (folder_of(file) / "tokenizer.json").exists():
        generator.attach_prompts(PromptTokenizer.load(folder_of(file)))
    foreign = foreign_names(name, file)
    fill(generator, file, dtype or own_dtype(file, foreign), ignored=foreign, name_of=generator.published_name)
    generator.file = file
    return generator


def _check_together(family: _Family, file: TensorFile, sizes: Sizes, tokenizer: Tokenizer) -> None:
    if not isinstance(tokenizer, family.tokenizer):
        raise ValueError(
            f"a {family.generator.__name__} takes a {family.tokenizer.__name__}; got a {type(tokenizer).__name__}"
        )
    if tokenizer.config.codebook_size != sizes.vocab_size:
        raise ValueError(
            f"{file.path} speaks {sizes.vocab_size} tokens and its tokenizer has {tokenizer.config.codebook_size} codes; they were not trained together, pass the one that it was trained with"
        )
    if isinstance(sizes, VARConfig | InfinityConfig) and tokenizer.config.codebook_dim != sizes.codebook_dim:
        raise ValueError(
            f"{file.path} reads codes of {sizes.codebook_dim} numbers and its tokenizer's have {tokenizer.config.codebook_dim}; they were not trained together, pass the one that it was trained with"
        )


def own_dtype(file: TensorFile, ignored: Collection[str] = ()) -> torch.dtype:
    """The one floating-point dtype of a file's tensors, float32 if they have several."""
    found = {t.dtype for name, t in file.tensors.items() if t.is_floating_point() and name not in ignored}
    return found.pop() if len(found) == 1 else torch.float32


def fill(
    module: nn.Module,
    file: TensorFile,
    dtype: torch.dtype,
    *,
    optional: Collection[str] = (),
    ignored: Collection[str] = (),
    name_of: Callable[[str], str] = str,
) -> None:
    """Give a module on the meta device a file's tensors of the same names and shapes, uncopied where dtypes agree.

    Args:
        dtype: that floating-point tensors are wanted in.
        optional: may be missing, and are then zeros.
        ignored: names in the file that are none of the module's.
        name_of: the file's name for a tensor of the module.

    Raises:
        ValueError: what is missing, unexpected or mis-shaped.
    """
    state = {name_of(name): tensor for name, tensor in module.state_dict().items()}
    taken = {name: tensor for name, tensor in file.tensors.items() if name not in ignored}
    problems = key_report(state, taken, optional)
    if problems:
        raise ValueError(f"{file.path} does not fit a {type(module).__name__}: {problems}")
    values = {}
    for name, expected in state.items():
        wanted = dtype if expected.is_floating_point() else expected.dtype
        if name in taken:
            values[name] = taken[name].to(wanted).contiguous()
        else:
            values[name] = torch.zeros(expected.shape, dtype=wanted)
    module.load_state_dict({name: values[name_of(name)] for name in module.state_dict()}, assign=True)


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
