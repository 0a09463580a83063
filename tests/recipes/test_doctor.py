"""`align doctor` passes a sound machine, and says of each fault what to do."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import fails, run

from align.zoo_entries import zoo_entries
from recipes import doctor_machine, doctor_packages, doctor_rewards
from recipes.config import compose
from recipes.doctor_machine import look_at_disks, look_at_machine
from recipes.doctor_packages import EXTRAS, look_at_packages
from recipes.doctor_rewards import look_at_built_in, look_at_configured, look_at_zoo
from rewards.base import Reward
from rewards.findings import Finding
from rewards.probes import PROBES, stored_scores

Patch = pytest.MonkeyPatch


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    found = list(findings)
    for finding in found:
        assert bool(finding.advice) == (finding.level != "ok"), finding
    return {finding.what: finding for finding in found}


# --- packages


def packages(monkeypatch: Patch, *lines: str) -> dict[str, Finding]:
    monkeypatch.setattr(doctor_packages, "requires", lambda name: list(lines))
    return by_name(look_at_packages())


def test_what_is_installed_here_fits() -> None:
    found = by_name(look_at_packages())
    assert found["versions"].level == "ok"
    assert f"torch {version('torch')}, " in found["versions"].text
    assert found["imports"].text.startswith(
        f"align, rewards, evaluation, recipes from {Path(__file__).parents[2]}; torch"
    )
    assert not {"names", "installations"} & found.keys()


def test_packages_of_other_versions_or_missing_ones_are_errors(monkeypatch: Patch) -> None:
    found = packages(monkeypatch, "torch<2", "nowhere>=1", "numpy>=1", 'old>=1; python_version < "3"')
    assert (found["torch"].level, found["torch"].advice) == ("error", "pip install 'torch<2'")
    assert found["torch"].text == f"version {version('torch')}; <2 is needed"
    assert (found["nowhere"].level, found["nowhere"].text) == ("error", "not installed; >=1 is needed")
    assert not {"versions", "numpy", "old"} & found.keys()


def test_extras_may_be_missing_but_not_misfit(monkeypatch: Patch) -> None:
    told = SimpleNamespace(get_all=lambda key: ["lora", "trl", "t2i"])
    monkeypatch.setattr(doctor_packages, "metadata", lambda name: told)
    lines = ("numpy", 'nowhere; extra == "lora"', 'numpy<1; extra == "trl"', 'numpy>1; extra == "t2i"')
    found = packages(monkeypatch, *lines)
    assert found["extra lora"].level == "ok"
    assert found["extra lora"].text.startswith("not installed: nowhere, for adapters")
    assert found["extra lora"].text.endswith("(pip install 'ar-align[lora]')")
    assert found["extra trl"].level == "warning"
    assert "numpy: version" in found["extra trl"].text
    assert found["extra t2i"].text.startswith("numpy ")
    assert (found["extra mnist"].level, "packed before" in found["extra mnist"].text) == ("warning", True)


def test_the_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"].keys() - {"dev"} <= EXTRAS.keys()


def test_a_file_of_a_packages_name_is_told(monkeypatch: Patch, tmp_path: Path) -> None:
    Path("rewards.py").touch()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    found = by_name(look_at_packages())
    assert found["names"].text == f"{tmp_path / 'rewards.py'} has the name of the package rewards"


def test_packages_from_two_places_are_an_error(monkeypatch: Patch, tmp_path: Path) -> None:
    real = doctor_packages._folder
    monkeypatch.setattr(doctor_packages, "_folder", lambda name: tmp_path if name == "evaluation" else real(name))
    found = by_name(look_at_packages())
    assert found["imports"].level == "error"
    assert f"evaluation from {tmp_path}" in found["imports"].text


def test_a_second_installation_is_told(monkeypatch: Patch, tmp_path: Path) -> None:
    info = tmp_path / "ar_align-0.0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ar-align\nVersion: 0.0.1\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    found = by_name(look_at_packages())
    assert "ar-align is there 2 times" in found["installations"].text
    assert str(tmp_path) in found["installations"].text


# --- machine


def test_this_machine_is_described(tmp_path: Path) -> None:
    found = by_name([*look_at_machine(), *look_at_disks(tmp_path / "runs" / "new")])
    assert {"python", "memory", "disk of output_dir", "disk of downloads", "disk of temporaries", "hub"} <= found.keys()
    assert found["disk of output_dir"].text.startswith(f"{tmp_path / 'runs' / 'new'}: ")


def test_little_memory_is_told(monkeypatch: Patch) -> None:
    monkeypatch.setattr(doctor_machine, "_free_memory", lambda: 3.9e9)
    assert by_name(look_at_machine())["memory"].level == "warning"
    monkeypatch.setattr(doctor_machine, "_free_memory", lambda: 4.1e9)
    assert by_name(look_at_machine())["memory"].level == "ok"


@pytest.mark.parametrize(
    ("cuda", "driver", "level", "advice"),
    [
        (None, True, "warning", "a build for CPUs: install one for CUDA"),
        ("13.0", True, "warning", "torch is built for CUDA 13.0: update the driver"),
        ("13.0", False, "ok", ""),
    ],
)
def test_a_gpu_that_torch_does_not_see(
    monkeypatch: Patch, tmp_path: Path, cuda: str | None, driver: bool, level: str, advice: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(doctor_machine, "DRIVER", tmp_path if driver else tmp_path / "none")
    found = by_name(look_at_machine())["gpu"]
    assert found.level == level
    assert advice in found.advice


@pytest.mark.parametrize(("free", "level"), [(0.4e9, "error"), (9e9, "warning"), (11e9, "ok")])
def test_disks_are_to_have_room(monkeypatch: Patch, tmp_path: Path, free: float, level: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    assert by_name(look_at_disks(tmp_path))["disk of output_dir"].level == level


def test_disks_are_to_be_writable(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.access", lambda place, mode: False)
    found = by_name(look_at_disks(tmp_path))["disk of output_dir"]
    assert (found.level, found.text) == ("error", f"{tmp_path} cannot be written")


@pytest.mark.gpu
def test_a_gpu_is_described() -> None:
    found = by_name(look_at_machine())["gpu 0"]
    assert found.level in ("ok", "warning")
    assert torch.cuda.get_device_name(0) in found.text


# --- rewards


def test_the_shipped_generators_have_the_weights_of_their_results(monkeypatch: Patch) -> None:
    found = by_name(look_at_zoo())
    assert {name: finding.level for name, finding in found.items()} == dict.fromkeys(zoo_entries(), "ok")
    monkeypatch.setattr(doctor_rewards, "sha256_of_tensors", lambda tensors: "0" * 64)
    assert {finding.level for finding in look_at_zoo()} == {"error"}
    monkeypatch.setattr(doctor_rewards, "load_generator", Raise(FileNotFoundError("generator.pt is not there")))
    assert [finding.text for finding in look_at_zoo()] == ["generator.pt is not there"] * len(zoo_entries())


class Raise:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *arguments: Any) -> Any:
        raise self.error


def built_in(monkeypatch: Patch, tmp_path: Path, probe: Callable[..., Any], missing: dict[str, str]) -> Finding:
    monkeypatch.setattr(doctor_rewards, "PROBES", {"clip-score": PROBES["clip-score"]})
    monkeypatch.setattr(doctor_rewards, "probe", probe)
    entry = SimpleNamespace(name="clip-score", home="built in", missing=missing)
    monkeypatch.setattr(doctor_rewards, "catalog", lambda: [entry])
    return by_name(look_at_built_in(tmp_path))["clip-score"]


def test_built_in_rewards_are_compared_with_what_is_stored(monkeypatch: Patch, tmp_path: Path) -> None:
    stored = stored_scores()["clip-score"]
    assert built_in(monkeypatch, tmp_path, lambda *_: stored, {}).level == "ok"
    other = built_in(monkeypatch, tmp_path, lambda *_: [stored[0] + 0.01, stored[1]], {})
    assert other.level == "error"
    assert f"stored is {stored[0]:.4g}" in other.text
    lacking = built_in(monkeypatch, tmp_path, Raise(ValueError("no")), {"open_clip": "pip install it"})
    assert (lacking.level, lacking.text) == ("warning", "not tried without open_clip")
    assert "pip install it" in lacking.advice
    broken = built_in(monkeypatch, tmp_path, Raise(AttributeError("gone")), {})
    assert (broken.level, broken.text) == ("error", "AttributeError: gone")
    assert by_name(look_at_built_in(tmp_path))["vlm-judge"].text == "not tried: it asks a server"


CODE = """
import itertools
calls = itertools.count()

