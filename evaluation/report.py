"""One HTML file per run folder: what was gained, the evidence for it, and how to make it again.

The page is self-contained (images and charts are inside, nothing is fetched) and copes with whatever a run has left:
a study with its sub-runs, a sweep, one evaluation, or a training that was stopped before any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.arms import COMPARABLE, Arm, paired, refuse_mixed, summarize
from evaluation.charts import arm_class, css_class, guidance_chart
from evaluation.curves import SCORED, curve_charts, method_name, read_logs, read_run
from evaluation.files import write_atomically
from evaluation.geneval_report import TAG_METRICS, geneval_section
from evaluation.headline import (
    Headline,
    Roles,
    assign_roles,
    change,
    fixed,
    headline,
    headline_metric,
    judge,
    median,
    number,
    ratio,
)
from evaluation.metric_names import CLASS_ACCURACY, Metric, find_key, known_metrics
from evaluation.pages import templates
from evaluation.report_grids import sample_grids
from evaluation.report_guidance import guidance_section
from evaluation.results import ResultRow, read_results

METRIC_WORDS = {
    "fid": "FID is the Fréchet distance between features of the generated and of the reference images",
    "accuracy": "accuracy is the share of images recognised as the class that was asked for",
    "is": "IS is the inception score under the extractor's own classifier",
    "precision": "precision is the share of generated images that lie among the reference images",
    "recall": "recall is the share of reference images that lie among the generated ones",
    "kid": "KID is the unbiased squared kernel distance between these features",
    "cmmd": "CMMD is the squared kernel distance between CLIP's embeddings, in thousandths",
    "sfid": "sFID is FID of an early layer that tells places apart",
    "fid-inf": "FID∞ is what FID would be with infinitely many images, by a line through several numbers of them",
    "fid-mean": "mean FID ratio is the mean over representations of the distance in units of held-out real images'",
    "density": "density is the mean number of reference images' neighbourhoods that a generated image lies in, over k",
    "coverage": "coverage is the share of reference images with a generated one in their neighbourhood",
    "vendi": "Vendi is the effective number of different images",
    "geneval": "{title} is the mean over kinds of prompt of the share of images that show all that was asked for",
    "held-out": "held-out judge is the same by a judge that no reward used",
    "credit": "partial credit is the mean share of what was asked for",
    "correct-images": "correct images is the share of all images, whatever their prompt",
    "correct-prompts": "correct prompts is the share of prompts with a correct image",
}
# Of GenEval, shown in the table of every row only.
FURTHER = (
    Metric("credit", "partial credit"),
    Metric("correct-images", "correct images"),
    Metric("correct-prompts", "correct prompts"),
)


def write_report(run_dir: Path) -> Path:
    """Render `run_dir/report.html` from what the folder holds.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: `run.json`, `results.jsonl` or a `metrics.jsonl` is damaged; names the file and the line.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"no run folder at {run_dir}")
    page = templates().get_template("report.html.j2").render(_context(run_dir))
    path = run_dir / "report.html"
    write_atomically(path, page.encode())
    return path


def _context(run_dir: Path) -> dict[str, Any]:
    run = read_run(run_dir)
    rows = read_results(run_dir / "results.jsonl")
    scored = run.get("kind") in SCORED
    method = "The aligned generator" if scored else method_name(run, run_dir.name)
    names = {"aligned": "aligned" if scored else method, "sft": "SFT"}
    arms, said = _conclude(rows, method)
    metric = headline_metric(arms)
    shown = [arm for arm in arms if arm.split == "report"] or arms
    roles = assign_roles(shown, metric) if metric else Roles()
    # the chart shows both splits, which may differ in n (it says so) but not in what they measure
    drawn = [arm for arm in arms if _judge_of(arm) == _judge_of(shown[0])]
    drawn = [arm for arm in drawn if metric and math.isfinite(median(arm, metric))]
    geneval = geneval_section(run_dir, shown, roles, metric, names)
    every_column = _metric_columns(rows)
    if metric:  # the changes beside the first column are of this one, where another is contaminated
        every_column.sort(key=lambda column: column.name != metric.name)
    columns = [column for column in every_column if not geneval or column not in (*TAG_METRICS, *FURTHER)]
    logs = read_logs(run_dir, run)
    curves = list(curve_charts(logs))
    return {
        "name": run.get("name") or run_dir.name,
        "facts": _facts(run),
        "unfinished": run.get("status", "finished") != "finished",
        "command": run.get("command"),
        "dirty": (run.get("git") or {}).get("dirty", False),
        "headline": said,
        "metric": metric,
        "columns": columns,
        "arms": [_arm_entry(arm, roles, metric, columns, names) for arm in shown],
        "compared": roles.base is not None and len(shown) > 1,
        # one or two points say less in a chart than in the table
        "chart": guidance_chart(drawn, roles, metric, names) if metric and len(drawn) > 2 else None,
        "chart_legend": _chart_legend(drawn, names),
        "table_remarks": _table_remarks(shown, rows),
        "chart_remarks": list(_chart_remarks(rows)),
        "geneval": geneval,
        "guidance": guidance_section(
            [arm for arm in arms if _judge_of(arm) == _judge_of(shown[0])], shown, metric, names
        ),
        "grids": sample_grids(run_dir, shown, roles, names),
        "logs": [log.name for log in logs],
        "curves": [curve for curve in curves if curve.main],
        "more_curves": [curve for curve in curves if not curve.main],
        "protocols": _protocols(rows),
        "metric_words": [
            METRIC_WORDS[column.name].format(title=column.title)
            for column in every_column
            if column.name in METRIC_WORDS
        ],
        "domain_fid": any(_is_domain_fid(row) for row in rows),
        "other_geneval": any(_is_other_geneval(row) for row in rows),
        "every_column": every_column,
        "rows": [_row_entry(row, every_column) for row in rows],
        "by_class": _by_class(shown, names),
        "config": list(_flatten(run.get("config") or {})),
        "origin": [
            entry
            for part in ("versions", "git", "hashes", "generator_facts")
            for entry in _flatten(run.get(part) or {}, part.replace("_", " ") + ": ")
        ],
    }


