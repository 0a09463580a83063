"""Caption features on disk, so that training need not hold a text encoder of many gigabytes beside the generator.

A store is a folder: store.json says which encoder its features are of, and each features-HASH.safetensors holds those
of some captions, valid positions only. Files are only ever added, each whole and named by what it holds, so that any
number of processes may read while others write.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from align.files import write_atomically, write_text
from align.text.features import CaptionFeatures, EncoderFacts, prepare_captions
from align.text.t5 import T5TextEncoder

STORE_FILE = "store.json"
SHARD_CAPTIONS = 1024  # captions of a file; what is lost at most when a process is killed
_KEY_BYTES = 16


def caption_key(text: str) -> bytes:
    """Identity of a caption as the encoder reads it."""
    return hashlib.blake2b(text.encode(), digest_size=_KEY_BYTES).digest()


class FeatureStore:
    """The features of one encoder. Reading is memory-mapped; an index of some 200 bytes a caption stays in memory.

    Args:
        facts: of the encoder that will write; the store is made if there is none. None opens one to read.

    Raises:
        FileNotFoundError: no store to read.
        ValueError: a store of another encoder, or a damaged file in it.
    """

    def __init__(self, folder: Path | str, facts: EncoderFacts | None = None) -> None:
        self.folder = Path(folder)
        description = self.folder / STORE_FILE
        if not description.exists():
            if facts is None:
                raise FileNotFoundError(f"no caption features in {self.folder}; `align data captions` makes them")
            write_text(description, json.dumps(asdict(facts), indent=2) + "\n")
        self.facts = _read_facts(description)
        if facts is not None and facts != self.facts:
            differing = [name for name, value in asdict(facts).items() if value != getattr(self.facts, name)]
            raise ValueError(
                f"{self.folder} holds features of another text encoder: other {', '.join(differing)}; choose another folder, or delete this one"
            )
        self._shards: dict[str, Any] = {}
        self._rows: dict[bytes, tuple[str, int, int]] = {}  # key -> file, first and last + 1 position
        self.refresh()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def __getitem__(self, key: bytes) -> Tensor:
        """The features [n, D] of a caption by its key, on the CPU."""
        shard, start, end = self._rows[key]
        return self._shards[shard][start:end]

    def refresh(self) -> None:
        """Look for files that were added since."""
        for path in sorted(self.folder.glob("features-*.safetensors")):
            if path.name not in self._shards:
                self._open(path)

    def append(self, features: Mapping[bytes, Tensor]) -> None:
        """Add a file with the features [n, D] of some captions, by their keys."""
        keys = list(features)
        rows = [features[key].detach().cpu() for key in keys]
        tensors = {
            "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, _KEY_BYTES),
            "ends": torch.tensor([len(row) for row in rows]).cumsum(dim=0),
            "features": torch.cat(rows),
        }
        path = self.folder / f"features-{hashlib.sha256(b''.join(keys)).hexdigest()[:16]}.safetensors"
        write_atomically(path, lambda temporary: save_file(tensors, temporary, _described(self.facts)))
        self._open(path)

    def _open(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
            keys, ends = file.get_tensor("keys"), file.get_tensor("ends").tolist()
            self._shards[path.name] = file.get_slice("features")
            facts = file.metadata()
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged ({error}); delete it, and make the features of its captions again"
            ) from error
        if facts != _described(self.facts):
            raise ValueError(f"{path} holds features of another text encoder than {STORE_FILE} says; take it out")
        content = keys.numpy().tobytes()
        for row, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            self._rows[content[row * _KEY_BYTES : (row + 1) * _KEY_BYTES]] = (path.name, start, end)


def _described(facts: EncoderFacts) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(facts).items()}


def _read_facts(path: Path) -> EncoderFacts:
    try:
        return EncoderFacts(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not the description of caption features: {error}") from error


class CachedTextEncoder:
    """A text encoder whose features are looked up in a store; what is missing is encoded and added.

    New features are written in files of 1,024 captions, and the rest by `flush`, or when the process ends.

    Args:
        encoder: None where the store holds all that will be asked for, and no encoder is to take up memory.
    """

    def __init__(self, encoder: T5TextEncoder | None, store: FeatureStore) -> None:
        if encoder is not None and encoder.facts != store.facts:
            raise ValueError(f"{store.folder} holds features of another text encoder; open it with this one's facts")
        self.encoder = encoder
        self.store = store
        self._pending: dict[bytes, Tensor] = {}
        weakref.finalize(self, _write, store, self._pending)

    @property
    def max_length(self) -> int:
        """T of the features."""
        return self.store.facts.max_length

    @property
    def width(self) -> int:
        """D of the features."""
        return self.store.facts.width

    def encode(self, captions: Sequence[str]) -> CaptionFeatures:
        """Features on the CPU, T = the encoder's max_length.

        Raises:
            ValueError: none at all, one that is no text, or one that the store lacks and there is no encoder.
        """
        keys, _ = self._make_known(captions)
        rows = [self._pending[key] if key in self._pending else self.store[key] for key in keys]
        return CaptionFeatures.of(rows, self.max_length)

    def add(self, captions: Sequence[str]) -> int:
        """See that the features of all captions are there; how many had to be made."""
        return self._make_known(captions)[1]

    def flush(self) -> None:
        """Write what is not on disk yet."""
        _write(self.store, self._pending)

    def _make_known(self, captions: Sequence[str]) -> tuple[list[bytes], int]:
        """Each caption's key, and how many features had to be made."""
        texts = prepare_captions(captions, clean=self.store.facts.clean)
        keys = [caption_key(text) for text in texts]
        missing = self._missing(keys)
        if missing:
            self.store.refresh()  # another process may have made them since
            missing = self._missing(keys)
        if not missing:
            return keys, 0
        if self.encoder is None:
            raise ValueError(
                f"{self.store.folder} has no features of {len(missing)} of {len(set(keys))} captions, the first of them is "
                f"{captions[missing[0]][:80]!r}; make them: align data captions source=FILE text_encoder=PATH output_dir={self.store.folder}"
            )
        made = self.encoder.encode_rows([texts[row] for row in missing])
        self._pending.update(
            (keys[row], features.to("cpu", copy=True)) for row, features in zip(missing, made, strict=True)
        )
        if len(self._pending) >= SHARD_CAPTIONS:
            self.flush()
        return keys, len(missing)

    def _missing(self, keys: Sequence[bytes]) -> list[int]:
        """The first row of each unknown key."""
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        return sorted(row for key, row in first.items() if key not in self.store and key not in self._pending)


def _write(store: FeatureStore, pending: dict[bytes, Tensor]) -> None:
    if pending:
        store.append(pending)
        pending.clear()


def load_text_encoder(
    path: Path | str,
    *,
    features: Path | str | None = None,
    max_length: int = 120,
    clean: bool = True,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> T5TextEncoder | CachedTextEncoder:
    """A text encoder from a folder with T5, or from one with the features that `align data captions` made.

    Args:
        features: a folder that what T5 makes is looked up in and added to.
        max_length, clean, device, dtype: of T5; see `T5TextEncoder`. Made features have their own.

    Raises:
        FileNotFoundError, ValueError: see `T5TextEncoder` and `FeatureStore`.
    """
    if (Path(path) / STORE_FILE).exists():
        return CachedTextEncoder(None, FeatureStore(path))
    encoder = T5TextEncoder(path, max_length=max_length, clean=clean, device=device, dtype=dtype)
    return encoder if features is None else CachedTextEncoder(encoder, FeatureStore(features, encoder.facts))
