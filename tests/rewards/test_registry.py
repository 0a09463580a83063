"""A reward's name leads to its function, or to a message that says what was meant."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from rewards.registry import known_rewards, load_reward

IMAGES = torch.full((2, 4, 4, 3), 51, dtype=torch.uint8)
CONDITIONS = [{"label": 0}, {"label": 1}]


def write(path: Path, code: str) -> Path:
    path.write_text(textwrap.dedent(code))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(
        tmp_path / "mine.py",
        """
        from __future__ import annotations
        from dataclasses import dataclass

        @dataclass
        class Settings:
            scale: float = 1.0

        def redness(images, conditions, *, scale=Settings().scale):
            return scale * images[..., 0].float().mean(dim=(1, 2)) / 255

        def needs(images, conditions, *, weights):
            return [0.0] * len(images)

        number = 3
        """,
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that registers three rewards, one of them under a built-in's name, one that is not there."""
    write(tmp_path / "someones_rewards.py", "def hps(images, conditions):\n    return [0.25] * len(images)\n")
    info = tmp_path / "someones_rewards-1.0.dist-info"
    info.mkdir()
    write(info / "METADATA", "Metadata-Version: 2.1\nName: someones-rewards\nVersion: 1.0\n")
    write(
        info / "entry_points.txt",
        """\
        [align.rewards]
        hps = someones_rewards:hps
        gone = someones_rewards:gone
        jpeg-compressibility = someones_rewards:hps
        """,
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("someones_rewards", None)


def test_a_function_in_a_file(file: Path) -> None:
    assert torch.allclose(load_reward(f"{file}:redness")(IMAGES, CONDITIONS), torch.full((2,), 0.2))


def test_settings_are_bound(file: Path) -> None:
    assert torch.allclose(load_reward(f"{file}:redness", scale=5)(IMAGES, CONDITIONS), torch.ones(2))


def test_a_built_in_reward() -> None:
    assert load_reward("jpeg-compressibility")(IMAGES, CONDITIONS)[0] < 0
    assert {"classifier-log-prob", "jpeg-compressibility"} <= set(known_rewards())


@pytest.mark.usefixtures("package")
def test_a_reward_of_an_installed_package() -> None:
    assert load_reward("hps")(IMAGES, CONDITIONS) == [0.25, 0.25]
    assert "hps" in known_rewards()
    with pytest.raises(ValueError, match=r"unknown reward 'hsp'; known: .*hps.*; did you mean 'hps'\? Your own is"):
        load_reward("hsp")
    with pytest.raises(ValueError, match="'gone' is registered as someones_rewards:gone, which does not import"):
        load_reward("gone")
    with pytest.raises(ValueError, match="there are 2 rewards named 'jpeg-compressibility': .*someones_rewards:hps"):
        load_reward("jpeg-compressibility")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jpeg", r"unknown reward 'jpeg'; known: .*classifier-log-prob, .*jpeg-compressibility"),
        ("jpeg-compresibility", r"did you mean 'jpeg-compressibility'\?"),
        ("mine:redness", r"unknown reward 'mine:redness'; .*Your own is path/to/file.py:function"),
        ("missing.py:redness", r"there is no file missing.py to load 'redness' from"),
    ],
)
def test_an_unknown_name_is_answered_with_what_is_known(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_reward(name)


@pytest.mark.parametrize(
    ("suffix", "kwargs", "message"),
    [
        (":rednes", {}, r"has no 'rednes'; its functions: redness, needs; did you mean 'redness'\?"),
        (":number", {}, r"is of type int; a function of images and conditions is needed"),
        (
            ":redness",
            {"scal": 2},
            r"cannot be called .*got an unexpected keyword argument 'scal'; it takes \(images, cond",
        ),
        (":needs", {}, r"missing a required (keyword-only )?argument: 'weights'"),
    ],
)
def test_a_file_without_that_function_is_refused(
    file: Path, suffix: str, kwargs: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_reward(f"{file}{suffix}", **kwargs)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def redness(", "SyntaxError"),
        ("raise SystemExit(2)", "SystemExit: 2"),
    ],
)
def test_a_file_that_does_not_import_is_refused(tmp_path: Path, code: str, message: str) -> None:
    path = write(tmp_path / "broken.py", code)
    with pytest.raises(ValueError, match=f"broken.py does not import: {message}"):
        load_reward(f"{path}:redness")
