"""Images to shards of token codes: worker processes decode and crop, the tokenizer encodes on its device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from align.checkpoints import Tokenizer
from align.data.crops import Crop
from align.data.readers import ImageSource, Record, UnreadableRow
from align.data.shards import Encoding, ShardWriter
from align.files import sha256_of_tensors

_HOPELESS = 256  # this many rows and not one readable: the path is wrong, or the disk is gone


def describe_encoding(
    tokenizer: Tokenizer, source: ImageSource, crop: Crop, *, family: str, shard_rows: int
) -> Encoding:
    """Everything that the codes will depend on.

    Raises:
        ValueError: the tokenizer cannot take images of this size.
    """
    sizes, side = tokenizer.config, crop.size
    patch_nums = getattr(sizes, "patch_nums", None)
    takes = sizes.downsampling * patch_nums[-1] if patch_nums else None
    if side % sizes.downsampling or (takes is not None and side != takes):
        allowed = (
            f"{takes} for its last scale of {patch_nums[-1]}" if patch_nums else f"a multiple of {sizes.downsampling}"
        )
        raise ValueError(f"image_size is {side}; this tokenizer takes {allowed}")
    device = next(tokenizer.parameters()).device
    probe = tokenizer.encode_images(torch.zeros(1, side, side, 3, dtype=torch.uint8, device=device))
    return Encoding(
        tokenizer=sha256_of_tensors(tokenizer.state_dict()),
        family=family,
        image_size=side,
        tokens_per_image=probe.shape[1],
        codebook_size=sizes.codebook_size,
        patch_nums=None if patch_nums is None else list(patch_nums),
        crop={"kind": crop.kind, "enlarged": list(crop.enlarged) if crop.kind == "ten_crop" else None},
        views=crop.number,
        source={"path": source.path, "kind": source.kind, "rows": len(source), "fingerprint": source.fingerprint},
        labels=source.has_labels,
        captions=source.has_captions,
        classes=None if source.classes is None else list(source.classes),
        shard_rows=shard_rows,
    )


def encode_shards(
    writer: ShardWriter,
    source: ImageSource,
    crop: Crop,
    tokenizer: Tokenizer,
    *,
    shards: Sequence[int],
    batch_size: int,
    workers: int,
    on_rows: Callable[[int, int], None],
) -> None:
    """Encode and write these shards, one after the other.

    Args:
        batch_size: views encoded at once.
        workers: processes that read, decode and crop; 0 is this one.
        on_rows: called with (rows encoded, rows skipped) after every batch.

    Raises:
        ValueError: none of the first rows can be read.
    """
    size = max(1, batch_size // crop.number)
    # never over a shard's edge: its codes do not depend on who else is encoded
    batches = [
        (shard, rows[start : start + size])
        for shard in shards
        for rows in [writer.encoding.rows_of(shard)]
        for start in range(0, len(rows), size)
    ]
    # numpy through pipes, not tensors through shared memory, which containers have little of
    loader = DataLoader(
        _Loading(source, crop, source.has_labels, source.has_captions),
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
    )
    tokens: list[np.ndarray] = []
    held = _Loaded.empty()
    done, failed = 0, 0
    for (shard, rows), loaded in zip(batches, loader, strict=True):
        if loaded.rows:
            pixels = torch.from_numpy(loaded.views.reshape(-1, *loaded.views.shape[2:]))
            tokens.append(tokenizer.encode_images(pixels).cpu().numpy().reshape(len(loaded.rows), crop.number, -1))
        held.add(loaded)
        on_rows(len(loaded.rows), len(loaded.skipped))
        done, failed = done + len(loaded.rows), failed + len(loaded.skipped)
        if not done and failed >= _HOPELESS:
            raise ValueError(f"none of the first {failed} images can be read; the last is {loaded.skipped[-1]}")
        if rows[-1] == writer.encoding.rows_of(shard)[-1]:
            empty = np.zeros((0, crop.number, writer.encoding.tokens_per_image), dtype=np.int64)
            writer.write(shard, np.concatenate([empty, *tokens]), held.rows, held.records, held.skipped)
            tokens, held = [], _Loaded.empty()


@dataclass
class _Loaded:
    """Some rows of a source, cropped: views uint8 [rows, A, size, size, 3], and what could not be read."""

    rows: list[int]
    records: list[Record]
    skipped: list[UnreadableRow]
    views: np.ndarray

    @staticmethod
    def empty() -> _Loaded:
        return _Loaded([], [], [], np.zeros(0, dtype=np.uint8))

    def add(self, other: _Loaded) -> None:
        """All but the views."""
        self.rows += other.rows
        self.records += other.records
        self.skipped += other.skipped


@dataclass(frozen=True)
class _Loading(Dataset[_Loaded]):
    source: ImageSource
    crop: Crop
    labels: bool
    captions: bool

    def __getitem__(self, batch: tuple[int, range]) -> _Loaded:
        loaded, views = _Loaded.empty(), []
        for row in batch[1]:
            try:
                record = self.source.record(row)
                if (self.labels and record.label is None) or (self.captions and record.caption is None):
                    raise UnreadableRow(record.key, "it has no label or caption, and the rows before it have")
                views.append(self.crop.views(self.source.image(row)))
            except UnreadableRow as error:
                loaded.skipped.append(error)
                continue
            loaded.rows.append(row)
            loaded.records.append(record)
        if views:
            loaded.views = np.stack(views)
        return loaded


def _as_it_is(batch: Any) -> Any:
    return batch
