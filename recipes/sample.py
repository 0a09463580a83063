"""Draw images from a generator: output_dir/samples.png to look at, output_dir/images.npz to score elsewhere.

For example: align sample labels=[3,3,3,3] sampling.guidance_scale=2 sampling.seed=7
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from align.files import write_atomically
from align.images import save_grid
from align.sampling import balanced_labels, generate
from recipes.config import compose
from recipes.parts import make_generator, make_sampling, num_classes
from recipes.run import Run, say


def main(overrides: list[str]) -> None:
    config = compose("sample", overrides)
    sampling = make_sampling(config.sampling)
    generator = make_generator(config.generator)
    labels = (
        balanced_labels(config.num_images, num_classes(generator)) if config.labels is None else list(config.labels)
    )
    if not labels:
        raise ValueError("nothing to draw: num_images and labels are empty")
    generator.encode_condition(labels)  # a wrong label is refused before a folder is made
    run = Run(config, kind="sample", overrides=overrides, append=True)
    rollouts = list(generate(generator, labels, sampling, batch_size=config.batch_size))
    images = torch.cat([generator.decode(rollout.tokens_BL).cpu() for rollout in rollouts])
    save_grid(images, run.folder / "samples.png", columns=config.columns)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, arr_0=images.numpy(), arr_1=np.array(labels))

    write_atomically(run.folder / "images.npz", write)
    run.update(status="finished")
    say(
        f"{len(images)} images, {rollouts[0].forwards_per_image:g} forwards each: {run.folder / 'samples.png'}, images.npz"
    )
