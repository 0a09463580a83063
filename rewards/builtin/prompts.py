"""The text of each dataset row, for rewards that cannot do without."""

from __future__ import annotations

from typing import Any

CLASS_TEMPLATE = "a photo of a {}"


def prompts_of(conditions: list[dict[str, Any]]) -> list[str]:
    """The rows' "prompt", as they are; of a row with a "class_name" instead "a photo of a {class_name}".

    Raises:
        ValueError: a row without either, or that is no text; the message has the row's index and its columns.
    """
    return [_text(index, row) for index, row in enumerate(conditions)]


def _text(index: int, row: dict[str, Any]) -> str:
    if "prompt" not in row and isinstance(row.get("class_name"), str):
        return CLASS_TEMPLATE.format(row["class_name"])
    if not isinstance(row.get("prompt"), str):
        held = f"it has {sorted(row)}" if "prompt" not in row else f"it is {row['prompt']!r:.60}"
        raise ValueError(
            f"row {index} has no text as 'prompt', {held}; this reward compares images with text, so give each row one, or name the "
            "classes: reward.class_names"
        )
    return str(row["prompt"])
