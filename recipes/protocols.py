"""From the `protocol` of an evaluation section, or of a zoo entry, to the protocol itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from align.data.prompts import read_prompts
from align.zoo_entries import zoo_entry
from evaluation.classifier import load_classifier
from evaluation.prompted import PromptProtocol
from evaluation.protocol import Protocol, Reference, self_check
from recipes.run import pick_device

Section = Mapping[str, Any]
Row = Mapping[str, Any]


def make_protocol(
    setting: str | Section | DictConfig, *, images_per_prompt: int | None = None, max_prompts: int | None = None
) -> Protocol | PromptProtocol:
    """A protocol of classes, its real-against-real check run first, or one of prompts.

    Args:
        setting: `zoo:NAME`, the protocol that comes with a zoo entry, which may name another one's instead of its own so
            that their figures compare; or a section {kind: geneval, ...} with paths as they are.
        images_per_prompt, max_prompts: of prompts only: instead of the protocol's own number, and a subset of so many
            rows, spread evenly over all. Both show in the number of images, the latter also in the fingerprint.

    Raises:
        ValueError: an unknown protocol or kind, an entry without one, or settings that it does not have.
    """
    section, folder = _section(setting)
    kind = section.get("kind", "features")
    if kind not in _KINDS:
        raise ValueError(f"unknown kind of protocol {kind!r}; known: {', '.join(_KINDS)}")
    for name, number in (("images_per_prompt", images_per_prompt), ("max_prompts", max_prompts)):
        if number is not None and (kind == "features" or number < 1):
            raise ValueError(
                f"evaluation.{name} is {number}; it must be at least 1, and protocols of classes have none"
            )
    return _KINDS[kind](section, folder, images_per_prompt, max_prompts)


def make_class_protocol(reference: str) -> Protocol:
    """As `make_protocol`, where only one of classes will do. Raises ValueError for one of prompts."""
    protocol = make_protocol(reference)
    if not isinstance(protocol, Protocol):
        raise ValueError(
            f"{reference} comes with the protocol {protocol.name} of prompts; one of classes is needed here"
        )
    return protocol


def _section(setting: str | Section | DictConfig) -> tuple[dict[str, Any], Path]:
    """The settings of a protocol, and the folder that its paths are relative to."""
    if isinstance(setting, DictConfig):
        setting = OmegaConf.to_container(setting)  # type: ignore[assignment]
    if not isinstance(setting, str):
        return dict(setting), Path()
    if not setting.startswith("zoo:"):
        raise ValueError(f"unknown protocol {setting!r}; use zoo:NAME, the protocol of a zoo entry")
    folder = zoo_entry(setting.removeprefix("zoo:"))
    entry = json.loads((folder / "config.json").read_text())
    if "protocol" not in entry:
        raise ValueError(f"{setting} comes without a protocol; its config.json has {', '.join(entry)}")
    found = entry["protocol"]
    return _section(found) if isinstance(found, str) else (found, folder)


def _features(section: Section, folder: Path, images_per_prompt: int | None, max_prompts: int | None) -> Protocol:
    extractor = load_classifier(folder / section["extractor"]).to(pick_device()).eval()
    protocol = Protocol(section["name"], extractor, Reference.load(folder / section["reference"]))
    self_check(protocol)
    return protocol


def _geneval(section: Section, folder: Path, images_per_prompt: int | None, max_prompts: int | None) -> PromptProtocol:
    from evaluation.geneval.detectors import make_colors, make_detector
    from evaluation.geneval.prompts import make_prompts
    from evaluation.geneval.protocol import GenEvalProtocol

    _refuse_unknown(section, ("name", "prompts", "images_per_prompt", "detector", "colors", "held_out"))
    prompts = section.get("prompts")
    rows = make_prompts() if prompts is None else read_prompts(folder / prompts)

    def judge(part: Section) -> tuple[Any, Any]:
        if part.get("detector") is None:
            raise ValueError(
                f"a judge of kind geneval has no detector, but {dict(part)!r:.80}; name one: detector: {{name: NAME}}"
            )
        colors = part.get("colors")
        return (
            make_detector(**_with_path(part["detector"], folder)),
            None if colors is None else make_colors(**_with_path(colors, folder)),
        )

    detector, colors = judge(section)
    held_out = section.get("held_out")
    return GenEvalProtocol(
        section["name"],
        spread(rows, max_prompts),
        detector,
        colors,
        images_per_prompt=_number(section, images_per_prompt),
        held_out=None if held_out is None else judge(held_out),
    )


def _rewards(section: Section, folder: Path, images_per_prompt: int | None, max_prompts: int | None) -> PromptProtocol:
    from recipes.reward_protocol import make_reward_protocol

    _refuse_unknown(section, ("prompts", "suite", "rewards", "images_per_prompt"))
    prompts, rewards = section.get("prompts"), section.get("rewards")
    if not prompts or not rewards:
        raise ValueError(
            "this protocol is prompts and the rewards that judge their images; give both: prompts=FILE 'rewards=[{name: clip-score, kwargs: {model: MODEL}}]'"
        )
    source = folder / prompts if isinstance(prompts, str) else prompts
    protocol = make_reward_protocol(source, rewards, _number(section, images_per_prompt), section.get("suite"))
    return replace(protocol, rows=spread(protocol.rows, max_prompts))


# how the section of a kind is read: with the folder of its paths, images_per_prompt and max_prompts
_KINDS: dict[str, Callable[[Section, Path, int | None, int | None], Protocol | PromptProtocol]] = {
    "features": _features,
    "geneval": _geneval,
    "rewards": _rewards,
}


def spread(rows: Sequence[Row], number: int | None) -> Sequence[Row]:
    """All rows, or so many of them, evenly, so that they are of all tags where rows come tag by tag."""
    if number is None or number >= len(rows):
        return rows
    return [rows[order * len(rows) // number] for order in range(number)]


def _number(section: Section, images_per_prompt: int | None) -> int:
    number = images_per_prompt or section.get("images_per_prompt")
    if number is None:
        raise ValueError(
            f"the protocol of kind {section['kind']} does not say how many images a prompt gets; set evaluation.images_per_prompt"
        )
    return int(number)


def _refuse_unknown(section: Section, known: tuple[str, ...]) -> None:
    if unknown := sorted(section.keys() - {"kind", *known}):
        raise ValueError(
            f"a protocol of kind {section['kind']} has the unknown setting {unknown[0]!r}; known: {', '.join(known)}"
        )


def _with_path(part: Section, folder: Path) -> dict[str, Any]:
    """A part's settings, its path as a file of the folder if there is one."""
    path = part.get("path")
    if path is None or not (folder / path).exists():  # a name on the hub, or a path that its reader refuses
        return dict(part)
    return {**part, "path": str(folder / path)}
