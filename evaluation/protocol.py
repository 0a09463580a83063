"""A protocol is a name for how numbers were made: extractors, references, metrics, and the rules for the images.

Metrics of different protocols or image counts do not compare, so every key carries both: `fid_mnist-cnn_2k`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from evaluation.features.base import Extractor
from evaluation.features.resize import RULES, resize_images
from evaluation.measures import ScoreSplits, refuse_reference, refuse_unknown_metrics
from evaluation.reference import Reference

DEFAULT_METRICS = ("fid", "is", "precision", "recall", "accuracy")


@dataclass(frozen=True, eq=False)
class Representation:
    """An extractor, a reference made by that very extractor, and the metrics that are taken from both.

    Raises:
        ValueError: an unknown metric, a reference made by another extractor, or one that lacks what a metric needs.
    """

    extractor: Extractor
    reference: Reference
    metrics: tuple[str, ...] = DEFAULT_METRICS

    def __post_init__(self) -> None:
        refuse_unknown_metrics(self.metrics)
        made_by, reads_with = self.reference.extractor_fingerprint, self.extractor.fingerprint
        if made_by is None and not getattr(self.extractor, "genuine", False):
            raise ValueError(
                f"reference {self.reference.name!r} does not say which extractor made it, as ADM's files do not; those are of the "
                f"published Inception alone, and this is {self.extractor.name} ({reads_with}). Make one with `align data stats`"
            )
        if made_by not in (None, reads_with):
            raise ValueError(
                f"reference {self.reference.name!r} was made by extractor {made_by}, but this one ({self.extractor.name}) is "
                f"{reads_with}; their features do not compare. Make the reference again with `align data stats`"
            )
        refuse_reference(self.metrics, self.reference)


@dataclass(frozen=True, eq=False)
class Protocol:
    """How images become numbers.

    representations: the first one's metrics go by their plain names, those of others by `<metric>-<extractor's name>`.
    num_images: how many images the protocol is for; None: any number, told in every key.
    image_size: of images that are scored, in pixels; None: whatever the extractors read.
    resize: how images of another size are brought to it, a key of `evaluation.features.resize.RULES`; None refuses them.
    splits: of the Inception Score.
    baselines: the Fréchet distance of held-out real images by extractor; with those of all representations there is
        a metric `fid-mean`, their mean ratio to them (`evaluation.metrics.mean_frechet_ratio`).

    Raises:
        ValueError: a name that would not survive in a metric key, no or equally named representations, an unknown rule,
            or baselines of other extractors.
    """

    name: str
    representations: tuple[Representation, ...]
    num_images: int | None = None
    image_size: int | None = None
    resize: str | None = None
    splits: ScoreSplits = field(default_factory=ScoreSplits)
    baselines: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9-]+", self.name):
            raise ValueError(
                f"protocol name {self.name!r} must be lower-case letters, digits and '-', as in 'mnist-cnn'"
            )
        names = [part.extractor.name for part in self.representations]
        if strange := [name for name in names if not re.fullmatch(r"[A-Za-z0-9.-]+", name) or name in ("inf", "mean")]:
            raise ValueError(
                f"an extractor is called {strange[0]!r}; its name stands in keys and is letters, digits, '.' and '-', not inf or mean"
            )
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a protocol needs extractors of different names, at least one; got {names}")
        if self.resize is not None and (self.resize not in RULES or self.image_size is None):
            raise ValueError(
                f"resize is {self.resize!r}; it must be one of {', '.join(RULES)}, with image_size, or null to refuse other sizes"
            )
        if self.baselines and self.baselines.keys() != set(names):
            raise ValueError(
                f"baselines are of {sorted(self.baselines)}, and the extractors are {sorted(names)}; give one each"
            )
        if self.baselines and any("fid" not in part.metrics for part in self.representations):
            raise ValueError(
                "baselines give the mean ratio of Fréchet distances, which needs fid of every representation"
            )

    @property
    def extractor(self) -> Extractor:
        """The leading one."""
        return self.representations[0].extractor

    @property
    def reference(self) -> Reference:
        """The leading one."""
        return self.representations[0].reference

    @property
    def fingerprint(self) -> str:
        """Of all extractors, joined by "+", and of the rules for images and metrics where there are any."""
        parts = [part.extractor.fingerprint for part in self.representations]
        rules = [
            self.image_size,
            self.resize,
            self.splits.size,
            self.splits.shuffle_seed,
            sorted(self.baselines.items()),
        ]
        if any(rules):
            parts.append(f"rules-{hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:8]}")
        return "+".join(parts)

    @property
    def reference_hash(self) -> str:
        """Of all references, joined by "+"."""
        return "+".join(part.reference.hash for part in self.representations)

    def key(self, metric: str, representation: Representation) -> str:
        """A metric's name in this protocol: `fid`, or `fid-dinov2` of another than the leading representation."""
        return metric if representation is self.representations[0] else f"{metric}-{representation.extractor.name}"

    def prepare(self, images_BHW3: Tensor) -> Tensor:
        """Images of the protocol's size.

        Raises:
            ValueError: of another size, and the protocol has no rule for them.
        """
        size = self.image_size
        if size is None or tuple(images_BHW3.shape[1:3]) == (size, size):
            return images_BHW3
        if self.resize is None:
            height, width = images_BHW3.shape[1:3]
            raise ValueError(
                f"protocol {self.name} scores images of {size}x{size}, got {height}x{width}; resize them as the protocol means "
                f"them, or set its resize to one of {', '.join(RULES)}"
            )
        return resize_images(images_BHW3, size, self.resize)

    def contaminated(self, optimised: Collection[str]) -> list[str]:
        """The metrics whose own features were optimised: names as `key` gives them.

        optimised: fingerprints of extractors or of their weights.
        """
        found = []
        for part in self.representations:
            own = {part.extractor.fingerprint, getattr(part.extractor, "weights_fingerprint", None)}
            if own & set(optimised):
                found += [self.key(metric, part) for metric in part.metrics]
        mean = ["fid-mean"] if self.baselines and any(name.startswith("fid") for name in found) else []
        return found + mean

    def facts(self) -> dict[str, Any]:
        """What a run's record says of it."""
        return {
            "protocol": self.name,
            "fingerprint": self.fingerprint,
            "image_size": self.image_size,
            "resize": self.resize,
            "inception_score_splits": [self.splits.size, self.splits.shuffle_seed],
            "representations": [
                {
                    "extractor": part.extractor.name,
                    "fingerprint": part.extractor.fingerprint,
                    "reference": part.reference.name,
                    "reference_hash": part.reference.hash,
                    "reference_n": part.reference.n,
                    "metrics": [self.key(metric, part) for metric in part.metrics],
                }
                for part in self.representations
            ],
        }


@dataclass(frozen=True)
class EvaluationResult:
    """Numbers and where they come from.

    Attributes:
        metrics: each as `<metric>_<protocol>_<count>`.
        stderr: a standard error under some of the same keys; see `evaluation.uncertainty` for what it covers.
        n: number of evaluated images.
        protocol: its name.
        reference_n: number of real images, or of distinct prompts; None where a reference does not say.
        extractor_fingerprint: equal fingerprints mean the same judge (of prompts: also the same prompts).
        reference_hash: equal hashes mean the same real images; None of prompts.
        intervals: under some of the keys of `metrics`, the ends of a 95 % interval.
        remarks: what a reader should know, such as that there were too few images for one of the metrics.
    """

    metrics: dict[str, float]
    stderr: dict[str, float]
    n: int
    protocol: str
    reference_n: int | None
    extractor_fingerprint: str
    reference_hash: str | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    remarks: Sequence[str] = ()


def count_suffix(n: int) -> str:
    """The image count in a metric key: 2000 -> "2k", 50000 -> "50k", 1500 -> "1500". Raises ValueError below 1."""
    if n < 1:
        raise ValueError(f"a metric needs at least 1 image, got {n}")
    return f"{n // 1000}k" if n % 1000 == 0 else str(n)
