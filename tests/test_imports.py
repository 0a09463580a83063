"""Who may enter whom: the rules of the house, checked on every import statement, also those inside of functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("align", "rewards", "evaluation", "recipes")
# room -> the rooms of ours that it may import, besides itself; the longest prefix of a module's name decides
RULES: dict[str, set[str]] = {
    "align": set(),
    "align.types": set(),
    "align.files": set(),
    "align.fingerprints": set(),
    "align.tensor_files": {"align.files"},
    "align.progress": set(),
    "align.images": {"align.files"},
    "align.tokenizers": set(),
    "align.objectives": {"align.types"},
    "align.text": {"align.files"},
    "align.generators": {"align.types", "align.tensor_files", "align.text", "align.tokenizers"},
    "align.sampling": {"align.types", "align.generators"},
    "align.shapes": set(),
    "align.zoo_entries": set(),
    "align.checkpoints": {
        "align.zoo_entries",
        "align.shapes",
        "align.tensor_files",
        "align.generators",
        "align.text",
        "align.tokenizers",
    },
    "align.data": {"align.files", "align.fingerprints", "align.checkpoints", "align.sampling"},
    "align.training": {
        *(
            "align.types",
            "align.files",
            "align.tensor_files",
            "align.images",
            "align.progress",
            "align.tokenizers",
            "align.generators",
        ),
        *("align.sampling", "align.objectives", "align.checkpoints", "align.data"),
        # the contract of rewards and the calling of them, but no reward
        *("rewards.base", "rewards.scoring", "rewards.background", "rewards.combine", "rewards.failures"),
    },
    "evaluation": set(),
    "rewards": {"evaluation"},
    "rewards.foreign": set(),
    "recipes": {"align", "rewards", "evaluation"},
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield node.module or ""


def room(module: str, rooms: set[str] | dict[str, set[str]]) -> str | None:
    fitting = [name for name in rooms if module == name or module.startswith(name + ".")]
    return max(fitting, key=len, default=None)


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_no_arrow_runs_back_up(module: str, path: Path) -> None:
    own = room(module, RULES)
    assert own is not None, f"{module} has no room in the plan"
    if module == "align":
        return  # the front door names everything, lazily
    for target in imports(path):
        if target.split(".")[0] not in PACKAGES:
            continue
        allowed = room(target, {own, *RULES[own]})
        assert allowed is not None, f"{module} may not import {target}; allowed: {own}, {', '.join(sorted(RULES[own]))}"


def test_init_files_hold_a_docstring_and_exports_only() -> None:
    for module, path in modules():
        if path.name != "__init__.py" or module == "align":
            continue
        body = ast.parse(path.read_text()).body
        assert isinstance(body[0], ast.Expr), f"{path} has no docstring"
        for node in body[1:]:
            is_all = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
            assert is_all or isinstance(node, (ast.Import, ast.ImportFrom)), f"{path} holds code"


def test_no_module_outgrows_its_room() -> None:
    long = {str(path): len(path.read_text().splitlines()) for _, path in modules()}
    assert {path: lines for path, lines in long.items() if lines > 400} == {}


def test_help_does_not_import_torch() -> None:
    """`align --help` is to answer at once; `import align` is to cost little on top of torch."""
    check = "import sys; from recipes.cli import main; main(['--help']); main(['tain']); sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, check=False).returncode == 0
    check = "import sys, align; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'hydra', 'evaluation')))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, check=False).returncode == 0
    check = "import sys; from align import load_generator; sys.exit(any(name in sys.modules for name in ('transformers', 'accelerate', 'hydra')))"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, check=False).returncode == 0
