"""Token codes on disk, for image sets of any size: a folder of shards that several processes may write.

    manifest.json             how the codes were made, what was skipped, each shard's rows and sha256
    shard-00000.safetensors   tokens [n, A, L] in the narrowest integers; rows [n], their numbers in the source;
                              labels [n]; places [n + 1], where each row's line begins in
    shard-00000.jsonl         captions and further columns, where there are any
    records/shard-00000.json  what the manifest is made of; a shard without its record is not finished
    settings.json             how the codes are being made: what a resumed run and other processes must agree with

A shard holds a fixed range of the source's rows, so that who encodes it does not matter, and the manifest is a function
of the records alone: parts merge to the bytes that one process would have written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from align.data.readers import Record, UnreadableRow
from align.files import write_atomically, write_text
from align.fingerprints import sha256_of_file

FORMAT = "ar-align token codes, version 1"
MANIFEST, SETTINGS, RECORDS = "manifest.json", "settings.json", "records"


@dataclass(frozen=True)
class Encoding:
    """What decides the codes of a folder, and every byte in it.

    tokenizer: sha256 of its weights; family: the generators it serves; patch_nums: its scales, if it has several.
    crop: kind and settings; views: of each image.
    source: path, kind, rows and fingerprint of the images; the path may change, should they be moved.
    labels, captions: which of them the images have; classes: names in the order of the ids, where known.
    """

    tokenizer: str
    family: str
    image_size: int
    tokens_per_image: int
    codebook_size: int
    patch_nums: list[int] | None
    crop: dict[str, Any]
    views: int
    source: dict[str, Any]
    labels: bool
    captions: bool
    classes: list[str] | None
    shard_rows: int

    def __post_init__(self) -> None:
        if self.shard_rows < 1:
            raise ValueError(f"shard_rows is {self.shard_rows}; it must be at least 1")

    @property
    def shards(self) -> int:
        return -(-self.source["rows"] // self.shard_rows)

    @property
    def dtype(self) -> type[np.integer[Any]]:
        return next(kind for kind in (np.uint8, np.uint16, np.int32) if self.codebook_size - 1 <= np.iinfo(kind).max)

    def rows_of(self, shard: int) -> range:
        first = shard * self.shard_rows
        return range(first, min(first + self.shard_rows, self.source["rows"]))

    def comparable(self) -> dict[str, Any]:
        """All but the path."""
        source = {name: value for name, value in self.source.items() if name != "path"}
        return {**asdict(self), "source": source}

    @property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.comparable()).encode()).hexdigest()


class ShardWriter:
    """Writes the shards of an encoding into a folder, each whole or not at all.

    Raises:
        ValueError: the folder holds codes that were made otherwise.
    """

    def __init__(self, folder: Path, encoding: Encoding) -> None:
        self.folder = folder
        self.encoding = encoding
        (folder / RECORDS).mkdir(parents=True, exist_ok=True)
        if (folder / SETTINGS).exists():
            self._compare(_read_encoding(folder))
        else:
            # of processes that begin at once the last one sets the terms; records of other terms are refused later
            write_text(folder / SETTINGS, json.dumps(asdict(encoding), indent=2) + "\n")

    def _compare(self, earlier: Encoding) -> None:
        now, before = self.encoding.comparable(), earlier.comparable()
        for name, value in before.items():
            if value != now[name]:
                raise ValueError(
                    f"{self.folder} holds codes made with other settings: {name} was {_short(value)}, now {_short(now[name])}. "
                    "Set it back to go on, use another output_dir=, or add overwrite=true to begin anew"
                )

    def is_finished(self, shard: int) -> bool:
        """Whether the shard is whole on disk, as its record says."""
        record = read_record(self.folder, shard, self.encoding)
        return record is not None and all(
            (self.folder / file["file"]).exists() and (self.folder / file["file"]).stat().st_size == file["bytes"]
            for file in record["files"]
        )

    def write(
        self,
        shard: int,
        tokens_nAL: np.ndarray,
        rows: Sequence[int],
        kept: Sequence[Record],
        skipped: list[UnreadableRow],
    ) -> None:
        """Of the rows that could be read, in order; `skipped` are the others of this shard."""
        name = f"shard-{shard:05d}"
        tensors = {"tokens": tokens_nAL.astype(self.encoding.dtype), "rows": np.array(rows, dtype=np.int64)}
        if self.encoding.labels:
            tensors["labels"] = np.array([record.label for record in kept], dtype=np.int32)
        files = []
        if any(record.caption is not None or record.more for record in kept):
            lines = [_line(record) for record in kept]
            tensors["places"] = np.cumsum([0, *map(len, lines)], dtype=np.int64)
            text = self.folder / f"{name}.jsonl"
            write_atomically(text, lambda temporary: temporary.write_bytes(b"".join(lines)))
            files.append(text)
        path = self.folder / f"{name}.safetensors"
        write_atomically(path, lambda temporary: save_file(tensors, temporary))
        labels = tensors.get("labels")
        record = {
            "rows": len(rows),
            "labels": None if labels is None or not len(labels) else [int(labels.min()), int(labels.max())],
            "files": [
                {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
                for file in (path, *files)
            ],
            "skipped": [{"key": error.key, "reason": error.reason} for error in skipped],
            "encoding": self.encoding.sha256,
        }
        write_text(self.folder / RECORDS / f"{name}.json", json.dumps(record, indent=2) + "\n")

    def finish(self) -> dict[str, Any] | None:
        """Write the manifest if all shards are there, whoever wrote them; None if some are not.

        Raises:
            ValueError: not one image could be read.
        """
        manifest = assemble(self.folder)
        if manifest["missing"]:
            return None
        del manifest["missing"]
        if not manifest["rows"]:
            first = manifest["skipped_rows"][0]
            raise ValueError(f"none of the images could be read; the first is {first['key']}: {first['reason']}")
        write_text(self.folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
        for torso in self.folder.glob(".shard-*.tmp"):  # of processes that were killed
            torso.unlink(missing_ok=True)
        return manifest


def assemble(folder: Path) -> dict[str, Any]:
    """What a manifest of the shards that are there says; `missing` is the number of those that are not."""
    encoding = _read_encoding(folder)
    records = [(shard, read_record(folder, shard, encoding)) for shard in range(encoding.shards)]
    there = [(shard, record) for shard, record in records if record is not None]
    ranges = [record["labels"] for _, record in there if record["labels"] is not None]
    skipped = [row for _, record in there for row in record["skipped"]]
    rows = sum(record["rows"] for _, record in there)
    return {
        "format": FORMAT,
        **asdict(encoding),
        "rows": rows,
        "images": rows * encoding.views,
        "label_range": [min(low for low, _ in ranges), max(high for _, high in ranges)] if ranges else None,
        "skipped": len(skipped),
        "skipped_rows": skipped,
        "shards": [
            {"first": encoding.rows_of(shard)[0], "rows": record["rows"], "files": record["files"]}
            for shard, record in there
        ],
        "missing": len(records) - len(there),
    }


def read_record(folder: Path, shard: int, encoding: Encoding) -> dict[str, Any] | None:
    """Raises ValueError when the shard was made by another encoding."""
    path = folder / RECORDS / f"shard-{shard:05d}.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text())
    if record["encoding"] != encoding.sha256:
        raise ValueError(
            f"{path} is of codes that were made with other settings; remove it, and the shard is made again"
        )
    return record


def _read_encoding(folder: Path) -> Encoding:
    try:
        return Encoding(**json.loads((folder / SETTINGS).read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / SETTINGS} does not say how token codes are made ({error})") from error


def _line(record: Record) -> bytes:
    return json.dumps({"caption": record.caption, "more": record.more}, default=str).encode() + b"\n"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
