"""What a checkpoint file is, told in seconds whatever its size: from names, shapes and a few values of each tensor."""

from __future__ import annotations

import ctypes
import mmap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.checkpoints import (
    FAMILIES,
    expected_tensors,
    family_of,
    folder_of,
    foreign_names,
    infer_sizes,
    key_report,
    told_grid,
    told_image_size,
)
from align.fingerprints import digest_of, files_of
from align.generators import InfinityConfig
from align.generators.janus_keys import tokenizer_tensors
from align.generators.llamagen_config import PUBLISHED as LLAMAGEN_SIZES
from align.shapes import shapes_only
from align.tensor_files import TensorFile, read_tensors
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
from align.tokenizers.multiscale_vq import SCALES_256

RUNS, RUN_LENGTH = 8, 512  # of a large tensor so many runs of so many values are looked at, from its first to its last


@dataclass(frozen=True)
class Inspection:
    """Facts about a checkpoint.

    kind: a generator's family, `vq`, `multiscale-vq` or `bsq` for a tokenizer, None where it is neither.
    size_name: the published size (XL, d16).
    tokens: in an image, in words; codes: of the codebook.
    digest: ("sha256", ...) of the whole file, or ("fingerprint", ...) of its parts' names, sizes and checksums.
    beside: what else the file holds.
    problems: why it cannot be loaded; odd: what can be loaded, and should be known.
    """

    path: Path
    bytes: int
    form: str
    kind: str | None
    size_name: str | None
    parameters: int
    dtypes: Mapping[str, int]
    tokens: str | None
    codes: int | None
    image_size: int | None
    digest: tuple[str, str]
    beside: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


def inspect(path: Path | str, *, digest: Callable[[], tuple[str, str]] | None = None) -> Inspection:
    """Look at a checkpoint.

    Args:
        digest: gives the path's `digest_of`, if that is being made already.

    Raises:
        FileNotFoundError, ValueError: no such file, or no checkpoint at all (cut short, code in it).
    """
    file = read_tensors(Path(path))
    found = _describe(file)
    return Inspection(
        path=file.path,
        bytes=sum(part.stat().st_size for part in files_of(file.path)),
        form=_form(file),
        parameters=sum(tensor.numel() for tensor in file.tensors.values() if tensor.is_floating_point()),
        dtypes=Counter(str(tensor.dtype).removeprefix("torch.") for tensor in file.tensors.values()),
        digest=digest() if digest else digest_of(file.path),
        beside=_beside(file),
        odd=[*found.pop("odd"), *_odd_values(file.tensors)],
        **found,
    )


def identify(path: Path | str) -> dict[str, Any]:
    """A file's or folder's name, its size in bytes, and its sha256 (of large ones, the fingerprint), as `inspect` tells them."""
    path = Path(path)
    kind, digest = digest_of(path)
    return {"name": path.name, "bytes": sum(part.stat().st_size for part in files_of(path)), kind: digest}


def _describe(file: TensorFile) -> dict[str, Any]:
    if (family := family_of(file)) is not None:
        return _generator(family, file)
    for kind, sign in SIGNS.items():
        if sign in file.tensors:
            return _tokenizer(kind, file)
    if all("lora_" in name for name in file.tensors):
        return _nothing(
            ["these are LoRA adapters, not a generator: load their base, and set generator.adapter= to them"]
        )
    names = ", ".join(list(file.tensors)[:3])
    return _nothing(
        [f"no family that is known has such tensors: {names}, ...; known: {', '.join(FAMILIES)}, and tokenizers"]
    )


def _nothing(problems: list[str]) -> dict[str, Any]:
    unknown = dict.fromkeys(("kind", "size_name", "tokens", "codes", "image_size"))
    return {**unknown, "problems": problems, "odd": []}


def _generator(family: str, file: TensorFile) -> dict[str, Any]:
    odd: list[str] = []
    settings: dict[str, Any] = {}
    if family == "infinity" and told_image_size(file) is None:
        odd.append("the image size is not told: pass image_size=1024, or 256, 512, or (height, width)")
        settings["schedule"] = ((1, 1), (2, 2))  # the shapes do not depend on it
    elif family == "janus":
        odd += _lacking(file)
    elif family not in ("var", "infinity") and told_grid(file) is None and "freqs_cis" not in file.tensors:
        odd.append(
            "the token grid is not told: pass grid=(16, 16) for 256 px, (24, 24) for 384 px, (32, 32) for 512 px"
        )
        settings["grid"] = (16, 16)
    if family.startswith("llamagen") and not _tells_heads(file):
        odd.append("the number of heads is not told: pass num_heads=")
        settings["num_heads"] = 1  # the shapes do not depend on it
    try:
        sizes = infer_sizes(family, file, settings)
    except ValueError as error:
        return _nothing([str(error)]) | {"kind": family}
    foreign = foreign_names(family, file)
    report = key_report(
        expected_tensors(family, sizes),
        {name: tensor for name, tensor in file.tensors.items() if name not in foreign},
        (),
    )
    if "freqs_cis" in file.tensors:
        odd.append("freqs_cis: a rotary table, which is computed anew and written back")
    sides = getattr(sizes, "patch_nums", None)
    grid = None if "grid" in settings else getattr(sizes, "grid", None)
    if sides:
        tokens, pixels = (
            f"{sum(side * side for side in sides)} in {len(sides)} scales, up to {sides[-1]}x{sides[-1]}",
            16 * sides[-1],
        )
    elif grid:
        tokens, pixels = f"{grid[0] * grid[1]} ({grid[0]}x{grid[1]})", 16 * grid[1]
    elif isinstance(sizes, InfinityConfig) and settings:
        tokens, pixels = f"{sizes.codebook_dim} bits a position; how many positions is not told by the file", None
    elif isinstance(sizes, InfinityConfig):
        positions, (height, width) = sum(height * width for height, width in sizes.scales), sizes.scales[-1]
        tokens = f"{positions} of {sizes.codebook_dim} bits in {len(sizes.scales)} scales, up to {height}x{width}"
        pixels = 16 * width
    else:
        tokens, pixels = "not told by the file", None
    return {
        "kind": family,
        "size_name": sizes.size_name,
        "tokens": tokens,
        "codes": sizes.vocab_size,
        "image_size": pixels if sizes.size_name else None,  # the published tokenizers make 16 pixels one token
        "problems": [report] if report else [],
        "odd": odd,
    }


