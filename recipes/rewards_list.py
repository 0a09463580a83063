"""List the rewards that this machine knows: align rewards list"""

from __future__ import annotations

import shutil

from rewards.catalog import Entry, catalog

INSTALL = "pip install 'ar-align[rewards]'"


def main(words: list[str]) -> None:
    if words:
        raise ValueError(f"align rewards list takes nothing; got {' '.join(words)}. Try: align rewards show {words[0]}")
    entries = catalog()
    width = max(len(entry.name) for entry in entries) + 2
    room = max(40, shutil.get_terminal_size((120, 24)).columns - width - 14)
    for entry in entries:
        print(f"{entry.name:<{width}}{entry.kind:<14}{_cut(entry.summary, room)}")
        if entry.home != "built in" or entry.needs:
            print(f"{'':<{width + 14}}{from_where(entry)}")
    print("\nYour own: path/to/file.py:function. To see one's settings: align rewards show NAME")


def from_where(entry: Entry) -> str:
    """`built in; needs open_clip, installed`."""
    if not entry.needs:
        return entry.home
    if not entry.missing:
        return f"{entry.home}; needs {', '.join(entry.needs)}, installed"
    how = INSTALL if entry.home == "built in" else "install it"
    return f"{entry.home}; needs {', '.join(entry.needs)}; MISSING: {', '.join(entry.missing)} ({how})"


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 3].rsplit(" ", 1)[0] + "..."
