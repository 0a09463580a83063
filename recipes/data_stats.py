"""Make the statistics of real images that a protocol measures against, by one extractor.

For example: align data stats imagenet/val extractor.path=weights-inception-2015-12-05-6726825d.pth output=val.npz
By an extractor of your own: align data stats mine extractor.name=features.py:make output=mine.npz
ADM's reference file already has Inception's statistics, of all training images. They are taken over as they are, and the
features that precision and recall need are made from its 10,000 images:
align data stats VIRTUAL_imagenet256_labeled.npz extractor.path=... output=adm256.npz
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from align.progress import progress_bar
from evaluation.features.base import Extractor
from evaluation.features.make import make_extractor
from evaluation.features.resize import resize_images
from evaluation.image_files import ImageFiles, in_parts, open_images
from evaluation.reference import Reference, is_kept, make_reference, read_npz
from recipes.config import compose, with_path
from recipes.run import refuse_many_processes, say

ADM = ("arr_0", "arr_1", "features")  # entries that are no statistics


def main(arguments: list[str]) -> None:
    refuse_many_processes("`align data stats`")
    config = compose("data_stats", with_path(arguments, "source"))
    source, output = Path(config.source), Path(config.output)
    if output.exists():
        raise ValueError(f"{output} is there already; take it away, or choose another output=")
    files = open_images(source)
    if config.keep_images and not config.keep:
        raise ValueError("keep_images=true keeps the images whose features are kept, and keep=0 keeps none; set keep")
    section: Any = OmegaConf.to_container(config.extractor)
    own = ":" in section["name"] and section["path"] is None
    extractor = make_extractor(section["name"] if own else section)
    for remark in files.remarks:
        say(f"note: {remark}")
    reference = make_reference(
        extractor, _batches(files, config), name=config.name or source.stem, total=len(files), keep=config.keep
    )
    if (published := _published(source, extractor)) is not None:
        reference = replace(
            published, name=reference.name, extractor_fingerprint=extractor.fingerprint, features=reference.features
        )
        say(f"mean and covariance are those of {source}; features are of its {len(files)} images")
    output.parent.mkdir(parents=True, exist_ok=True)
    reference.save(output, images=_kept_images(files, config) if config.keep_images else None)
    kept = 0 if reference.features is None else len(reference.features)
    spatial = "" if reference.mu_s is None else f", {len(reference.mu_s)} spatial ones"
    say(
        f"{output}: {len(files)} images by {extractor.name} ({extractor.fingerprint}), {len(reference.mu)} features{spatial}, "
        f"those of {kept} images kept; reference {reference.hash}"
    )


def _batches(files: ImageFiles, config: DictConfig) -> Iterator[Tensor]:
    bar = progress_bar(total=len(files), description="features", unit="img", leave=False)
    for images_BHW3 in in_parts(files, config.batch_size):
        if config.image_size is not None:
            images_BHW3 = resize_images(images_BHW3, config.image_size, config.resize)
        yield images_BHW3
        bar.update(len(images_BHW3))
    bar.close()


def _published(source: Path, extractor: Extractor) -> Reference | None:
    """The statistics that an npz of ADM's format holds beside its images, where they are this extractor's."""
    if source.suffix != ".npz" or "mu" not in read_npz(source, but=ADM):
        return None
    found = Reference.load(source)
    theirs = found.extractor_fingerprint
    if theirs == extractor.fingerprint or (theirs is None and getattr(extractor, "genuine", False)):
        return found
    say(f"note: the statistics in {source} are of another extractor; these are of its images alone")
    return None


def _kept_images(files: ImageFiles, config: DictConfig) -> np.ndarray:
    """The images whose features are kept."""
    chosen = [index for index in range(len(files)) if is_kept(index, len(files), config.keep)]
    images = [files.read(index, index + 1) for index in chosen]
    if config.image_size is not None:
        images = [resize_images(image, config.image_size, config.resize) for image in images]
    return np.concatenate([image.numpy() for image in images])
