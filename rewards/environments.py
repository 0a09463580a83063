"""Python environments of their own, for rewards whose packages do not go with the trainer's.

Each is known by name, with every version pinned that was found to matter. It is built once into a folder:

    venv/             the environment, by Python's own venv and pip
    torch/            links to the trainer's torch and what that needs, so that 3 GB are not downloaded again
    environment.json  what it was built from; another list of pins makes it out of date

Needs the standard library only.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAMP = "environment.json"
SHARED = ("torch", "torchvision")
KEPT_LINES = 15  # of pip's, in an error
SHOWN = re.compile(r"Collecting|Building|Installing|Successfully")  # lines of pip's that say how far it is


@dataclass(frozen=True)
class Environment:
    """requirements: as pip takes them. module: what it is for, and what must import where it is sound."""

    requirements: tuple[str, ...]
    module: str


ENVIRONMENTS = {
    # image-reward 1.5 of 2023 imports what transformers has dropped since 4.56, and clip what setuptools has since 81;
    # it does not name clip at all. Tried with Python 3.11 and 3.12 and torch 2.14
    "image-reward": Environment(
        requirements=(
            "image-reward==1.5",
            "transformers==4.55.4",
            "tokenizers==0.21.4",
            "huggingface_hub==0.36.2",
            "diffusers==0.35.2",
            "accelerate==1.10.1",
            "datasets==5.0.1",
            "timm==0.6.13",
            "fairscale==0.4.13",
            "clip-anytorch==2.6.0",
            "setuptools==80.9.0",
            "numpy==2.4.6",
            "pillow==13.0.0",
        ),
        module="ImageReward",
    ),
}


def default_folder(name: str) -> Path:
    """Where an environment lies unless told otherwise: in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ar-align" / "environments" / name


def interpreter(name: str, folder: Path | None = None) -> Path:
    """The Python of an environment that was built.

    Raises:
        ValueError: an unknown name, or not built yet, not to the end, from other pins, or sharing a torch that is gone;
            says the command that builds it.
    """
    known = _find(name)
    place = folder or default_folder(name)
    python, stamp = _python(place), _read_stamp(place)
    command = f"align rewards env {name}" + (f" folder={folder}" if folder else "")
    if not python.exists() or not stamp.get("built"):
        raise ValueError(f"the environment {name} is not built at {place}; build it: {command}")
    if stamp["requirements"] != list(known.requirements):
        raise ValueError(f"the environment at {place} is from other pins; build it anew: {command}")
    links = place / "torch"
    if links.is_dir() and any(not link.exists() for link in links.iterdir()):  # those to metadata name a version
        raise ValueError(f"the torch that the environment at {place} shared was replaced; build it anew: {command}")
    return python


def build_environment(
    name: str, folder: Path | None = None, python: str | None = None, *, show: Callable[[str], None] = print
) -> Path:
    """Build an environment, unless it is there already; returns its Python.

    Args:
        folder: where; None is `default_folder`. What an earlier build left there is replaced.
        python: an interpreter to build it for. torch is then installed by pip, as any package. None is the running one,
            whose torch and torchvision, where it has them, are shared by links.
        show: gets a line now and then.

    Raises:
        ValueError: an unknown name, a folder that holds something else, or a step that failed, with its last lines.
    """
    known = _find(name)
    folder = (folder or default_folder(name)).absolute()
    if folder.is_dir() and any(folder.iterdir()) and not (folder / STAMP).exists():
        raise ValueError(
            f"{folder} holds something else than an environment; give an empty folder, or one that is not there"
        )
    shared = _shared_distributions(known) if python is None else {}
    wanted: dict[str, Any] = {
        "requirements": list(known.requirements),
        "python": python or sys.executable,
        "shared": {package: found.version for package, found in shared.items()},
        "built": True,
    }
    if _python(folder).exists() and _read_stamp(folder) == wanted:
        return _python(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_stamp(folder, {**wanted, "built": False})  # also says that the folder is ours
    show(f"building {name} at {folder}")
    _run([wanted["python"], "-m", "venv", "--clear", str(folder / "venv")], "making the environment", show)
    if (folder / "torch").exists():
        shutil.rmtree(folder / "torch")  # an earlier build's links, not what they lead to
    if shared:
        _link(shared, folder)
        show(f"torch {shared['torch'].version} is shared with {sys.executable}")
    # isolated (-I): a PYTHONPATH of the trainer's would hide what is missing here
    pip = [str(_python(folder)), "-I", "-m", "pip", "--disable-pip-version-check", "install", "--progress-bar", "off"]
    _run([*pip, *known.requirements, *(SHARED if not shared else ())], "installing its packages", show)
    _run([str(_python(folder)), "-I", "-c", f"import {known.module}"], "importing it", show)
    _write_stamp(folder, wanted)
    return _python(folder)


def _find(name: str) -> Environment:
    if name not in ENVIRONMENTS:
        raise ValueError(
            f"unknown environment {name!r}; known: {', '.join(ENVIRONMENTS)}. For another package make one yourself and name its interpreter: worker.python"
        )
    return ENVIRONMENTS[name]


def _python(folder: Path) -> Path:
    return folder / "venv" / "bin" / "python"


def _read_stamp(folder: Path) -> dict[str, Any]:
    stamp = folder / STAMP
    return json.loads(stamp.read_text()) if stamp.exists() else {}


def _write_stamp(folder: Path, content: dict[str, Any]) -> None:
    (folder / STAMP).write_text(json.dumps(content, indent=1) + "\n")


def _run(command: list[str], step: str, show: Callable[[str], None]) -> None:
    last: deque[str] = deque(maxlen=KEPT_LINES)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.rstrip())
            if SHOWN.match(line.lstrip()):
                show(f"  {line.strip():.100}")
    if process.returncode != 0:
        told = "\n  ".join(last)
        raise ValueError(f"{step} failed (exit code {process.returncode}): {' '.join(command)}\n  {told}")


def _shared_distributions(known: Environment) -> dict[str, importlib.metadata.Distribution]:
    """torch, torchvision and all that they need, by name, less what is pinned; nothing where one cannot be linked."""
    pinned = {_canonical(re.split(r"[^\w.-]", requirement)[0]) for requirement in known.requirements}
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(SHARED)
    while waiting:
        name = _canonical(waiting.pop())
        if name in found or name in pinned:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name in SHARED:
                return {}
            continue  # what is for another system, or an extra
        waiting += [re.split(r"[^\w.-]", requirement)[0] for requirement in found[name].requires or ()]
    return found if all(_top_entries(package) for package in found.values()) else {}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _link(shared: dict[str, importlib.metadata.Distribution], folder: Path) -> None:
    """Beside the environment and not in it: pip takes what it finds there for given, and does not try to replace it."""
    links = folder / "torch"
    links.mkdir()
    for package in shared.values():
        for entry in _top_entries(package):
            link = links / entry
            if not link.exists():  # several packages of NVIDIA's share a folder
                link.symlink_to(Path(str(package.locate_file(entry))))
    (site_packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site_packages / "shared_torch.pth").write_text(f"{links}\n")


def _top_entries(package: importlib.metadata.Distribution) -> list[str]:
    """Folders and files of a package in site-packages; none where its installer kept no list."""
    lines = (package.read_text("RECORD") or "").splitlines()
    return sorted({re.split("[/,]", line, maxsplit=1)[0] for line in lines} - {"..", "__pycache__"})
