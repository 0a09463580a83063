"""Training curves of a run folder and of the runs inside it, as charts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from evaluation.charts import Line, css_class, plot
from evaluation.results import read_json_lines

METHOD_NAMES = {
    **{"cca": "CCA", "ddo": "DDO", "dpo": "DPO", "simpo": "SimPO", "spin": "SPIN", "kto": "KTO", "gft": "GFT"},
    **{"gft_sampled": "GFT", "policy_gradient": "GRPO", "grpo": "GRPO", "va_pi": "VA-π", "ste": "STE", "sft": "SFT"},
    "best_of_n": "best of N",
}
# those of what an objective raises have the colour of the positive gap, those of what it lowers of the negative one
GAPS = {
    **{"gap_positive": "positive", "gap_real": "positive", "gap_chosen": "positive"},
    **{"gap_negative": "negative", "gap_fake": "negative", "gap_rejected": "negative"},
    "gap_null": "null",
}
# Shown at once and in this order; whatever else was logged is one click away. Rewards are logged under their names.
MAIN = ("loss", "nll_per_token", "nll_mixture", "accuracy", "margin", "kl", "entropy", "grad_norm")
REWARD = "reward/"
SCORED = ("sweep", "eval")  # kinds of run that trained nothing, and whose name is no method's
X_KEYS = ("step", "epoch")
MAX_POINTS = 400  # per line: a chart of this size cannot show more


@dataclass(frozen=True)
class TrainingLog:
    """What one training run logged; `held_out` are the rewards that it was only watched by."""

    name: str
    objective: str
    records: Sequence[Mapping[str, Any]] = field(repr=False)
    held_out: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CurveChart:
    """A chart with its legend (colour class, text) and a remark on what it cannot show."""

    title: str
    svg: Markup
    legend: tuple[tuple[str, str], ...]
    remark: str
    main: bool


def read_run(folder: Path) -> dict[str, Any]:
    """The folder's `run.json`; empty if there is none.

    Raises:
        ValueError: the file is not a JSON object.
    """
    path = folder / "run.json"
    if not path.exists():
        return {}
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(run, dict):
        raise ValueError(f"{path}: an object was expected, got a {type(run).__name__}")
    return run


def method_name(run: Mapping[str, Any], folder: str) -> str:
    """The objective, from the configuration, or else from the name of the run (`mnist/cca`) or folder (`cca-seed1`)."""
    objective = (run.get("config") or {}).get("objective")
    target = objective.get("_target_") if isinstance(objective, Mapping) else objective
    name = str(target).rpartition(".")[2] if target else Path(run.get("name") or folder).name.partition("-seed")[0]
    return METHOD_NAMES.get(name, name)


def read_logs(run_dir: Path, run: Mapping[str, Any]) -> list[TrainingLog]:
    """The logs of the run itself and of its sub-runs, as far as they exist."""
    logs = []
    for folder in [run_dir, *(run_dir / str(name) for name in run.get("runs") or [])]:
        path = folder / "metrics.jsonl"
        records = [record for _, record in read_json_lines(path)] if path.exists() else []
        if records:
            own = read_run(folder)
            held_out = frozenset(reward["name"] for reward in own.get("rewards") or [] if reward.get("held_out"))
            logs.append(TrainingLog(folder.name, method_name(own, folder.name), records, held_out))
    return logs


def curve_charts(logs: Sequence[TrainingLog]) -> Iterator[CurveChart]:
    """One chart for the gaps and one for every other number that was logged more than once."""
    colours = _objective_colours(logs)
    gaps = [(log, key, css_class(kind)) for log in logs for key, kind in GAPS.items()]
    kinds = tuple((css_class(kind), key.removeprefix("gap_")) for key, kind in GAPS.items() if _logged(logs, key))
    yield from _chart("gap to the reference (nats)", gaps, kinds, main=True)
    logged = dict.fromkeys(key for log in logs for record in log.records for key in record)
    shown = [*MAIN[:1], *sorted(key for key in logged if key.startswith(REWARD)), *MAIN[1:]]
    for key in [*shown, *sorted(key for key in logged if key not in {*shown, *GAPS, *X_KEYS})]:
        groups = {name: [log for log in logs if log.objective == name and _logged([log], key)] for name in colours}
        present = [name for name, members in groups.items() if members]
        # Losses of different objectives share neither unit nor zero, so each has a chart of its own.
        for together in [[name] for name in present] if key == "loss" else [present]:
            lines = [(log, key, colours[name]) for name in together for log in groups[name]]
            legend = tuple((colours[name], name) for name in together) if len(colours) > 1 else ()
            watched = any(key == f"{REWARD}{name}" for log in logs for name in log.held_out)
            yield from _chart(f"{key}, held out" if watched else key, lines, legend, main=key in shown)


def _objective_colours(logs: Sequence[TrainingLog]) -> dict[str, str]:
    """SFT is always the control; the first other objective has the colour of the aligned arm."""
    objectives = list(dict.fromkeys(log.objective for log in logs))
    aligned = next((name for name in objectives if name != "SFT"), None)
    return {name: css_class({"SFT": "sft", aligned: "aligned"}.get(name, name)) for name in objectives}


def _logged(logs: Sequence[TrainingLog], key: str) -> bool:
    return any(key in record for log in logs for record in log.records)


def _chart(
    title: str, wanted: Sequence[tuple[TrainingLog, str, str]], legend: tuple[tuple[str, str], ...], *, main: bool
) -> Iterator[CurveChart]:
    lines, undefined = [], 0
    for log, key, css in wanted:
        values = [
            (float(record.get("step", index)), float(record[key]))
            for index, record in enumerate(log.records)
            if isinstance(record.get(key), int | float)
        ]
        points = [point for point in values if math.isfinite(point[1])]
        undefined += len(values) - len(points)
        if len(points) > 1:
            lines.append(Line(css, thin_out(points), f"{log.name}: {key}"))
    if lines:
        svg = plot(lines, description=f"{title} by training step", size=(320, 170))
        remark = f"{undefined} logged values are not finite and are left out." if undefined else ""
        yield CurveChart(title, svg, legend, remark, main)


def thin_out(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most about `limit` points that keep every spike: the lowest and the highest of each bucket."""
    if len(points) <= limit:
        return list(points)
    bucket = math.ceil(len(points) / (limit // 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), bucket):
        chunk = points[start : start + bucket]
        kept += sorted({min(chunk, key=lambda p: p[1]), max(chunk, key=lambda p: p[1])})
    return kept
