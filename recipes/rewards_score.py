"""Score images by a reward: align rewards score NAME IMAGES... [key=value ...]

For example: align rewards score pickscore pictures/ --prompt "a red cube"

NAME is one of `align rewards list`, or path/to/file.py:function. IMAGES are files, folders, or the images.npz of
`align sample`, which holds their labels or prompts too.

prompt=TEXT         what the images show; label=NUMBER likewise, of classes
row.COLUMN=VALUE    any other column of a dataset's rows
kwargs.KEY=VALUE    the reward's settings; weights of the form zoo:NAME are a shipped generator's
worker.KEY=VALUE    the environment that it runs in, as worker.python=envs/ink/bin/python
batch_size=32       images scored at once; what compares images takes all as one prompt's
timeout=300         seconds for a batch
--json              JSON instead of a table
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from align.data.readers.base import EXTENSIONS, UnreadableRow, decode_image
from recipes.reward_settings import make_rewards
from recipes.reward_words import entry_of, read_words
from rewards.base import DistributionReward, Reward
from rewards.scoring import score_rewards

SETTINGS = {"batch_size": 32, "timeout": 300.0, "json": False}


@dataclass(frozen=True)
class Scored:
    """name: of the image; score: NaN where the reward does not apply or failed; valid: False where it failed."""

    name: str
    score: float
    valid: bool


def main(arguments: list[str]) -> None:
    words = read_words(arguments, SETTINGS)
    if len(words.names) < 2:
        raise ValueError(
            "which reward, and which images? align rewards score NAME IMAGES... (files, folders, images.npz)"
        )
    name, *places = words.names
    pictures = [picture for place in places for picture in _pictures(Path(place), words.row)]
    (reward,) = make_rewards(OmegaConf.create({"rewards": [entry_of(name, words)]})).rewards
    scored, problem = score(
        reward, pictures, batch_size=int(words.settings["batch_size"]), timeout=words.settings["timeout"]
    )
    print(json.dumps(_record(name, scored, problem), indent=2) if words.settings["json"] else _table(scored))
    if problem is not None:
        raise ValueError(problem)


@dataclass(frozen=True)
class Picture:
    name: str
    image_HW3: Tensor
    row: dict[str, Any]


def _pictures(place: Path, row: dict[str, Any]) -> Iterator[Picture]:
    """The images of a file, a folder or an npz, each with its dataset row."""
    if place.suffix == ".npz":
        yield from _stored(place, row)
        return
    if not place.exists():
        raise FileNotFoundError(f"there is no image {place} (relative to {Path.cwd()})")
    if place.is_dir():
        files = sorted(path for path in place.rglob("*") if path.suffix.lower() in EXTENSIONS)
        if not files:
            raise ValueError(f"{place} holds no image ({', '.join(EXTENSIONS)})")
    else:
        files = [place]
    for file in files:
        try:
            picture = decode_image(file.read_bytes(), str(file))
        except UnreadableRow as error:
            raise ValueError(f"cannot read {error}; leave it out") from error
        yield Picture(str(file), torch.from_numpy(np.array(picture)), row)


def _stored(place: Path, row: dict[str, Any]) -> Iterator[Picture]:
    """Of an images.npz: arr_0 are the images, arr_1 their labels or prompts, which `row` overrules."""
    with np.load(place) as file:
        images, conditions = file["arr_0"], file.get("arr_1")
    for index, image in enumerate(images):
        own = (
            {}
            if conditions is None
            else {"label" if conditions.dtype.kind in "iu" else "prompt": conditions[index].item()}
        )
        yield Picture(f"{place} {index}", torch.from_numpy(image), own | row)


def score(
    reward: Reward, pictures: Sequence[Picture], *, batch_size: int, timeout: float
) -> tuple[list[Scored], str | None]:
    """Scores of images of any sizes, and the first error. What compares images takes all as one batch of one prompt."""
    together = reward.kind != "image"
    shapes = {tuple(picture.image_HW3.shape) for picture in pictures}
    if together and len(shapes) > 1:
        raise ValueError(
            f"{reward.name} compares images, and these have {len(shapes)} sizes: {sorted(shapes)}; make them one"
        )
    scored: list[Scored] = []
    errors: list[str] = []
    for _, alike in groupby(pictures, key=lambda picture: picture.image_HW3.shape):
        same = list(alike)
        step = len(same) if together else batch_size
        for start in range(0, len(same), step):
            batch = same[start : start + step]
            found = score_rewards(
                [reward],
                torch.stack([picture.image_HW3 for picture in batch]),
                [picture.row for picture in batch],
                timeout=timeout,
                group_size=len(batch),
            )
            values_N = found.values_NR[:, 0]
            if isinstance(reward.function, DistributionReward) and not found.errors:
                values_N = reward.function.score(found.features[reward.name])
            names = [picture.name for picture in batch]
            scored += map(Scored, names, values_N.tolist(), found.valid_NR[:, 0].tolist())
            errors += map(str, found.errors.values())
    return scored, next(iter(errors), None)


def _table(scored: Sequence[Scored]) -> str:
    width = max(len(one.name) for one in scored) + 2
    return "\n".join([*(f"{one.name:<{width}}{_shown(one)}" for one in scored), _summary(scored)])


def _shown(one: Scored) -> str:
    if not one.valid:
        return "failed"
    return "does not apply" if np.isnan(one.score) else f"{one.score:.6g}"


def _numbers(scored: Sequence[Scored]) -> list[float]:
    return [one.score for one in scored if not np.isnan(one.score)]


def _summary(scored: Sequence[Scored]) -> str:
    numbers, failed = _numbers(scored), sum(not one.valid for one in scored)
    parts = [f"mean {np.mean(numbers):.6g}, std {np.std(numbers):.3g}"] if numbers else []
    parts.append(f"{len(numbers)} of {len(scored)} images scored")
    if absent := len(scored) - len(numbers) - failed:
        parts.append(f"{absent} do not apply")
    if failed:
        parts.append(f"{failed} failed")
    return "; ".join(parts)


def _record(name: str, scored: Sequence[Scored], problem: str | None) -> dict[str, Any]:
    numbers = _numbers(scored)
    return {
        "reward": name,
        "mean": float(np.mean(numbers)) if numbers else None,
        "std": float(np.std(numbers)) if numbers else None,
        "scores": [
            {"image": one.name, "score": None if np.isnan(one.score) else one.score, "valid": one.valid}
            for one in scored
        ],
        "error": problem,
    }
