"""align data captions: encode captions or prompts by T5, once; output_dir then stands in for T5 as a generator's
text_encoder. What is there already is not encoded again: stopped at any point, the same command goes on, further
sources may be added to the folder, and several processes (torchrun, or part=0/8 to part=7/8) fill it together.
The null caption, which guidance compares with, is the generator's own and needs no features.
For example: align data captions prompts.txt text_encoder=flan-t5-xl output_dir=runs/captions
Then: align train generator=llamagen-t2i ... generator.text_encoder=runs/captions
"""

from __future__ import annotations

import time
from pathlib import Path

from omegaconf import DictConfig

from align.data.prompts import read_captions
from align.data.readers import Columns, UnreadableRow, open_images
from align.data.shards import SETTINGS
from align.progress import progress_bar
from align.text import CachedTextEncoder, FeatureStore, T5TextEncoder
from align.text.store import STORE_FILE
from recipes.config import compose, with_path
from recipes.data_encode import parse_part
from recipes.parts import DTYPES
from recipes.run import Run, num_processes, pick_device, say

_CHUNK = 256  # captions between two looks at the progress bar


def main(overrides: list[str]) -> None:
    overrides = with_path(overrides, "source")
    config = compose("data_captions", overrides)
    if config.source is None:
        raise ValueError(
            "no captions to encode: name a .txt or .jsonl, a folder of `align data encode`, or images with captions (source=)"
        )
    if config.text_encoder is None:
        raise ValueError("captions are encoded by T5; set text_encoder= to its folder (flan-t5-xl for LlamaGen)")
    dtypes = {name: dtype for name, dtype in DTYPES.items() if dtype is not None}
    if config.dtype not in dtypes:
        raise ValueError(f"unknown dtype {config.dtype!r}; known: {', '.join(dtypes)}")
    part, parts = parse_part(config.part)
    folder = Path(config.output_dir)
    if folder.exists() and any(folder.iterdir()) and not (folder / STORE_FILE).exists():
        raise ValueError(f"{folder} holds other files than caption features; set another output_dir=")
    captions, skipped = find_captions(config)
    say(f"{config.source}: {len(captions)} captions" + (f", {skipped} rows without one skipped" if skipped else ""))
    encoder = T5TextEncoder(
        config.text_encoder,
        max_length=config.max_length,
        clean=config.clean,
        device=pick_device(),
        dtype=dtypes[config.dtype],
        batch_size=config.batch_size,
    )
    cached = CachedTextEncoder(encoder, FeatureStore(folder, encoder.facts))
    # processes of torchrun wait here for one another
    own_run = part == 0 or num_processes() > 1
    run = Run(config, kind="data captions", overrides=overrides, append=True) if own_run else None
    started = time.monotonic()
    own = captions[part::parts]
    encoded = 0
    with progress_bar(total=len(own), description="captions", unit="text") as bar:
        for start in range(0, len(own), _CHUNK):
            chunk = own[start : start + _CHUNK]
            encoded += cached.add(chunk)
            bar.update(len(chunk))
    cached.flush()
    seconds = time.monotonic() - started
    facts = {"captions": len(own), "encoded": encoded, "cut": encoder.truncated, "seconds": round(seconds, 1)}
    if run is not None:
        run.update(status="finished", this_process=facts)
    say(
        f"{encoded} captions encoded in {seconds:.1f} s, {encoder.truncated} of them cut to {config.max_length} tokens; the other "
        f"{len(own) - encoded} were there already, or came twice. {folder} holds {len(cached.store)}"
    )


def find_captions(config: DictConfig) -> tuple[list[str], int]:
    """All captions of `source`, in order, and how many rows of an image set have none that can be read.

    Raises:
        FileNotFoundError, ValueError: see `read_captions` and `open_images`; or images without captions.
    """
    source = Path(config.source)
    if config.kind == "auto" and (source.suffix in (".txt", ".jsonl") or (source / SETTINGS).exists()):
        return read_captions(source), 0
    images = open_images(config.source, kind=config.kind, columns=Columns(**config.columns), split=config.split)
    if not images.has_captions:
        raise ValueError(f"{config.source} holds images without captions; set columns.text to the column of theirs")
    captions, skipped = [], 0
    for row in range(len(images)):
        try:
            captions.append(images.caption(row))
        except UnreadableRow:
            skipped += 1
    return captions, skipped
