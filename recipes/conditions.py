"""What images are drawn for: prompts from a file or a list, or all classes in turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.data import PromptStream, Stream
from align.data.prompts import raw_condition, read_prompts
from align.generators import Generator
from align.sampling import balanced_labels
from recipes.parts import num_classes, zoo_file

SHOWN = 10  # columns of a sample grid: its conditions


def make_rows(
    prompts: str | Sequence[str] | None, generator: Generator, *, number: int | None, class_names: str | None = None
) -> list[dict[str, Any]]:
    """Dataset rows to draw images for, with all the columns that rewards may look at.

    Args:
        prompts: a prompt file, `zoo:NAME` for those that come with a zoo entry, a list of prompts, or None for the classes of a class-conditional generator.
        number: of rows, prompts or classes in turn, over and over; None: each of them once.
        class_names: what `read_class_names` reads; each row of a class then has its name in the column `class_name`.

    Raises:
        FileNotFoundError, ValueError: prompts or names that cannot be read, or other conditions than the generator takes.
    """
    if prompts is None:
        if generator.num_classes is None:
            raise ValueError(
                f"a {generator.family} generator draws images of prompts, and there are none; set prompts= (data.prompts= of "
                "`align train`) to a .txt or .jsonl file of them"
            )
        classes = num_classes(generator)
        labels = balanced_labels(classes if number is None else number, classes)
        if class_names is None:
            return [{"label": label} for label in labels]
        names = read_class_names(class_names, number=classes)
        return [{"label": label, "class_name": names[label]} for label in labels]
    if generator.num_classes is not None:
        raise ValueError(
            f"prompts are given, and a {generator.family} generator draws images of classes; set it to null"
        )
    if not isinstance(prompts, str) and not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompts is {list(prompts)!r:.80}; it must be a list of texts, or the path of a file of them")
    rows = (
        read_prompts(prompt_file(prompts)) if isinstance(prompts, str) else [{"prompt": prompt} for prompt in prompts]
    )
    return [rows[index % len(rows)] for index in range(len(rows) if number is None else number)]


def prompt_file(prompts: str) -> str:
    """The path of a prompt file, which may be that of a zoo entry."""
    return str(zoo_file(prompts, "prompts")) if prompts.startswith("zoo:") else prompts


def read_class_names(source: str, *, number: int) -> list[str]:
    """The names of classes 0, 1, ..., which rewards that compare images with text need.

    Args:
        source: a text file with a name a line, or `imagenet`: the names that open_clip has of ImageNet's 1,000 classes.
        number: of classes.

    Raises:
        FileNotFoundError, ValueError: no such file, another number of names, or open_clip is not installed.
    """
    if source == "imagenet":
        try:
            from open_clip import IMAGENET_CLASSNAMES
        except ImportError as error:
            raise ValueError(
                "the names of ImageNet's classes come with open_clip; try: pip install 'ar-align[rewards]'"
            ) from error
        names = list(IMAGENET_CLASSNAMES)
    elif not (path := Path(source)).is_file():
        raise FileNotFoundError(f"no file of class names at {path}; reward.class_names is a file, or imagenet")
    else:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != number:
        raise ValueError(f"{source} names {len(names)} classes, and the generator has {number}; give one name a line")
    return names


def shown_conditions(prompts: str | None, generator: Generator, stream: Stream | PromptStream) -> list[Any]:
    """What the columns of a sample grid show: prompts of the file, spread over all, or of the training's own captions; or
    classes, spread over all."""
    if generator.num_classes is not None:
        columns = min(SHOWN, generator.num_classes)
        return [column * generator.num_classes // columns for column in range(columns)]
    if prompts is not None:
        rows = read_prompts(prompt_file(prompts))
        number = min(SHOWN, len(rows))
        return [raw_condition(rows[column * len(rows) // number]) for column in range(number)]
    found: dict[Any, None] = {}
    for position in range(min(10 * SHOWN, len(stream))):
        found[stream[position]["label"]] = None
        if len(found) == SHOWN:
            break
    return list(found)
