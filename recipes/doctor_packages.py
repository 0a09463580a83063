"""What `align doctor` sees of what is installed: versions, and where modules are imported from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distributions, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from packaging.requirements import Requirement

from rewards.findings import Finding, error, ok, warning

# the extras of pyproject.toml
EXTRAS = {
    "mnist": "the digits that the shipped generators were made from",
    "data": "parquet files and datasets as sources of images",
    "lora": "adapters: trainer.lora_rank",
    "fid": "Inception-2015, the network of FID",
    "lpips": "the perceptual distance of VA-pi and of pixel-reconstruction",
    "t2i": "captions for generators that read T5",
    "trl": "the bridge to TRL",
    "rewards": "rewards with published models: CLIP, HPS, OCR",
}
OWN = ("align", "rewards", "evaluation", "recipes")


def look_at_packages() -> Iterator[Finding]:
    yield from _origins()
    wanted = [Requirement(line) for line in requires("ar-align") or []]
    always = [requirement for requirement in wanted if _applies(requirement, "")]
    wrong = [finding for requirement in always if (finding := _misfit(requirement)) is not None]
    yield from wrong
    if not wrong:
        shown = ("torch", "transformers", "accelerate", "numpy")
        yield ok(
            "versions", f"{len(always)} packages fit: {', '.join(f'{name} {version(name)}' for name in shown)}, ..."
        )
    told = metadata("ar-align").get_all("Provides-Extra") or []
    for extra, purpose in EXTRAS.items():
        if extra in told:
            own = [part for part in wanted if _applies(part, extra) and part not in always]
            yield from _extra(extra, purpose, own)
        else:
            text = f"what is installed was packed before there was {extra!r}, for {purpose}"
            yield warning(f"extra {extra}", text, "install ar-align anew (pip install --editable . in its source tree)")


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _misfit(requirement: Requirement) -> Finding | None:
    """A package that has to be there, and is not or is of another version."""
    installed = _version(requirement.name)
    if installed is None:
        text = f"not installed; {requirement.specifier} is needed"
    elif not requirement.specifier.contains(installed, prereleases=True):
        text = f"version {installed}; {requirement.specifier} is needed"
    else:
        return None
    return error(requirement.name, text, f"pip install '{requirement.name}{requirement.specifier}'")


def _extra(extra: str, purpose: str, wanted: list[Requirement]) -> Iterator[Finding]:
    what = f"extra {extra}"
    missing = [requirement.name for requirement in wanted if _version(requirement.name) is None]
    present = [requirement for requirement in wanted if requirement.name not in missing]
    wrong = [finding for requirement in present if (finding := _misfit(requirement)) is not None]
    for finding in wrong:
        yield warning(what, f"{finding.what}: {finding.text}, for {purpose}", finding.advice)
    if missing:
        yield ok(what, f"not installed: {', '.join(missing)}, for {purpose} (pip install 'ar-align[{extra}]')")
    elif not wrong:
        yield ok(what, f"{', '.join(f'{part.name} {_version(part.name)}' for part in wanted)}: {purpose}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _origins() -> Iterator[Finding]:
    """Our packages come from one place, and nothing on the way hides them."""
    folders = {name: _folder(name) for name in (*OWN, "torch")}
    homes = {name: folder.parent for name, folder in folders.items() if name in OWN and folder is not None}
    if len(set(homes.values())) == 1 and len(homes) == len(OWN):
        yield ok("imports", f"{', '.join(OWN)} from {homes['align']}; torch from {folders['torch']}")
    else:
        text = ", ".join(f"{name} from {folders[name] or 'a file that is no package'}" for name in OWN)
        yield error("imports", text, "rename or remove the one that is not ours; see PYTHONPATH and the working folder")
    copies = {_home(found) for found in distributions(name="ar-align")}
    if len(copies) > 1:
        yield warning(
            "installations",
            f"ar-align is there {len(copies)} times: {', '.join(sorted(copies))}",
            "uninstall all and install one",
        )
    for name in (*OWN, "torch"):
        for place in _hidden(name, folders[name]):
            yield warning(
                "names", f"{place} has the name of the package {name}", "rename it, lest one be taken for the other"
            )


def _home(found: Distribution) -> str:
    """Where an installation's modules are; of an editable one, the source tree."""
    place = json.loads(found.read_text("direct_url.json") or "{}")
    if place.get("dir_info", {}).get("editable"):
        return str(Path(url2pathname(urlparse(place["url"]).path)).resolve())
    return str(Path(str(found.locate_file(""))).resolve())


def _folder(name: str) -> Path | None:
    spec = find_spec(name)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))).resolve() if places else None


def _hidden(name: str, taken: Path | None) -> Iterator[Path]:
    """Other modules of a package's name on the way that imports look."""
    for entry in dict.fromkeys(Path(entry or ".").resolve() for entry in sys.path):
        for place in (entry / name / "__init__.py", entry / f"{name}.py"):
            if place.is_file() and place.parent != taken:
                yield place
