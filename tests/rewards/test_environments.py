"""Environments are built once, anew when their pins change, and say what went wrong with pip's own words."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from recipes.rewards_env import main
from rewards import environments
from rewards.environments import STAMP, Environment, build_environment, default_folder, interpreter
from rewards.registry import load_reward


def wheel(folder: Path, version: str) -> str:
    """A package of one line, as a file that pip installs without a network."""
    path = folder / f"tiny_reward-{version}-py3-none-any.whl"
    info = f"tiny_reward-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_reward.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-reward\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return str(path)


def know(monkeypatch: pytest.MonkeyPatch, *requirements: str, module: str = "tiny_reward") -> None:
    monkeypatch.setattr(environments, "ENVIRONMENTS", {"tiny": Environment(requirements, module)})


def pretend_built(folder: Path, requirements: list[str], *, built: bool = True) -> Path:
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    (folder / STAMP).write_text(json.dumps({"requirements": requirements, "built": built}))
    return python


def test_an_interpreter_is_there_or_the_command_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    know(monkeypatch, "a==1")
    with pytest.raises(
        ValueError, match=f"is not built at {tmp_path}; build it: align rewards env tiny folder={tmp_path}"
    ):
        interpreter("tiny", tmp_path)
    python = pretend_built(tmp_path, ["a==1"])
    assert interpreter("tiny", tmp_path) == python
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "torch-2.14.1.dist-info").symlink_to(tmp_path / "gone")
    with pytest.raises(
        ValueError, match="the torch that the environment at .* shared was replaced; build it anew: align"
    ):
        interpreter("tiny", tmp_path)
    with pytest.raises(ValueError, match="unknown environment 'tinny'; known: tiny"):
        interpreter("tinny")


@pytest.mark.parametrize(
    ("requirements", "built", "message"), [(["a==2"], True, "other pins"), (["a==1"], False, "not built")]
)
def test_a_stale_or_half_built_environment_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, requirements: list[str], built: bool, message: str
) -> None:
    know(monkeypatch, "a==1")
    pretend_built(tmp_path, requirements, built=built)
    with pytest.raises(ValueError, match=message):
        interpreter("tiny", tmp_path)


def test_it_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    know(monkeypatch, "a==1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder("tiny") == tmp_path / "ar-align" / "environments" / "tiny"
    with pytest.raises(ValueError, match=r"is not built at .*; build it: align rewards env tiny$"):
        interpreter("tiny")


def test_a_reward_of_an_environment_says_where_it_runs() -> None:
    with pytest.raises(
        ValueError, match=r"`align rewards env image-reward`, and .* worker: {environment: image-reward}"
    ):
        load_reward("image-reward-package")


def test_a_folder_of_something_else_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    know(monkeypatch, "a==1")
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(ValueError, match="holds something else than an environment"):
        build_environment("tiny", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_is_pinned_is_not_shared() -> None:
    """torch needs setuptools and torchvision numpy, of which the environment has its own."""
    shared = environments._shared_distributions(Environment(("setuptools==80.9.0", "Jinja2==3.1"), ""))
    assert "torch" not in shared or ({"torchvision", "sympy", "filelock"} < set(shared))
    assert not {"setuptools", "jinja2"} & set(shared)


@pytest.mark.slow
def test_it_is_built_once_and_anew_for_other_pins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "environment"
    know(monkeypatch, wheel(tmp_path, "1.0"))
    main(["tiny", f"folder={folder}"])
    assert "Successfully installed tiny-reward-1.0" in capsys.readouterr().out
    python = interpreter("tiny", folder)
    told = "import tiny_reward, torch, pathlib; print(tiny_reward.version, pathlib.Path(torch.__file__).resolve())"
    import torch

    def answer() -> str:
        return subprocess.run([python, "-c", told], capture_output=True, text=True, check=True).stdout.strip()

    assert answer() == f"1.0 {Path(torch.__file__).resolve()}"
    shown: list[str] = []
    assert build_environment("tiny", folder, show=shown.append) == python
    assert shown == []
    know(monkeypatch, wheel(tmp_path, "1.1"))
    build_environment("tiny", folder, show=shown.append)
    assert shown and answer().startswith("1.1")


@pytest.mark.slow
def test_a_step_that_fails_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    know(monkeypatch, wheel(tmp_path, "1.0"), module="no_such_package")
    with pytest.raises(ValueError, match=r"(?s)importing it failed .*No module named 'no_such_package'"):
        build_environment("tiny", folder, show=lambda line: None)
    with pytest.raises(ValueError, match="is not built"):
        interpreter("tiny", folder)
    know(monkeypatch, str(tmp_path / "absent-1.0-py3-none-any.whl"))
    with pytest.raises(ValueError, match=r"(?s)installing its packages failed \(exit code 1\).*absent-1.0"):
        build_environment("tiny", folder, show=lambda line: None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["folder=x"], "which environment"),
        (["image-reward", "where=x"], "unknown setting 'where'; .* folder and python"),
    ],
)
def test_the_command_takes_a_name_and_two_settings(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main(words)


def test_the_command_lists_what_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    main([])
    assert "image-reward        the environment image-reward is not built" in capsys.readouterr().out
