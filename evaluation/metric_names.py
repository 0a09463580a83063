"""What metrics are called, in keys and on pages, and in which order they lead.

A key is `<metric>_<protocol>_<count>`. Of another than a protocol's leading extractor a metric carries its name, as in
`fid-dinov2`, and is read as the one that it begins with.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

# Keys of the accuracy on one class: this and the class.
CLASS_ACCURACY = "accuracy-class"


@dataclass(frozen=True)
class Metric:
    """How a metric is named in keys (`fid` in `fid_mnist-cnn_2k`), shown, and read."""

    name: str
    title: str
    lower_is_better: bool = False
    digits: int = 3

    def under(self, protocols: Iterable[str]) -> Metric:
        """As it may be called: GenEval goes by its protocols' names, since another detector gives other numbers.

        Only a protocol named `geneval` gives GenEval.
        """
        names = dict.fromkeys("GenEval" if protocol == "geneval" else protocol for protocol in protocols)
        return replace(self, title=" / ".join(names)) if self.name == "geneval" and names else self

    def rank(self, value: float) -> float:
        """Smaller is better, whatever the metric; undefined values come last."""
        if math.isnan(value):
            return math.inf
        return value if self.lower_is_better else -value


METRICS = (
    Metric("fid", "FID", lower_is_better=True, digits=2),
    Metric("geneval", "GenEval"),
    Metric("held-out", "held-out judge"),
    Metric("kid", "KID", lower_is_better=True, digits=5),
    Metric("cmmd", "CMMD", lower_is_better=True),
    Metric("accuracy", "accuracy"),
    Metric("is", "IS", digits=2),
    Metric("precision", "precision"),
    Metric("recall", "recall"),
    Metric("sfid", "sFID", lower_is_better=True, digits=2),
    Metric("fid-inf", "FID∞", lower_is_better=True, digits=2),
    Metric("fid-mean", "mean FID ratio", lower_is_better=True, digits=2),
    Metric("density", "density"),
    Metric("coverage", "coverage"),
    Metric("vendi", "Vendi", digits=2),
)
OF_PROMPTS = ("geneval", "held-out")  # no extractor's, so that a name that begins like them is another metric
_PLACES = {metric.name: place for place, metric in enumerate(METRICS)}


def known_metric(name: str) -> Metric | None:
    """The metric of a name, `fid` or `fid-dinov2`; None for a name that is neither."""
    if name in _PLACES:
        return METRICS[_PLACES[name]]
    if name.startswith(CLASS_ACCURACY) or (base := _base(name)) is None:
        return None
    metric = METRICS[_PLACES[base]]
    return replace(metric, name=name, title=f"{metric.title} ({name.removeprefix(f'{base}-')})")


def _base(name: str) -> str | None:
    """The longest known name that another one begins with."""
    if name in _PLACES:
        return name
    return max((k for k in _PLACES if name.startswith(f"{k}-") and k not in OF_PROMPTS), key=len, default=None)


def known_metrics(metrics: Iterable[Mapping[str, Any]], *, but: Collection[str] = ()) -> list[Metric]:
    """The known ones, without those of the names `but`, that any of some rows' metrics has, leading ones first."""
    metrics = list(metrics)
    names = dict.fromkeys(key.rsplit("_", 2)[0] for row in metrics for key in row)
    names |= dict.fromkeys(name for name in _PLACES if any(name in row for row in metrics))
    found = [metric for name in names if name not in but and (metric := known_metric(name)) is not None]
    return sorted(found, key=lambda metric: (_PLACES[str(_base(metric.name))], metric.name not in _PLACES))


def leading_metric(metrics: Mapping[str, float], contaminated: Collection[str] = ()) -> tuple[Metric, float]:
    """What settings and candidates are chosen by, and its value: the first known metric that is not contaminated, or the
    first at all, or else the first of any name.

    Raises:
        ValueError: there are no metrics.
    """
    for metric in [*known_metrics([metrics], but=contaminated), *known_metrics([metrics])]:
        if (key := find_key(metrics, metric.name)) is not None:
            return metric, metrics[key]
    if not metrics:
        raise ValueError("an evaluation without metrics cannot tell which setting is best")
    key = next(iter(metrics))
    return Metric(key, key), metrics[key]


def find_key(metrics: Mapping[str, Any], name: str) -> str | None:
    """The key that is `name`, or starts with `name` and an underscore.

    Raises:
        ValueError: several keys do, such as two protocols in one row.
    """
    if name in metrics:
        return name
    prefix = name.removesuffix("_") + "_"
    found = [key for key in metrics if key.startswith(prefix)]
    if len(found) > 1:
        raise ValueError(f"metric {name!r} is ambiguous: {', '.join(found)}; ask for one of them by its whole key")
    return found[0] if found else None
