"""List the shipped generators, or show the card of one: align zoo [NAME]"""

from __future__ import annotations

from align.zoo_entries import zoo_entries, zoo_entry


def main(names: list[str]) -> None:
    if not names:
        for name, folder in zoo_entries().items():
            size = sum(path.stat().st_size for path in folder.rglob("*")) / 1e6
            title = (folder / "card.md").read_text().splitlines()[0].lstrip("# ")
            print(f"{name:<20}{size:5.1f} MB  {title}")
    for name in names:
        print((zoo_entry(name) / "card.md").read_text())
