"""align data show: decode some token codes, every view of a few images, into output_dir/codes.png, with their labels or
captions in codes.txt beside it: a wrong crop, tokenizer or label is seen before a GPU-day is spent.
For example: align data show runs/codes generator=llamagen generator.tokenizer_checkpoint=vq_ds16_c2i.pt
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.data import Codes, LazyCodes, open_codes
from align.data.shard_codes import ShardCodes
from align.files import sha256_of_tensors, write_text
from align.images import save_grid
from align.tokenizers import MultiscaleVQTokenizer
from recipes.config import compose, with_path
from recipes.data_encode import Tokenizer, make_tokenizer
from recipes.parts import zoo_file
from recipes.run import Run, say


def main(overrides: list[str]) -> None:
    overrides = with_path(overrides, "codes")
    config = compose("data_show", overrides)
    if config.num_images < 1:
        raise ValueError(f"num_images is {config.num_images}; it must be at least 1")
    reference = config.codes
    path = zoo_file(reference, "codes") if reference.startswith("zoo:") else reference
    codes = open_codes(path, partial=True)
    manifest: dict[str, Any] = codes.manifest if isinstance(codes, ShardCodes) else {}
    say("\n".join(_summary(reference, codes)))
    tokens_NAL = codes if isinstance(codes, LazyCodes) else codes.tokens_NL.unsqueeze(1)
    tokenizer = _tokenizer(config, codes, manifest)
    if config.verify:
        if not isinstance(codes, ShardCodes):
            raise ValueError(f"verify=true compares shards with their manifest, and {reference} has none")
        codes.verify()
        say("all files are what the manifest says")
    run = Run(config, kind="data show", overrides=overrides, append=True)
    rows = sorted({int(row) for row in np.linspace(0, len(codes) - 1, config.num_images)})
    views = tokens_NAL.shape[1]
    images = decode(tokenizer, torch.stack([tokens_NAL[row, view] for row in rows for view in range(views)]))
    save_grid(images, run.folder / "codes.png", columns=views)
    lines = [f"{row}: {_condition(codes, row, manifest.get('classes'))}" for row in rows]
    write_text(run.folder / "codes.txt", "\n".join(lines) + "\n")
    run.update(status="finished")
    say("\n".join(["", *lines]))
    say(f"{len(rows)} images, a row each, in {views} view(s): {run.folder / 'codes.png'}, codes.txt")


def _tokenizer(config: Any, codes: Codes | LazyCodes, manifest: dict[str, Any]) -> Tokenizer:
    """Raises ValueError for another one than made the codes."""
    size = config.image_size or manifest.get("image_size")
    tokenizer, family, _ = make_tokenizer(config.generator, size or 0, manifest.get("patch_nums"))
    if codes.tokenizer is None:
        say(f"{config.codes} does not say which tokenizer made it: look whether the images are what they should be")
    elif (found := sha256_of_tensors(tokenizer.state_dict())) != codes.tokenizer:
        made = f"; they were made for a {manifest['family']}" if manifest else ""
        raise ValueError(
            f"{config.codes} was made by another tokenizer ({codes.tokenizer[:12]}, this one, of a {family}, is {found[:12]}){made}. "
            "Set generator= and generator.tokenizer_checkpoint="
        )
    return tokenizer


def decode(tokenizer: Tokenizer, tokens_NL: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] of square images. Raises ValueError for tokens that the tokenizer does not have."""
    length = tokens_NL.shape[1]
    if tokens_NL.max() >= tokenizer.config.codebook_size:
        raise ValueError(
            f"tokens up to {tokens_NL.max()}; this tokenizer has 0 to {tokenizer.config.codebook_size - 1}"
        )
    if isinstance(tokenizer, MultiscaleVQTokenizer):
        if length != (takes := sum(side * side for side in tokenizer.config.patch_nums)):
            raise ValueError(
                f"images of {length} tokens; scales {tokenizer.config.patch_nums} have {takes}; set image_size="
            )
        return tokenizer.decode_images(tokens_NL)
    side = math.isqrt(length)
    if side * side != length:
        raise ValueError(
            f"images of {length} tokens are not square; were they made by a VAR's tokenizer? Set generator=var"
        )
    return tokenizer.decode_images(tokens_NL, (side, side))


def _summary(reference: str, codes: Codes | LazyCodes) -> list[str]:
    rows, views, length = codes.shape if isinstance(codes, LazyCodes) else (len(codes), 1, codes.tokens_NL.shape[1])
    made = "unknown" if codes.tokenizer is None else codes.tokenizer[:12]
    lines = [f"{reference}: {rows} images in {views} view(s) of {length} tokens, tokenizer {made}"]
    if isinstance(codes, ShardCodes):
        manifest = codes.manifest
        source, crop = manifest["source"], manifest["crop"]
        sizes = f" at {' and '.join(map(str, crop['enlarged']))}" if crop["enlarged"] else ""
        lines += [
            f"  from {source['path']} ({source['kind']}, {source['rows']} rows, {manifest['skipped']} skipped)",
            f"  {crop['kind']}{sizes}, {manifest['image_size']} px, for {manifest['family']}, {len(manifest['shards'])} shard(s)",
        ]
        if manifest.get("missing"):
            lines.append(f"  not whole yet: {manifest['missing']} shard(s) are missing")
        if manifest["label_range"]:
            low, high = manifest["label_range"]
            names = f", {len(manifest['classes'])} classes are known by name" if manifest["classes"] else ""
            lines.append(f"  class labels {low} to {high}{names}")
    return lines


def _condition(codes: Codes | LazyCodes, row: int, classes: list[str] | None) -> str:
    condition = codes.labels_N[row]
    if isinstance(condition, str):
        return condition
    name = classes[int(condition)] if classes else ""
    return f"class {int(condition)} {name}".strip()
