"""The prompt of each dataset row, for rewards that cannot do without."""

from __future__ import annotations

from typing import Any


def prompts_of(conditions: list[dict[str, Any]]) -> list[str]:
    """The rows' "prompt", as they are.

    Raises:
        ValueError: a row without one, or whose prompt is no text; the message has the row's index and its columns.
    """
    for index, row in enumerate(conditions):
        if not isinstance(row.get("prompt"), str):
            held = f"it has {sorted(row)}" if "prompt" not in row else f"it is {row['prompt']!r:.60}"
            raise ValueError(
                f"row {index} has no text as 'prompt', {held}; this reward compares images with prompts, so give each row one"
            )
    return [row["prompt"] for row in conditions]