def _conclude(rows: Sequence[ResultRow], method: str) -> tuple[list[Arm], Headline]:
    """The arms and what to say about them. Rows that do not compare are listed, but get no arms, table or chart."""
    try:
        arms = summarize(rows)
        refuse_mixed([row for row in rows if row.split == "report"] or rows)
    except ValueError as error:
        return [], Headline(f"No conclusion: {error}.")
    try:
        return arms, headline(arms, method)
    except ValueError as error:
        return arms, Headline(f"No conclusion: {error}.")


def _judge_of(arm: Arm) -> tuple[object, ...]:
    return tuple(getattr(arm.rows[0], name) for name in COMPARABLE if name != "n")


def _facts(run: Mapping[str, Any]) -> list[str]:
    facts = [str(run[key]) for key in ("kind", "status", "device") if run.get(key)]
    if isinstance(seconds := run.get("wall_seconds"), int | float):
        facts.append(_duration(seconds))
    if run.get("started"):
        facts.append(str(run["started"])[:16].replace("T", " "))
    return facts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _metric_columns(rows: Sequence[ResultRow]) -> list[Metric]:
    """Known metrics first, then those of any other name, once for all protocols and sample counts. Single classes have
    a table of their own."""
    keys = [(key, row.protocol) for row in rows for key in row.metrics if not key.startswith(CLASS_ACCURACY)]
    names = dict.fromkeys(key.partition(f"_{protocol}")[0] for key, protocol in keys)
    known = [metric.under(_protocols_of(rows, metric)) for metric in known_metrics([row.metrics for row in rows])]
    known += (*TAG_METRICS, *FURTHER) if "geneval" in names else ()
    known = [metric for metric in known if metric.name in names]
    return known + [Metric(name, name) for name in names if name not in {metric.name for metric in known}]


def _protocols_of(rows: Sequence[ResultRow], metric: Metric) -> list[str]:
    return [row.protocol for row in rows if find_key(row.metrics, metric.name)]


def _by_class(arms: Sequence[Arm], names: Mapping[str, str]) -> dict[str, Any] | None:
    """Median accuracy of each class, a row an arm; None where it was not measured."""
    keys = list(
        dict.fromkeys(key for arm in arms for row in arm.rows for key in row.metrics if key.startswith(CLASS_ACCURACY))
    )
    if not keys:
        return None
    measured = [(arm, [arm.metric(key) for key in keys]) for arm in arms]
    return {
        "classes": [key.removeprefix(CLASS_ACCURACY) for key in keys],
        "arms": [
            {
                "name": names.get(arm.label, arm.label),
                "settings": arm.settings,
                "css": arm_class(arm),
                "values": ["" if spread is None else f"{spread.median:.3f}" for spread in spreads],
            }
            for arm, spreads in measured
            if any(spreads)
        ],
    }


