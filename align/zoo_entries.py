"""The shipped generators: where their folders are."""

from __future__ import annotations

from pathlib import Path

ZOO = Path(__file__).parent / "zoo"


def zoo_entries() -> dict[str, Path]:
    """Names and folders of the shipped generators."""
    return {folder.parent.name: folder.parent for folder in sorted(ZOO.glob("*/config.json"))}


def zoo_entry(name: str) -> Path:
    """Folder of a zoo entry, by name or by path (of one rebuilt by `align pretrain`).

    Raises:
        ValueError: neither a known name nor a folder with a config.json.
    """
    if name in (entries := zoo_entries()):
        return entries[name]
    if (Path(name) / "config.json").exists():
        return Path(name)
    raise ValueError(
        f"unknown zoo entry {name!r}; known: {', '.join(entries) or 'none'}, or the folder of one made by `align pretrain`. Try: align zoo"
    )
