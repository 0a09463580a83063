"""The aligned generator in a run's folder: generator.pt, generator.safetensors or the folder generator/, as the base came."""

from __future__ import annotations

import shutil
from pathlib import Path

from align.generators import Generator, PublishedGenerator

NAMES = ("generator.pt", "generator.safetensors", "generator")


def export(generator: Generator, folder: Path) -> Path:
    """Write the weights in the published format; where."""
    suffix = generator.suffix if isinstance(generator, PublishedGenerator) else ".pt"
    path = folder / f"generator{suffix}"
    generator.save_published(path)
    return path


def find_export(folder: Path) -> Path | None:
    """The exported weights of a run that got so far."""
    return next((folder / name for name in NAMES if (folder / name).exists()), None)


def resolve_checkpoint(checkpoint: str | Path | None) -> Path | None:
    """A checkpoint's path, where a run's folder means its aligned generator.

    Raises:
        FileNotFoundError: the folder of a run that has not exported anything.
    """
    if checkpoint is None:
        return None
    path = Path(checkpoint)
    if not path.is_dir():
        return path
    if (found := find_export(path)) is not None:
        return found
    if (path / "run.json").exists():
        raise FileNotFoundError(
            f"{path} holds no aligned generator ({', '.join(NAMES)}); is the run finished? Go on with resume=auto"
        )
    return path  # weights in the manner of Hugging Face


def copy_export(source: Path, target: Path) -> None:
    found = find_export(source)
    assert found is not None, f"{source} has no export"
    if found.is_dir():
        shutil.copytree(found, target / found.name, dirs_exist_ok=True)
    else:
        shutil.copyfile(found, target / found.name)