def _tells_heads(file: TensorFile) -> bool:
    """Whether a LlamaGen is as wide as a published one."""
    table = file.tensors.get("tok_embeddings.weight")
    return table is None or table.shape[-1] in LLAMAGEN_SIZES


def _lacking(file: TensorFile) -> list[str]:
    """What a Janus cannot do without what is usually in its folder."""
    lacking = []
    if not tokenizer_tensors(file.tensors):
        lacking.append("no image tokenizer inside: pass tokenizer_checkpoint=, or images can be neither read nor made")
    if not (folder_of(file) / "tokenizer.json").exists():
        lacking.append("no tokenizer.json beside it: prompts cannot be read")
    return lacking


def _tokenizer(kind: str, file: TensorFile) -> dict[str, Any]:
    config: VQConfig | MultiscaleVQConfig | BSQConfig
    try:
        with shapes_only():
            if kind == "vq":
                config = VQConfig.infer(file.tensors)
                expected: Mapping[str, Tensor] = VQTokenizer(config).state_dict()
            elif kind == "bsq":
                config = BSQConfig.infer(file.tensors, scales=((1, 1), (2, 2)))  # it serves any
                expected = BSQTokenizer(config).state_dict()
            else:
                config = MultiscaleVQConfig.infer(file.tensors, patch_nums=SCALES_256)
                expected = MultiscaleVQTokenizer(config).state_dict()
    except ValueError as error:
        return _nothing([str(error)]) | {"kind": kind}
    statistics = ("quantize.codebook_used", "quantize.ema_vocab_hit_SV")  # of training; neither needed nor compared
    report = key_report(
        {name: tensor for name, tensor in expected.items() if name not in statistics},
        {n: t for n, t in file.tensors.items() if n not in statistics and (kind != "bsq" or n.startswith(BSQ_PARTS))},
        (),
    )
    unit = f"{config.codebook_dim} bits" if kind == "bsq" else "one"
    return {
        "kind": kind,
        "size_name": None,
        "tokens": f"{unit} for {config.downsampling}x{config.downsampling} pixels",
        "codes": config.codebook_size,
        "image_size": None,
        "problems": [report] if report else [],
        "odd": [],
    }


def _odd_values(tensors: Mapping[str, Tensor]) -> list[str]:
    """Numbers that no trained weights have, in a sample of each tensor."""
    _read_no_more_than_asked(tensors.values())
    broken, empty = [], []
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor[:1].reshape(-1)
        if len(flat) > RUNS * RUN_LENGTH:
            starts = [run * (len(flat) - RUN_LENGTH) // (RUNS - 1) for run in range(RUNS)]
            flat = torch.cat([flat[start : start + RUN_LENGTH] for start in starts])
        values = flat.float()
        if values.isnan().any() or (values.isinf().any() and "mask" not in name):
            broken.append(name)
        elif tensor.dim() > 1 and not values.any() and "ema_vocab" not in name:
            empty.append(name)
    said = []
    if broken:
        said.append(f"not finite: {len(broken)} tensors, {', '.join(broken[:3])}")
    if empty:
        said.append(f"all zero where looked at: {len(empty)} tensors, {', '.join(empty[:3])}")
    return said


def _read_no_more_than_asked(tensors: Iterable[Tensor]) -> None:
    """Where tensors are mapped to a file the system reads ahead of each look, up to megabytes and so the whole file."""
    if not hasattr(mmap, "MADV_RANDOM"):
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for tensor in tensors:
        start = tensor.data_ptr() - tensor.data_ptr() % mmap.PAGESIZE
        advise(start, tensor.data_ptr() - start + tensor.numel() * tensor.element_size(), mmap.MADV_RANDOM)


def _beside(file: TensorFile) -> list[str]:
    if family_of(file) == "janus":
        tokenizer = len(tokenizer_tensors(file.tensors))
        rest = len(foreign_names("janus", file)) - tokenizer
        counts = {"of its image tokenizer": tokenizer, "that make no images": rest}
        return [f"{count} tensors {what}" for what, count in counts.items() if count]
    if not isinstance(file.content, Mapping) or file.wrapper is None:
        return []
    outer = [str(key) for key in file.content if key != file.wrapper.split("/")[0]]
    inner = file.content[file.wrapper.split("/")[0]] if "/" in file.wrapper else {}
    return outer + [f"{file.wrapper.split('/')[0]}/{key}" for key in inner if key != file.wrapper.split("/")[1]]


def _form(file: TensorFile) -> str:
    if file.path.is_dir():
        return (
            f"a folder of {len(set(file.shards.values()))} weight files"
            if file.shards
            else "a folder with one weight file"
        )
    if file.content is None:
        return "safetensors"
    return f"torch file, {f'under {file.wrapper!r}' if file.wrapper else 'bare'}"
