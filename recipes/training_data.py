"""The data of a `data:` section, and whether it fits the generator: token codes, images, preference pairs."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from align.data import Codes, ImageStream, LazyCodes, PreferencePairs, Stream, TrainingStream, open_codes
from align.data.crops import Crop
from align.data.mnist import deformed, load_mnist
from align.data.readers import Columns, open_images
from align.generators import Generator
from recipes.parts import tokenizer_hash, zoo_file
from recipes.run import say


def make_stream(config: DictConfig, generator: Generator, *, length: int, seed: int, label_drop: float) -> Stream:
    """Real images in the order of training: as stored codes, or as pixels that are encoded on the way."""
    order: dict[str, Any] = {"length": length, "seed": seed, "label_drop": label_drop}
    order |= {"negative_label": config.negative_label, "hard_negatives": config.hard_negatives or ()}
    if config.get("images") is None:
        return TrainingStream(make_codes(config, generator), **order)
    if tokenizer_hash(generator) is None:
        raise ValueError(
            "images are encoded on the way, and this generator has no tokenizer; set generator.tokenizer_checkpoint"
        )
    height, width = generator.decode(torch.zeros(1, generator.layout.length, dtype=torch.long)).shape[1:3]
    if height != width:
        raise ValueError(f"data.images are cropped to squares, and the generator takes {height}x{width} pixels")
    images = open_images(config.images, kind=config.kind, columns=Columns(**config.columns), split=config.split)
    if generator.num_classes is not None and images.classes is not None and len(images.classes) > generator.num_classes:
        raise ValueError(
            f"{config.images} has {len(images.classes)} classes; the generator knows {generator.num_classes}"
        )
    crop = Crop(config.crop, height, flip=config.flip)
    return ImageStream(images, crop, conditions=_conditions(generator), **order)


def make_codes(config: DictConfig, generator: Generator) -> Codes | LazyCodes:
    """Token codes of a `data:` section: a path that `open_codes` knows, or `zoo:NAME` for those that come with a zoo entry.

    With `deformed_copies` the zoo's digits come also slightly rotated, sheared and scaled, through the generator's own
    tokenizer.

    Raises:
        ValueError: the codes do not fit the generator.
    """
    reference = config.codes
    codes = open_codes(
        zoo_file(reference, "codes") if reference.startswith("zoo:") else reference,
        conditions=_conditions(generator),
        codebook_size=generator.vocab_size,
        num_classes=generator.num_classes,
    )
    if generator.num_classes is None and not isinstance(codes.labels_N[0], str):
        raise ValueError(f"{reference} holds images with class labels; a {generator.family} generator takes captions")
    if isinstance(codes, LazyCodes):
        _check_lazily(reference, codes, generator)
    else:
        largest = int(codes.tokens_NL.max())
        label = int(codes.labels_N.max()) if isinstance(codes.labels_N, Tensor) else None
        check_tokens(reference, codes.tokens_NL.shape[1], largest, label, codes.tokenizer, generator)
    if not config.deformed_copies:
        return codes
    if not (isinstance(codes, Codes) and isinstance(codes.labels_N, Tensor) and reference.startswith("zoo:mnist")):
        raise ValueError(f"data.deformed_copies deforms the zoo's digits, and data.codes is {reference}; set it to 0")
    digits = load_mnist("train")
    copies = [generator.encode(deformed(digits.images_NHWC, seed=copy)).cpu() for copy in range(config.deformed_copies)]
    return Codes(torch.cat([codes.tokens_NL, *copies]), codes.labels_N.repeat(1 + len(copies)), codes.tokenizer)


def make_pairs(path: str, generator: Generator) -> PreferencePairs:
    """Preference pairs from a file, for a generator that speaks their tokens; any policy may have drawn them."""
    pairs = PreferencePairs.load(path)
    largest = int(max(pairs.chosen_NL.max(), pairs.rejected_NL.max()))
    classes = isinstance(pairs.labels_N, Tensor)
    if classes != (generator.num_classes is not None):
        held, taken = ("classes", "prompts") if classes else ("prompts", "classes")
        raise ValueError(f"{path} holds pairs of images of {held}; a {generator.family} generator takes {taken}")
    label = int(pairs.labels_N.max()) if isinstance(pairs.labels_N, Tensor) else None
    check_tokens(path, pairs.chosen_NL.shape[1], largest, label, pairs.tokenizer, generator)
    return pairs


def check_tokens(
    reference: str, length: int, largest: int | None, label: int | None, tokenizer: str | None, generator: Generator
) -> None:
    """Refuse images that are not in the generator's tokens, or of classes that it does not know.

    Args:
        length: tokens of an image; largest: no token is above; label: nor any class label. None: not known.
        tokenizer: its sha256; None where it is not known, which is said.

    Raises:
        ValueError: another length, vocabulary, number of classes or tokenizer (where the generator has one).
    """
    if length != generator.layout.length:
        raise ValueError(
            f"{reference}: images of {_grid(length)} tokens; this generator takes {_layout(generator)}: were they encoded "
            "at another image_size, or for another kind of generator?"
        )
    if largest is not None and largest >= generator.vocab_size:
        raise ValueError(f"{reference}: tokens up to {largest}; the generator knows 0 to {generator.vocab_size - 1}")
    if generator.num_classes is not None and label is not None and label >= generator.num_classes:
        raise ValueError(
            f"{reference}: class labels up to {label}; the generator knows 0 to {generator.num_classes - 1}"
        )
    found = tokenizer_hash(generator)
    if tokenizer is None:
        _say_once(
            f"{reference}: this layout does not say which tokenizer made the codes, so that was not checked; look at "
            f"some: align data show codes={reference}"
        )
    elif found is not None and found != tokenizer:
        raise ValueError(
            f"{reference} was made by another tokenizer ({tokenizer[:12]}, the generator's is {found[:12]}); make it again with this one"
        )


def _check_lazily(reference: str, codes: LazyCodes, generator: Generator) -> None:
    """By what their manifest says; codes without one are checked row by row as they are read, the first and last now."""
    rows, views, length = codes.shape
    largest = None if codes.tokenizer is None or codes.codebook_size is None else codes.codebook_size - 1
    label = None if codes.tokenizer is None or codes.num_classes is None else codes.num_classes - 1
    check_tokens(reference, length, largest, label, codes.tokenizer, generator)
    for row, view in ((0, 0), (rows - 1, views - 1)):
        codes[row, view], codes.labels_N[row]


def _conditions(generator: Generator) -> str:
    return "caption" if generator.num_classes is None else "label"


def _layout(generator: Generator) -> str:
    blocks, length = generator.layout.block_sizes, generator.layout.length
    if len(blocks) < length:
        return f"{length} in {len(blocks)} scales"
    return _grid(length)


def _grid(length: int) -> str:
    side = math.isqrt(length)
    return f"{length} ({side}x{side})" if side * side == length else str(length)


@cache
def _say_once(message: str) -> None:
    say(message)
