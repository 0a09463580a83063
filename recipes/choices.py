"""The YAML files that settings are composed of, by name. Without hydra, whose import takes a tenth of a second."""

from __future__ import annotations

from pathlib import Path

CONF = Path(__file__).parent / "conf"


def options(group: str) -> list[str]:
    """The choices of a config group: `experiment` -> mnist/cca, mnist/sft, ..."""
    folder = CONF / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
