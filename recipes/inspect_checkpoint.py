"""Tell what a checkpoint file or folder is: family, size, tokens, dtype, hash, what is missing or odd, which recipes fit.

It takes seconds whatever the size, and runs no code from the file. Large files get a fingerprint of their parts'
checksums; add whole=true to hash every byte. The folder of a run means its aligned generator.
For example: align inspect c2i_XL_384.pt
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from align.fingerprints import digest_of
from recipes.choices import CONF, options

if TYPE_CHECKING:
    from align.inspection import Inspection

TOKENIZERS = {
    "vq": "LlamaGen's VQ tokenizer",
    "multiscale-vq": "VAR's multi-scale tokenizer",
    "bsq": "Infinity's tokenizer of binary spherical quantisation",
}
PIXELS_PER_TOKEN = 16  # along each side, in all that are published


def main(arguments: list[str]) -> None:
    paths = [argument for argument in arguments if argument not in ("whole=true", "whole=false")]
    if len(paths) != 1:
        raise ValueError(
            f"align inspect takes one file or folder, and whole=true if wanted; got {' '.join(arguments) or 'nothing'}"
        )
    found = _look(Path(paths[0]), whole="whole=true" in arguments)
    width = 14
    for name, value in lines(found):
        print(f"{name:<{width}}{value}")
    if found.problems:
        raise ValueError(f"{found.path} cannot be loaded: {'; '.join(found.problems)}")


def _look(path: Path, *, whole: bool) -> Inspection:
    with ThreadPoolExecutor(max_workers=1) as pool:
        # a file's bytes are read while torch is imported: either takes a second or two
        early = pool.submit(digest_of, path, whole=whole) if path.is_file() else None
        from align.inspection import inspect
        from recipes.exports import resolve_checkpoint

        place = resolve_checkpoint(path) or path
        return inspect(place, digest=early.result if early else partial(digest_of, place, whole=whole))


def lines(found: Inspection) -> Iterator[tuple[str, str]]:
    """(what, value) of everything there is to say."""
    yield str(found.path), ""
    yield "file", f"{_bytes(found.bytes)}, {found.form}"
    yield "is", describe(found)
    tensors = sum(found.dtypes.values())
    yield (
        "parameters",
        f"{found.parameters / 1e6:,.1f} M in {tensors} tensors: {', '.join(f'{n} {d}' for d, n in found.dtypes.items())}",
    )
    if found.tokens:
        yield (
            "tokens",
            f"{found.tokens}, of {found.codes:,} codes" + (f"; {found.image_size} px" if found.image_size else ""),
        )
    yield found.digest[0], found.digest[1]
    if found.beside:
        yield "also holds", ", ".join(found.beside)
    for remark in found.odd:
        yield "odd", remark
    if found.kind in TOKENIZERS or found.kind is None:
        return
    yield "recipes", recipes(found.kind, found.size_name, found.image_size)


def describe(found: Inspection) -> str:
    if found.kind is None:
        return "unknown"
    if found.kind in TOKENIZERS:
        return TOKENIZERS[found.kind]
    return f"a generator: {found.kind}" + (
        f", published size {found.size_name}" if found.size_name else ", of no published size"
    )


def recipes(family: str, size: str | None, image_size: int | None) -> str:
    """The experiments that fit, or how to use those that nearly do."""
    if fitting := fitting_experiments(family, size, image_size):
        return ", ".join(fitting)
    if image_size is not None and (fitting := fitting_experiments(family, size, None)):
        side = image_size // PIXELS_PER_TOKEN
        return f"of another image size {', '.join(fitting)}; add generator.config.grid=[{side},{side}]"
    if _experiments(family):
        return "none of its size; those of its family run with generator.size=null"
    return f"none for its family; begin with align train generator={family} objective=cca"


def fitting_experiments(family: str, size: str | None, image_size: int | None) -> list[str]:
    """Names of the experiments for this family, size and image size, where they say so."""
    return [
        name
        for name, wanted, grid in _experiments(family)
        if wanted in (None, size) and (grid is None or image_size in (None, PIXELS_PER_TOKEN * grid[0]))
    ]


def _experiments(family: str) -> list[tuple[str, str | None, list[int] | None]]:
    """(name, published size, token grid) of a family's experiments, as far as they say."""
    found = []
    for name in options("experiment"):
        experiment: dict[str, Any] = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
        chosen = {key: value for entry in experiment.get("defaults", []) for key, value in entry.items()}
        section = experiment.get("generator") or {}
        if chosen.get("override /generator") == family:
            found.append((name, section.get("size"), (section.get("config") or {}).get("grid")))
    return found


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
