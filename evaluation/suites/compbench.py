"""T2I-CompBench and its extension (Huang et al. 2023, arXiv 2307.06350, and 2025): prompts in eight categories.

The published scores are of BLIP's VQA model, of UniDet, and of CLIP. The questions here are ours, for a VQA judge.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from evaluation.suites.lines import text_lines
from evaluation.suites.questions import Question

CATEGORIES = ("color", "shape", "texture", "spatial", "3d_spatial", "non_spatial", "numeracy", "complex")
_BINDING = CATEGORIES[:3]  # the published score of these is a product over noun phrases
_TWO_THINGS = re.compile(r"((?:an?|the)(?: [\w-]+){1,4}) and ((?:an?|the)(?: [\w-]+){1,4})\.?", re.IGNORECASE)


def read_compbench(path: Path) -> list[dict[str, Any]]:
    """Rows of one prompt file such as color_val.txt, or of every <category>_val.txt of the published examples/dataset.

    The tag is the category. A prompt of the form `a red book and a yellow vase` in color, shape or texture has a question
    for each of the two; every other prompt has one for the whole. Prompts that a file holds twice are kept.
    """
    files = (
        {category: path / f"{category}_val.txt" for category in CATEGORIES}
        if path.is_dir()
        else {_category(path): path}
    )
    if path.is_dir():
        files = {category: file for category, file in files.items() if file.is_file()}
        if not files:
            raise FileNotFoundError(f"{path} holds no {CATEGORIES[0]}_val.txt nor that of another category")
    return [
        {
            "id": f"{file.stem}-{index:05d}",
            "prompt": prompt,
            "tag": category,
            "questions": [question.to_row() for question in compbench_questions(prompt, category)],
        }
        for category, file in files.items()
        for index, (_, prompt) in enumerate(text_lines(file))
    ]


def compbench_questions(prompt: str, category: str) -> list[Question]:
    """What `compbench-vqa` asks about the image of a prompt; the right answer is yes."""
    found = _TWO_THINGS.fullmatch(prompt) if category in _BINDING else None
    if found is None or any(" with " in phrase or " and " in phrase for phrase in found.groups()):
        return [Question(f"Does this image show the following? {prompt}")]
    return [Question(f"Is there {phrase.lower()} in this image?") for phrase in found.groups()]


def _category(path: Path) -> str:
    for category in CATEGORIES:
        if path.stem == category or path.stem.startswith(f"{category}_"):
            return category
    raise ValueError(
        f"{path.name} is of no known category; a file's name begins with one of {', '.join(CATEGORIES)}, as in color_val.txt"
    )
