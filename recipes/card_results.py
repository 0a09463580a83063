"""The results of a model card: the table of a run's report rows, how they were measured, and what the scales mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evaluation.arms import refuse_mixed, summarize
from evaluation.metric_names import CLASS_ACCURACY, METRICS, find_key
from evaluation.report import METRIC_WORDS
from evaluation.results import ResultRow

GUIDANCE = """Every scale on this page, and in ar-align, is the s of

    logits = null + s * (conditional - null)

so that **1.0 is off**: the null branch is then not computed, and an image takes half the forwards.

| this page's s | LlamaGen's `cfg_scale` | VAR's `cfg` |
|---|---|---|
| s | s, the same number | s - 1: VAR computes (1 + cfg) conditional - cfg null, and 0 is off |
| 1.0 | 1.0 | 0 |
| 2.5 | 2.5 | 1.5 |

VAR's own sampler raises `cfg` linearly from 0 at the first scale; here that is `guidance_schedule="linear"`."""


def results_section(record: Mapping[str, Any], rows: Sequence[ResultRow], files: Mapping[str, str]) -> str:
    shown = [row for row in rows if row.split == "report"]
    if not shown:
        return "Not evaluated: this run measured no images, so no figures are claimed here."
    refuse_mixed(shown)
    first = shown[0]
    keys = {metric: find_key(first.metrics, metric.name) for metric in METRICS}
    known = [(metric.under([first.protocol]).title, key, metric.digits) for metric, key in keys.items() if key]
    others = [key for key in first.metrics if key not in keys.values() and not key.startswith(CLASS_ACCURACY)]
    columns = [*known, *((key, key, 3) for key in others)]
    header = ["generator", "guidance scale (1 = off)", "T", *(title for title, _, _ in columns), "forwards an image"]
    lines = [header, ["---"] * len(header)]
    for row in shown:
        (arm,) = summarize([row])
        scale = "1" if row.guidance_scale == 1 else arm.guidance
        cost = "" if row.forwards_per_image is None else f"{row.forwards_per_image:g}"
        sampled = ", ".join([f"{row.temperature:g}", *arm.filters, *([row.search] if row.search else [])])
        label = row.label if row.label == "base" else f"**{row.label}**"
        lines.append([label, scale, sampled, *(_figure(row, key, digits) for _, key, digits in columns), cost])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    remarks = " ".join(_protocol(record, shown, [key for _, key, _ in columns]))
    return "\n\n".join([table, remarks, *_pictures(shown, files)])


def _pictures(rows: Sequence[ResultRow], files: Mapping[str, str]) -> Iterator[str]:
    """The grids without guidance or filter, where they are in the repository."""
    for row in rows:
        (arm,) = summarize([row])
        if arm.plain and row.samples and "samples/" in files:
            yield f"{row.label}, no guidance: the first images of seed {row.seed}, not chosen\n\n![{row.label}]({row.samples})"


def _figure(row: ResultRow, key: str, digits: int) -> str:
    value, error = row.metrics.get(key, math.nan), row.stderr.get(key, math.nan)
    if not math.isfinite(value):
        return "-"
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if math.isfinite(error) else "")


def _protocol(record: Mapping[str, Any], rows: Sequence[ResultRow], keys: Sequence[str]) -> Iterator[str]:
    first = rows[0]
    of_prompts = first.verdicts is not None
    counted = f" of {first.reference_n:,} prompts" if of_prompts else f" against {first.reference_n:,} reference images"
    reference = counted if first.reference_n else ""
    seeds = ", ".join(str(seed) for seed in sorted({row.seed for row in rows}))
    yield (
        f"Protocol `{first.protocol}` (keys {', '.join(f'`{key}`' for key in keys)}): {first.n:,} images for each row"
        f"{reference}, sampling seed {seeds}; ± is one standard error. One training, seed {record['config']['seed']}."
    )
    names = {key.partition("_")[0] for key in keys}
    if words := [words for name, words in METRIC_WORDS.items() if name in names]:
        yield "; ".join(words) + "."
    if "fid" in names and not first.protocol.startswith("adm"):
        yield "This FID is in a domain's own features: **not comparable with Inception FID**."
    if any(row.label == "base" and row.guidance_scale != 1 for row in rows):
        yield "The base's temperature and guidance scale were chosen on another sampling seed than the one shown."
