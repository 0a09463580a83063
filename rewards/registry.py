"""From a name to a reward: a built-in, an installed package's, or a function in a file."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `align rewards list` does without torch
    from rewards.base import DistributionReward, RewardFunction

GROUP = "align.rewards"
BUILT_IN = (
    EntryPoint("aesthetic", "rewards.builtin.aesthetic:AestheticScore", GROUP),
    EntryPoint("classifier-log-prob", "rewards.builtin.classifier:classifier_log_prob", GROUP),
    EntryPoint("loo-fid", "rewards.builtin.frechet:LeaveOneOutFrechet", GROUP),
    EntryPoint("image-reward", "rewards.builtin.image_reward:ImageReward", GROUP),
    EntryPoint("image-reward-package", "rewards.foreign.image_reward:ImageRewardPackage", GROUP),
    EntryPoint("geneval", "rewards.builtin.geneval:GenEvalReward", GROUP),
    EntryPoint("clip-score", "rewards.builtin.clip_score:ClipScore", GROUP),
    EntryPoint("hpsv2", "rewards.builtin.hpsv2:HPSv2", GROUP),
    EntryPoint("jpeg-compressibility", "rewards.builtin.jpeg:jpeg_compressibility", GROUP),
    EntryPoint("jpeg-incompressibility", "rewards.builtin.jpeg:jpeg_incompressibility", GROUP),
    EntryPoint("ocr-text-match", "rewards.builtin.ocr:OcrTextMatch", GROUP),
    EntryPoint("pixel-reconstruction", "rewards.builtin.reconstruction:PixelReconstruction", GROUP),
    EntryPoint("vqa", "rewards.builtin.vqa:VqaJudge", GROUP),
    EntryPoint("vlm-judge", "rewards.builtin.vlm_judge:VlmJudge", GROUP),
    EntryPoint("vlm-pairwise", "rewards.builtin.pairwise_judge:PairwiseJudge", GROUP),
    EntryPoint("pickscore", "rewards.builtin.pickscore:PickScore", GROUP),
)


def known_rewards() -> list[str]:
    """Names of the built-in rewards and of those that installed packages register."""
    return sorted(registered())


def load_reward(name: str, **kwargs: Any) -> RewardFunction | DistributionReward:
    """A reward with its settings: the function with its keywords bound, or an object of the class.

    Args:
        name: a built-in; the name of an entry point of the group `align.rewards` in any installed package; or
            `path/to/file.py:function`. The file is run each time that a reward is loaded from it.
        kwargs: a function's own keywords after images and conditions, bound to it as functools.partial does; of a class
            the keywords that it is made with.

    Raises:
        ValueError: an unknown name, a file or package that does not import or lacks the function, keywords that do
            not fit the function, or what the class itself refuses.
    """
    from rewards.base import kind_of

    found = find_reward(name)
    if inspect.isclass(found):
        _check_signature(name, found, (), kwargs)
        made: Any = found(**kwargs)
        if kind_of(made) != "distribution":
            _check_callable(name, made)
            _check_signature(name, made, (None, None), {})
        return made
    _check_callable(name, found)
    _check_signature(name, found, (None, None), kwargs)
    return functools.partial(found, **kwargs) if kwargs else found


def find_reward(name: str) -> Any:
    """What a name stands for, a function or a class, without its settings.

    Raises:
        ValueError: an unknown name, or a file or package that does not import or lacks it.
    """
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        return _from_registry(name)
    from evaluation.user_files import load_from_file  # it comes with torch, as the rewards do

    return load_from_file(Path(path), attribute)


def _check_callable(name: str, found: Any) -> None:
    if not callable(found):
        raise ValueError(
            f"reward {name!r} is of type {type(found).__name__}; a function of images and conditions is needed"
        )


def registered() -> dict[str, list[EntryPoint]]:
    """Entry points by name; more than one where packages chose the same name."""
    found: dict[str, list[EntryPoint]] = {}
    for point in (*BUILT_IN, *entry_points(group=GROUP)):
        same = found.setdefault(point.name, [])
        if point.value not in [other.value for other in same]:
            same.append(point)
    return found


def _from_registry(name: str) -> Any:
    known = registered()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"unknown reward {name!r}; known: {', '.join(sorted(known))}{hint} Your own is path/to/file.py:function, or registered under {GROUP} by a package that is installed"
        )
    points = known[name]
    if len(points) > 1:
        homes = ", ".join(point.value for point in points)
        raise ValueError(f"there are {len(points)} rewards named {name!r}: {homes}; rename or uninstall all but one")
    try:
        return points[0].load()
    except Exception as error:
        raise ValueError(
            f"reward {name!r} is registered as {points[0].value}, which does not import: {type(error).__name__}: {error}"
        ) from error


def _check_signature(name: str, called: Callable[..., Any], given: tuple[None, ...], kwargs: dict[str, Any]) -> None:
    """A mistyped or missing setting is answered now, not after the first images."""
    try:
        signature = inspect.signature(called)
    except ValueError:
        return  # some compiled functions do not tell theirs
    try:
        signature.bind(*given, **kwargs)
    except TypeError as error:
        shown = ", ".join([*("images", "conditions")[: len(given)], *(f"{key}=..." for key in kwargs)])
        what = "function" if given else "class"
        raise ValueError(
            f"reward {name!r} cannot be called as {what}({shown}): {error}; it takes {signature}"
        ) from error
