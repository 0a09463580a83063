"""Draw images from a generator: output_dir/samples.png to look at, output_dir/images.npz to score elsewhere.

For example: align sample labels=[3,3,3,3] sampling.guidance_scale=2 sampling.seed=7
Of generators of text: align sample generator=llamagen-t2i ... 'prompts=["a red cube", "two dogs"]', or prompts=FILE
The best of four each: align sample search=best_of_n search.n=4 'search.reward.rewards=[{name: NAME}]'; see search=tts --help
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from align.data.prompts import as_row, raw_condition
from align.files import write_atomically
from align.generators import Generator
from align.images import save_grid
from recipes.conditions import make_rows
from recipes.config import compose
from recipes.parts import make_generator, make_sampling
from recipes.run import Run, say
from recipes.search_settings import make_draw


def main(overrides: list[str]) -> None:
    config = compose("sample", overrides)
    sampling = make_sampling(config.sampling)
    generator = make_generator(config.generator)
    rows = _rows(config, generator)
    if not rows:
        raise ValueError("nothing to draw: num_images, labels or prompts are empty")
    conditions = [raw_condition(row) for row in rows]
    generator.encode_condition(conditions)  # a wrong label is refused before a folder is made
    draw, search = make_draw(config.search, generator, rows)
    run = Run(config, kind="sample", overrides=overrides, append=True)
    rollouts = list(draw(generator, conditions, sampling, batch_size=config.batch_size))
    images = torch.cat([generator.decode(rollout.tokens_BL).cpu() for rollout in rollouts])
    prompts = conditions if all(isinstance(condition, str) for condition in conditions) else None
    save_grid(images, run.folder / "samples.png", columns=config.columns, captions=prompts)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, arr_0=images.numpy(), arr_1=np.array(conditions))

    write_atomically(run.folder / "images.npz", write)
    run.update(status="finished")
    how = f"{search}, " if search else ""
    forwards = f"{rollouts[0].forwards_per_image:g} forwards each"
    say(f"{len(images)} images, {how}{forwards}: {run.folder / 'samples.png'}, images.npz")


def _rows(config: DictConfig, generator: Generator) -> list[dict[str, Any]]:
    """One for each image."""
    settings: dict[str, Any] = OmegaConf.to_container(config)  # type: ignore[assignment]
    if settings["labels"] is not None:
        if settings["prompts"] is not None:
            raise ValueError("labels and prompts are both given; set one of them to null")
        return [as_row(label) for label in settings["labels"]]
    number = config.num_images if settings["prompts"] is None else None
    return make_rows(settings["prompts"], generator, number=number)
