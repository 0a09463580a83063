"""List the rewards that this machine knows: align rewards list"""

from __future__ import annotations

import shutil

from rewards.catalog import Entry, catalog


def main(words: list[str]) -> None:
    if words:
        raise ValueError(f"align rewards list takes nothing; got {' '.join(words)}. Try: align rewards show {words[0]}")
    entries = catalog()
    width = max(len(entry.name) for entry in entries) + 2
    room = max(40, shutil.get_terminal_size((120, 24)).columns - width - 14)
    for entry in entries:
        print(f"{entry.name:<{width}}{entry.kind:<14}{_cut(entry.summary.removeprefix('float32 [B]: '), room)}")
        if entry.home != "built in" or entry.uses:
            print(f"{'':<{width + 14}}{from_where(entry)}")
    print("\nYour own: path/to/file.py:function. To see one's settings: align rewards show NAME")


def from_where(entry: Entry) -> str:
    """`built in; uses open_clip`, and what to do where that is not installed."""
    parts = [entry.home]
    if entry.uses:
        parts.append(f"uses {', '.join(entry.uses)}")
    parts += [f"{name} is not installed: {how}" for name, how in entry.missing.items()]
    return "; ".join(parts)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 3].rsplit(" ", 1)[0] + "..."
