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
from evaluation.features.make import make_extractor
from evaluation.measures import ScoreSplits
from evaluation.prompted import PromptProtocol
from evaluation.protocol import DEFAULT_METRICS, Protocol, Representation
from evaluation.reference import Reference, self_check

Section = Mapping[str, Any]
Row = Mapping[str, Any]


def make_protocol(
    setting: str | Section | DictConfig, *, images_per_prompt: int | None = None, max_prompts: int | None = None
) -> Protocol | PromptProtocol:
    """A protocol of classes, its real-against-real check run first, or one of prompts.

    Args:
        setting: FILE.yaml, a section in a file of the user's own; `zoo:NAME`, the protocol that comes with a zoo entry, which may name another one's instead of its own so
            that their figures compare; or a section {kind: geneval, ...} with paths as they are.
        images_per_prompt, max_prompts: of prompts only: instead of the protocol's own number, and a subset of so many
            rows, spread evenly over all. Both show in the number of images, the latter also in the fingerprint.

    Raises:
        ValueError: an unknown protocol or kind, an entry without one, or settings that it does not have.
    """
    section, folder = _section(setting)
    kind = section.get("kind", "features")
    for name, number in (("images_per_prompt", images_per_prompt), ("max_prompts", max_prompts)):
        if number is not None and (kind in ("features", "file") or number < 1):
            raise ValueError(
                f"evaluation.{name} is {number}; it must be at least 1, and protocols of classes have none"
            )
    return _of_kind(section, folder, images_per_prompt, max_prompts)


def _of_kind(section: Section, folder: Path, *rest: Any) -> Protocol | PromptProtocol:
    kind = section.get("kind", "features")
    if kind not in _KINDS:
        raise ValueError(f"unknown kind of protocol {kind!r}; known: {', '.join(_KINDS)}")
    return _KINDS[kind](section, folder, *rest)


def make_class_protocol(reference: str) -> Protocol:
    """As `make_protocol`, where only one of classes will do. Raises ValueError for one of prompts."""
    protocol = make_protocol(reference)
    if not isinstance(protocol, Protocol):
        raise ValueError(
            f"{reference} comes with the protocol {protocol.name} of prompts; one of classes is needed here"
        )
    return protocol


def is_prompt_section(evaluation: DictConfig) -> bool:
    """Whether an `evaluation:` section judges images of prompts; known without loading anything."""
    if not evaluation.protocol:
        return False
    section, _ = _section(evaluation.protocol)
    if section.get("kind") == "file":
        section, _ = _read_own(section)
    return section.get("kind", "features") != "features"


def _section(setting: str | Section | DictConfig) -> tuple[dict[str, Any], Path]:
    """The settings of a protocol, and the folder that its paths are relative to."""
    if isinstance(setting, DictConfig):
        setting = OmegaConf.to_container(setting)  # type: ignore[assignment]
    if not isinstance(setting, str):
        return dict(setting), Path()
    if setting.endswith((".yaml", ".yml")):
        return {"kind": "file", "path": setting}, Path()
    if not setting.startswith("zoo:"):
        raise ValueError(
            f"unknown protocol {setting!r}; use zoo:NAME, the protocol of a zoo entry, or a file that ends in .yaml"
        )
    folder = zoo_entry(setting.removeprefix("zoo:"))
    entry = json.loads((folder / "config.json").read_text())
    if "protocol" not in entry:
        raise ValueError(f"{setting} comes without a protocol; its config.json has {', '.join(entry)}")
    found = entry["protocol"]
    return _section(found) if isinstance(found, str) else (found, folder)


FEATURES = ("name", "extractor", "reference", "metrics", "more", "num_images", "image_size", "resize", "split_size", "shuffle_seed", "baselines")  # fmt: skip


def _features(section: Section, folder: Path, images_per_prompt: int | None, max_prompts: int | None) -> Protocol:
    _refuse_unknown({"kind": "features", **section}, FEATURES)
    for needed in ("name", "extractor", "reference"):
        if not section.get(needed):
            raise ValueError(
                f"this protocol of features has no {needed}; set evaluation.protocol.{needed}=... (statistics of real images: `align data stats`)"
            )
    more = section.get("more") or ()
    for part in more:
        _refuse_unknown({"kind": "features", **part}, ("extractor", "reference", "metrics"))
    parts = [_representation(part, folder) for part in (section, *more)]
    keywords = {key: section[key] for key in ("num_images", "image_size", "resize") if section.get(key) is not None}
    splits = ScoreSplits(section.get("split_size"), section.get("shuffle_seed"))
    return Protocol(section["name"], tuple(parts), **keywords, splits=splits, baselines=section.get("baselines") or {})


def _representation(part: Section, folder: Path) -> Representation:
    for needed in ("extractor", "reference"):
        if not part.get(needed):
            raise ValueError(
                f"a part of `more` has no {needed}; each is {{extractor: ..., reference: ..., metrics: [...]}}"
            )
    if isinstance(part.get("metrics"), str):
        raise ValueError(f"metrics is {part['metrics']!r}; it must be a list, as [{part['metrics']}]")
    try:
        extractor = make_extractor(part["extractor"], folder)
    except TypeError as error:
        raise ValueError(str(error)) from error
    reference = Reference.load(folder / part["reference"])
    if reference.features is not None and len(reference.features) == reference.n:
        self_check(reference)
    return Representation(extractor, reference, tuple(part.get("metrics") or DEFAULT_METRICS))


def _from_file(section: Section, folder: Path, *rest: Any) -> Protocol | PromptProtocol:
    own, beside = _read_own(section)
    return _of_kind(own, beside, *rest)


def _read_own(section: Section) -> tuple[dict[str, Any], Path]:
    """A user's own YAML, and its folder, which the paths in it are relative to."""
    path = Path(section["path"])
    if not path.exists():
        raise FileNotFoundError(f"there is no protocol file {path}; the path is relative to {Path.cwd()}")
    own: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    if not isinstance(own, dict) or own.get("kind") == "file" or "name" not in own:
        raise ValueError(
            f"{path} is no protocol; it needs a name and the settings that `protocol:` has in conf/evaluation/ (docs/evaluation.md)"
        )
    return {"kind": "features", **own}, path.parent


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
_KINDS: dict[str, Callable[..., Protocol | PromptProtocol]] = {
    "features": _features,
    "file": _from_file,
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