def red(images, conditions):
    assert images.shape[1] == {size}
    return images[..., 0].float().mean(dim=(1, 2))

def chance(images, conditions):
    return [float(next(calls)) for _ in images]

def none(images, conditions):
    return [float("nan") for _ in images]

def words(images, conditions):
    return [len(row["prompt"]) for row in conditions]
"""


def configured(*words: str) -> dict[str, Finding]:
    return by_name(look_at_configured(compose("train", list(words))))


def named(*names: str) -> str:
    return "reward.rewards=[" + ", ".join(f'{{name: "mine.py:{name}"}}' for name in names) + "]"


def test_the_rewards_of_a_training_are_tried() -> None:
    Path("mine.py").write_text(CODE.format(size=28))
    found = configured("experiment=mnist/grpo", named("red", "chance", "none", "words"))
    assert found["your mine.py:red"].text.endswith("on the stored images, twice the same")
    assert {name: finding.level for name, finding in found.items()} == {
        "your mine.py:red": "ok",
        "your mine.py:chance": "warning",
        "your mine.py:none": "warning",
        "your mine.py:words": "error",  # the shipped generator draws classes
    }
    assert configured("experiment=mnist/grpo", named("gone"))["reward"].level == "error"
    assert configured("experiment=mnist/cca") == {}


def test_the_rewards_of_prompts_see_the_first_ones() -> None:
    Path("mine.py").write_text(CODE.format(size=64))
    Path("prompts.txt").write_text("a cat\n")
    files = ["generator.checkpoint=g.pt", "generator.text_encoder=t5", "data.prompts=prompts.txt"]
    found = configured("generator=llamagen-t2i", "data=prompts", *files, named("red", "words"))
    assert found["your mine.py:red"].level == "ok"
    assert found["your mine.py:words"].text.startswith("5, 5 in ")


def test_the_rewards_of_classes_see_their_names() -> None:
    Path("mine.py").write_text(CODE.replace('row["prompt"]', 'row["class_name"]').format(size=28))
    Path("names.txt").write_text("\n".join(["nil", "o", *"abcdefgh"]))
    found = configured("experiment=mnist/grpo", "reward.class_names=names.txt", named("words"))
    assert found["your mine.py:words"].text.startswith("3, 1 in ")
    Path("names.txt").write_text("nil")
    found = configured("experiment=mnist/grpo", "reward.class_names=names.txt", named("words"))
    assert found["reward"].text == "names.txt names 1 classes, and the generator has 10; give one name a line"


def test_workers_are_asked_how_they_are() -> None:
    states = [("one", "ready"), ("two", "loading"), ("three", "gone: killed")]

    class Worker:
        def health(self) -> list[tuple[str, str]]:
            return states

    found = [finding.level for finding in doctor_rewards._workers(Reward("mine", Worker()))]  # type: ignore[arg-type]
    assert found == ["ok", "warning", "error"]


# --- the command


def test_an_error_is_the_commands(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("recipes.doctor.look_at_built_in", lambda folder: [])
    run("doctor", "experiment=mnist/grpo")
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("ok        your classifier-log-prob    ")
    assert "error" not in said[-1]
    error = fails(capsys, "doctor", 'reward.rewards=[{name: "none.py:f"}]')
    assert error == "error: to be mended: reward\n"
    assert "unknown key 'sed'" in fails(capsys, "doctor", "sed=1")


@pytest.mark.slow
def test_a_sound_installation_passes_and_its_scores_can_be_stored(capsys: pytest.CaptureFixture[str]) -> None:
    run("doctor")
    said = capsys.readouterr().out
    assert "your " not in said
    assert all(f"ok        {name} " in said for name in PROBES)
    run("doctor", "record=scores.json")
    assert json.loads(Path("scores.json").read_text()).keys() == stored_scores().keys()