def _arm_entry(
    arm: Arm, roles: Roles, metric: Metric | None, columns: Sequence[Metric], names: Mapping[str, str]
) -> dict[str, Any]:
    cells = []
    for column in columns:
        spread = arm.metric(column.name)
        several = spread is not None and len(spread.values) > 1
        cells.append(
            {
                "median": fixed(spread.median, column) if spread else "",
                "range": f"{fixed(spread.min, column)}–{fixed(spread.max, column)}" if spread and several else "",
                "sd": f"sd {spread.sd:.2g}" if spread and several else "",
            }
        )
    return {
        "name": names.get(arm.label, arm.label),
        "settings": arm.settings,
        "css": arm_class(arm),
        "strong": arm is roles.aligned,
        "cells": cells,
        "change": _change(arm, roles.base, metric),
        "forwards": f"{arm.forwards_per_image:.4g}" if arm.forwards_per_image else "",
        "rate": number(arm.images_per_second) if arm.images_per_second else "",
    }


def _change(arm: Arm, base: Arm | None, metric: Metric | None) -> dict[str, str] | None:
    """The arm against the base, seed by seed."""
    if base is None or metric is None or arm is base or arm.metric(metric.name) is None:
        return None
    try:
        comparison = paired(arm, base, metric.name)
    except ValueError:  # no seed in common: there is nothing to pair
        return None
    moves = comparison.differences
    span = f"{change(moves.min, metric)} to {change(moves.max, metric)}" if len(moves.values) > 1 else ""
    return {
        "median": change(moves.median, metric) + (f" (×{ratio(comparison)})" if ratio(comparison) else ""),
        "range": span,
        "verdict": judge(comparison, metric).value,
    }


def _chart_legend(arms: Sequence[Arm], names: Mapping[str, str]) -> list[tuple[str, str]]:
    other = "base, other temperature or filter"
    legend = {
        arm_class(arm): names.get(arm.label, arm.label) + (", " + arm.search if arm.search else "") for arm in arms
    }
    return [(css, other if css == css_class("temperature") else name) for css, name in legend.items()]


def _table_remarks(arms: Sequence[Arm], rows: Sequence[ResultRow]) -> list[str]:
    if not arms:
        return []
    seeds = sorted({len(arm.rows) for arm in arms})
    counted = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(*seeds)
    told = dict.fromkeys(remark for arm in arms for row in arm.rows for remark in row.remarks)
    remarks = ["One seed." if seeds == [1] else f"Medians over {counted} seeds, with the range below."]
    if all(arm.split == "select" for arm in arms):
        remarks.append("These rows were used to choose settings: no claim rests on them.")
    if any(_is_domain_fid(row) for row in rows):
        remarks.append("Domain FID: not comparable with Inception FID.")
    if any(_is_other_geneval(row) for row in rows):
        remarks.append("GenEval's rules with another detector: not comparable with published GenEval.")
    return remarks + [f"{remark}." for remark in told]


def _chart_remarks(rows: Sequence[ResultRow]) -> Iterator[str]:
    shown_as = {
        "report": "Large marks: report seeds, median and range",
        "select": "Lines and small marks: selection seeds",
    }
    for split, words in shown_as.items():
        if counts := sorted({row.n for row in rows if row.split == split}):
            yield f"{words}, n = {', '.join(map(str, counts))}."


def _is_domain_fid(row: ResultRow) -> bool:
    return not row.protocol.startswith("adm") and any(key.startswith("fid_") for key in row.metrics)


def _is_other_geneval(row: ResultRow) -> bool:
    return row.protocol != "geneval" and find_key(row.metrics, "geneval") is not None


def _protocols(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """How the numbers were made, once for every combination that occurs."""
    found: dict[tuple[Any, ...], list[ResultRow]] = {}
    for row in rows:
        found.setdefault(tuple(getattr(row, name) for name in COMPARABLE), []).append(row)
    return [
        {
            "name": protocol,
            "splits": " and ".join(sorted({row.split for row in group})),
            "metric_keys": list(dict.fromkeys(key for row in group for key in row.metrics)),
            "n": n,
            "reference_n": reference_n,
            "reference_hash": reference_hash,
            "fingerprint": fingerprint,
            "of_prompts": any(row.verdicts or find_key(row.metrics, "geneval") for row in group),
        }
        for (protocol, n, reference_n, reference_hash, fingerprint), group in found.items()
    ]


def _row_entry(row: ResultRow, columns: Sequence[Metric]) -> dict[str, Any]:
    cells = []
    for column in columns:
        key = next((key for key in row.metrics if key.partition(f"_{row.protocol}")[0] == column.name), None)
        error = row.stderr.get(key, math.nan) if key else math.nan
        cells.append((fixed(row.metrics[key], column) if key else "", f"± {error:.2g}" if math.isfinite(error) else ""))
    return {
        "row": row,
        "settings": summarize([row])[0].settings,
        "cells": cells,
        "forwards": f"{row.forwards_per_image:.4g}" if row.forwards_per_image else "",
        "rate": number(row.images_per_second) if row.images_per_second else "",
    }


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as (dotted path, text)."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(item)
