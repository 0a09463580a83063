"""What there is to say of registered rewards without importing them: their source is read, not run."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, requires
from importlib.util import find_spec
from pathlib import Path

from rewards.environments import ENVIRONMENTS
from rewards.registry import registered

# modules of what ar-align always installs, and its own; what else a reward imports is optional
ALWAYS = {"torch", "transformers", "safetensors", "huggingface_hub", "numpy", "scipy", "PIL", "tqdm"}
OWN = ("rewards", "evaluation", "align")


@dataclass(frozen=True)
class Entry:
    """A registered reward.

    kind: image, group, distribution, or empty if its source does not tell.
    summary: the first paragraph of its docstring.
    home: `built in`, or the package and version that registers it.
    uses: optional packages that it imports somewhere, by the names that they are imported under.
    missing: those that are not installed, with what installs them.
    """

    name: str
    kind: str
    summary: str
    home: str
    value: str
    uses: tuple[str, ...]
    missing: dict[str, str]


def catalog() -> list[Entry]:
    """All registered rewards by name, in tenths of a second: nothing heavy is imported."""
    return [_entry(point) for _, points in sorted(registered().items()) for point in points]


def _entry(point: EntryPoint) -> Entry:
    home = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "built in"
    path = _source(point.module)
    if path is None:
        return Entry(point.name, "", f"its module {point.module} is not installed", home, point.value, (), {})
    tree = ast.parse(path.read_text())
    found = next((node for node in tree.body if getattr(node, "name", None) == point.attr), None)
    kind, summary = "", ""
    if isinstance(found, ast.FunctionDef | ast.ClassDef):
        kind = _kind(found)
        summary = " ".join((ast.get_docstring(found) or "").split("\n\n")[0].split())
    uses = tuple(sorted(set(_optional(tree, {path}))))
    missing = {name: installs(name) for name in uses if find_spec(name) is None}
    return Entry(point.name, kind, summary, home, point.value, uses, missing)


def installs(module: str) -> str:
    """What installs an optional module: `pip install 'ar-align[rewards]'`, an environment, or that of its own name."""
    for requirement in requires("ar-align") or []:
        package, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"](\w+)['\"]", requirement)
        # open_clip comes with open_clip_torch
        if package and extra and package[0].replace("-", "_").startswith(module) and extra[1] != "dev":
            return f"pip install 'ar-align[{extra[1]}]'"
    for name, environment in ENVIRONMENTS.items():
        if environment.module == module:
            return f"align rewards env {name}, and worker: {{environment: {name}}}"
    return f"pip install {module}"


def _kind(found: ast.FunctionDef | ast.ClassDef) -> str:
    marks = [ast.unparse(mark).rpartition(".")[2] for mark in found.decorator_list]
    if isinstance(found, ast.FunctionDef):
        return "group" if "groupwise" in marks else "image"
    methods = {node.name for node in found.body if isinstance(node, ast.FunctionDef)}
    if {"describe", "score", "advance"} <= methods:
        return "distribution"
    settings = [
        ast.unparse(node.value) for node in found.body if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
    ]
    return "group" if "'group'" in settings else "image"


def _source(module: str) -> Path | None:
    """The file of a module; packages around it are not imported, which `find_spec` of a dotted name would do."""
    first, *rest = module.split(".")
    spec = find_spec(first)
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        return Path(spec.origin) if spec.origin and not rest else None
    for folder in spec.submodule_search_locations:
        place = Path(folder, *rest)
        for path in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if path.is_file():
                return path
    return None


def _optional(tree: ast.Module, seen: set[Path]) -> Iterator[str]:
    """Names of optional packages that a module imports, also inside functions, also by way of modules of ours."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            modules = [node.module]
        else:
            continue
        for module in modules:
            first = module.split(".")[0]
            if first not in OWN:
                if first not in ALWAYS and first not in sys.stdlib_module_names:
                    yield first
            elif (path := _source(module)) is not None and path not in seen:
                seen.add(path)
                yield from _optional(ast.parse(path.read_text()), seen)
