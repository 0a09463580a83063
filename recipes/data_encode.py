"""align data encode: read images with class labels or captions, crop them, encode them by a tokenizer, and write the token
codes to output_dir as shards with a manifest. An image that cannot be read is skipped and listed. Stopped at any point,
the same command goes on; several processes (torchrun, or part=0/8 to part=7/8) fill one folder together.
For example: align data encode imagenet/train generator=llamagen generator.tokenizer_checkpoint=vq_ds16_c2i.pt image_size=256
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from align.checkpoints import FAMILIES, load_tokenizer
from align.data.crops import Crop
from align.data.encode import describe_encoding, encode_shards
from align.data.readers import Columns, ImageSource, open_images
from align.data.shards import MANIFEST, SETTINGS, ShardWriter
from align.progress import progress_bar
from align.tokenizers import BSQTokenizer, MultiscaleVQTokenizer, VQTokenizer
from align.tokenizers.multiscale_vq import SCALES_256, SCALES_512
from align.zoo_entries import zoo_entry
from recipes.config import compose, with_path
from recipes.run import Run, num_processes, pick_device, process_index, say

_LISTED = 20  # skipped images that are printed; the manifest has them all
_SCALES = {256: SCALES_256, 512: SCALES_512}
Tokenizer = VQTokenizer | MultiscaleVQTokenizer  # those whose codes are kept


def main(overrides: list[str]) -> None:
    overrides = with_path(overrides, "source")
    config = compose("data_encode", overrides)
    if config.source is None:
        raise ValueError("nothing to encode: name an image folder, a .jsonl, .parquet or .tar files (source=)")
    part, parts = parse_part(config.part)
    if config.batch_size < 1:
        raise ValueError(f"batch_size is {config.batch_size}; it must be at least 1")
    folder = Path(config.output_dir)
    _clear(folder, overwrite=config.overwrite, parts=parts)
    tokenizer, family, size = make_tokenizer(config.generator, config.image_size)
    crop = Crop(config.crops, size, tuple(config.crop_sizes))
    source = open_images(config.source, kind=config.kind, columns=Columns(**config.columns), split=config.split)
    say(_describe(source))
    encoding = describe_encoding(tokenizer, source, crop, family=family, shard_rows=config.shard_rows)
    writer = ShardWriter(folder, encoding)
    # processes of torchrun wait here for one another
    own_run = part == 0 or num_processes() > 1
    run = Run(config, kind="data encode", overrides=overrides, append=True) if own_run else None
    own = range(part, encoding.shards, parts)
    todo = [shard for shard in own if not writer.is_finished(shard)]
    if len(todo) < len(own):
        say(f"{len(own) - len(todo)} of {len(own)} shards are there already; going on")
    started = time.monotonic()
    encoded, skipped = _encode(writer, source, crop, tokenizer, todo, config)
    seconds = time.monotonic() - started
    views = encoded * encoding.views
    say(
        f"{encoded} images encoded in {encoding.views} view(s) each, {skipped} skipped: {seconds:.1f} s, {views / max(seconds, 1e-9):.1f} views/s"
    )
    manifest = writer.finish()
    if run is not None:
        facts = {"encoded": encoded, "skipped": skipped, "seconds": round(seconds, 1)}
        run.update(status="finished" if manifest else "part finished", this_process=facts)
    if manifest is None:
        say(
            f"part {part}/{parts} is done; shards of other parts are missing in {folder}, and the last part to end writes {MANIFEST}"
        )
        return
    _report(manifest, folder)


def _encode(
    writer: ShardWriter,
    source: ImageSource,
    crop: Crop,
    tokenizer: Tokenizer,
    shards: Sequence[int],
    config: DictConfig,
) -> tuple[int, int]:
    """Images encoded and images skipped."""
    done, skipped = 0, 0
    workers = config.workers
    if workers is None:
        workers = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    bar = progress_bar(total=sum(len(writer.encoding.rows_of(s)) for s in shards), description="encode", unit="img")

    def count(rows: int, unreadable: int) -> None:
        nonlocal done, skipped
        done, skipped = done + rows, skipped + unreadable
        bar.update(rows + unreadable)

    with bar:
        encode_shards(
            writer,
            source,
            crop,
            tokenizer,
            shards=shards,
            batch_size=config.batch_size,
            workers=workers,
            on_rows=count,
        )
    return done, skipped


def make_tokenizer(
    config: DictConfig, image_size: int | None, patch_nums: Sequence[int] | None = None
) -> tuple[Tokenizer, str, int]:
    """The tokenizer of a `generator:` section, whose generator is not needed; its family, and the size of its images.

    Args:
        image_size: pixels; None for what the section tells.
        patch_nums: a VAR tokenizer's scales, where they are known already.

    Raises:
        ValueError: no tokenizer, another family's, one whose codes are not kept, or its image size or scales are not
            told.
    """
    family, path = config.name, config.tokenizer_checkpoint
    settings: dict[str, Any] = OmegaConf.to_container(config.config)  # type: ignore[assignment]
    if family not in FAMILIES:
        entry = json.loads((zoo_entry(family) / "config.json").read_text())
        path = path or zoo_entry(family) / entry["tokenizer"]
        family, settings = entry["family"], entry["config"] | settings
    if family == "infinity":
        raise ValueError(
            "an Infinity's tokens are bits, 336,672 of an image of 1024 px, and are not kept; train on images as they come (data=images)"
        )
    if family == "janus":  # holds its tokenizer
        path = path or config.checkpoint
    if path is None:
        raise ValueError("images become tokens by a tokenizer; set generator.tokenizer_checkpoint= to its file")
    scales = patch_nums or settings.get("patch_nums") or _SCALES.get(image_size or 0)
    tokenizer = load_tokenizer(path, patch_nums=scales).to(pick_device())
    if isinstance(tokenizer, BSQTokenizer) or isinstance(tokenizer, MultiscaleVQTokenizer) != (family == "var"):
        raise ValueError(f"{path} holds a {type(tokenizer).__name__}, which is none of a {family}; set generator=")
    size = image_size or _told_size(tokenizer, settings)
    if size is None:
        raise ValueError(
            "what size are the images to be? Set image_size= to 256, 384 or 512, as the generator was trained with"
        )
    return tokenizer, family, size


def _told_size(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> int | None:
    if isinstance(tokenizer, MultiscaleVQTokenizer):
        return tokenizer.config.patch_nums[-1] * tokenizer.config.downsampling
    grid = settings.get("grid")
    return None if grid is None else grid[0] * tokenizer.config.downsampling


def parse_part(part: str | None) -> tuple[int, int]:
    """(0, 8) of 0/8; of None, what torchrun says. Raises ValueError."""
    if part is None:
        return process_index(), num_processes()
    if num_processes() > 1:
        raise ValueError("torchrun shares the work out by itself; leave part= away")
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if match is None or int(match[1]) >= int(match[2]):
        raise ValueError(f"part is {part!r}; the parts of eight are 0/8, 1/8, ... 7/8")
    return int(match[1]), int(match[2])


def _clear(folder: Path, *, overwrite: bool, parts: int) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / SETTINGS).exists():
        raise ValueError(f"{folder} holds other files than token codes; set another output_dir=")
    if overwrite:
        if parts > 1:
            raise ValueError(
                f"overwrite=true would delete what other parts write; remove {folder} before you start them"
            )
        shutil.rmtree(folder)


def _describe(source: ImageSource) -> str:
    held = " and ".join(
        [*(["class labels"] if source.has_labels else []), *(["captions"] if source.has_captions else [])]
    )
    classes = ""
    if source.classes is not None:
        names = source.classes
        shown = ", ".join(names if len(names) <= 4 else [*names[:2], "...", names[-1]])
        classes = f", {len(names)} class{'es' if len(names) != 1 else ''} ({shown})"
    return f"{source.path}: {len(source)} images ({source.kind}) with {held}{classes}"


def _report(manifest: Mapping[str, Any], folder: Path) -> None:
    say(
        f"{folder}: {manifest['rows']} images in {manifest['views']} view(s) of {manifest['tokens_per_image']} tokens, "
        f"{len(manifest['shards'])} shard(s), {manifest['skipped']} skipped"
    )
    for row in manifest["skipped_rows"][:_LISTED]:
        say(f"  skipped {row['key']}: {row['reason']}")
    if manifest["skipped"] > _LISTED:
        say(f"  and {manifest['skipped'] - _LISTED} more, listed in {folder / MANIFEST}")
