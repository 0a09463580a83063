"""Functions and classes in a user's own files, named as path/to/file.py:function."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any


def load_from_file(path: Path, attribute: str) -> Any:
    """What a file that ends in .py has under a name; the file is run each time.

    Raises:
        ValueError: no such file, one that does not import, or that lacks the name.
    """
    if not path.exists():
        raise ValueError(f"there is no file {path} to load {attribute!r} from; the path is relative to {Path.cwd()}")
    module_name = f"align_user_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look their module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise ValueError(f"{path} does not import: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        known = [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module_name and inspect.isfunction(value)
        ]
        near = difflib.get_close_matches(attribute, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{path} has no {attribute!r}; its functions: {', '.join(known) or 'none'}{hint}")
    return getattr(module, attribute)
