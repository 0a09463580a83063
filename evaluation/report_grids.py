"""Sample grids for the page: of the arms in the claim, of one seed, with what their images were drawn for."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from evaluation.arms import Arm
from evaluation.charts import arm_class
from evaluation.headline import Roles
from evaluation.results import ResultRow

ENLARGED_BELOW = 600  # pixels: narrower grids (digits) are shown with hard pixels, wider ones are scaled smoothly
TOLD_PROMPTS = 12  # in the text for those who do not see the picture
LEAST_SCALE = 0.75  # grids with captions are not shown smaller, so that they stay legible; narrow screens scroll


def sample_grids(run_dir: Path, arms: Sequence[Arm], roles: Roles, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Grids of the arms in the claim, or of the first three where there is none, all of one seed if they can be."""
    candidates = [arm for arm in roles.present() if _with_samples(arm)]
    candidates = candidates or [arm for arm in arms if _with_samples(arm)][:3]
    shared = set.intersection(*(set(_with_samples(arm)) for arm in candidates)) if candidates else set()
    grids: list[dict[str, Any]] = []
    for arm in candidates:
        by_seed = _with_samples(arm)
        row = by_seed[min(shared or by_seed)]
        path = (run_dir / str(row.samples)).resolve()
        # Only pictures of this run: a results file from elsewhere must not pull other files into the page.
        content = path.read_bytes() if path.is_file() and path.is_relative_to(run_dir.resolve()) else b""
        try:
            picture = Image.open(io.BytesIO(content), formats=["PNG"])
        except UnidentifiedImageError:
            continue
        captions = str(picture.info.get("Description", ""))  # as align.images.save_grid writes them
        grids.append(
            {
                "name": names.get(arm.label, arm.label),
                "settings": arm.settings,
                "css": arm_class(arm),
                "seed": row.seed,
                "uri": "data:image/png;base64," + base64.b64encode(content).decode(),
                "width": picture.width,
                "height": picture.height,
                "pixelated": picture.width < ENLARGED_BELOW,
                "prompts": _told(captions),
                "least_width": round(picture.width * LEAST_SCALE) if captions else None,
            }
        )
    return grids


def _told(captions: str) -> str:
    """Different prompts, in order; empty without captions."""
    prompts = list(dict.fromkeys(line for line in captions.split("\n") if line))
    rest = len(prompts) - TOLD_PROMPTS
    return "; ".join(prompts[:TOLD_PROMPTS]) + (f"; and {rest} more" if rest > 0 else "")


def _with_samples(arm: Arm) -> dict[int, ResultRow]:
    return {row.seed: row for row in arm.rows if row.samples}
