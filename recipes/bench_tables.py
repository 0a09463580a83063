"""The tables of `align bench`, in Markdown, from its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.arms import Spread
from evaluation.metric_names import Metric

# name in the summary -> its column and digits; the first one that was measured leads, and is compared with the base's
COLUMNS = {
    "fid": ("FID", 2),
    "geneval": ("GenEval", 3),
    "held-out": ("held-out judge", 3),
    "accuracy": ("accuracy", 3),
    "recall": ("recall", 3),
    "reward": ("reward", 2),
}
DETAILS = "details"  # of an arm: figures by name, which have a table of their own: GenEval's tags


def make_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: one table per generator, FID also as the median ratio to the plain base on the same seeds, GenEval as the
    median change, and both at the best temperature or filter; a further one of each tag; and one of erased classes."""
    parts = []
    for generator, result in summary.items():
        if result["arms"]:
            parts.append(_gains_table(generator, result["arms"]))
            if any(arm.get(DETAILS) for arm in result["arms"]):
                parts.append(_details_table(generator, result["arms"]))
        if "erasure" in result:
            parts.append(_erasure_table(generator, result["erasure"]))
    return "\n\n".join(parts)


def _gains_table(generator: str, arms: Sequence[Mapping[str, Any]]) -> str:
    plain = next(arm for arm in arms if arm["label"] == "base" and arm["plain"])
    first, *others = [name for name in COLUMNS if name in plain]
    base = plain[first]["by_seed"]
    compared = "ratio to base" if first == "fid" else "change"
    leading = _title(first, plain)
    titles = [leading, compared, f"{leading}, tuned sampling", *(_title(name, plain) for name in others)]
    lines = [
        f"`{generator}`, medians [range] of {len(base)} paired seeds, {plain['n']} images each:",
        "",
        f"| arm | {' | '.join(titles)} | forwards per image | training, s |",
        f"|{'---|' * (len(titles) + 3)}",
    ]
    for arm in [arm for arm in arms if not _reshaped(arm)]:
        seconds = "" if arm["training_seconds"] is None else f"{arm['training_seconds']:.0f}"
        own = arm[first]["by_seed"]
        if first == "fid":
            move = f"{Spread({int(seed): value / base[seed] for seed, value in own.items()}).median:.2f}"
        else:
            move = f"{Spread({int(seed): value - base[seed] for seed, value in own.items()}).median:+.3f}"
        cells = [
            _name(arm),
            spread(arm[first], COLUMNS[first][1]),
            move,
            _tuned(arm, arms, first),
            *(spread(arm[name], COLUMNS[name][1]) if name in arm else "" for name in others),
            f"{arm['forwards_per_image']:g}",
            seconds,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _reshaped(arm: Mapping[str, Any]) -> bool:
    return arm["temperature"] != 1.0 or bool(arm.get("filters"))


def _tuned(arm: Mapping[str, Any], arms: Sequence[Mapping[str, Any]], first: str) -> str:
    """The figure of the same generator at its best temperature or filter, with or without guidance as `arm`."""
    guided = arm["guidance"] != "off"
    for other in arms:
        if other["label"] == arm["label"] and (other["guidance"] != "off") == guided and _reshaped(other):
            settings = [f"T={other['temperature']:g}"] if other["temperature"] != 1.0 else []
            settings += other.get("filters", [])
            settings += [f"guidance {other['guidance']}"] if other["guidance"] not in ("off", arm["guidance"]) else []
            return f"{spread(other[first], COLUMNS[first][1])} ({', '.join(settings)})"
    return ""


def _title(name: str, arm: Mapping[str, Any]) -> str:
    """GenEval goes by its protocol's name, since another detector gives other numbers."""
    return Metric(name, COLUMNS[name][0]).under([arm["protocol"]] if name == "geneval" else []).title


def _details_table(generator: str, arms: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for arm in arms for name in arm.get(DETAILS, {})))
    lines = [f"`{generator}`, by kind:", "", f"| arm | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for arm in arms:
        details = arm.get(DETAILS, {})
        cells = [_name(arm), *(spread(details[name], 3) if name in details else "" for name in names)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _erasure_table(generator: str, result: Mapping[str, Any]) -> str:
    lines = [
        f"`{generator}`, class {result['class']} erased:",
        "",
        f"| arm | accuracy on class {result['class']} | accuracy on the others | FID of the others | their recall |",
        "|---|---|---|---|---|",
    ]
    for label, arm in result["arms"].items():
        cells = [
            label,
            spread(arm["accuracy_erased"], 3),
            *(spread(arm["kept"][name], COLUMNS[name][1]) for name in ("accuracy", "fid", "recall")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _name(arm: Mapping[str, Any]) -> str:
    name = str(arm["label"])
    if arm["guidance"] != "off":
        name += f", guidance {arm['guidance']}"
    settings = [f"T={arm['temperature']:g}"] if arm["temperature"] != 1.0 else []
    name += "".join(f", {setting}" for setting in [*settings, *arm.get("filters", [])])
    return name


def spread(figure: Mapping[str, float], digits: int) -> str:
    """The median, and the range in brackets where it is one."""
    low, high = (f"{figure[end]:.{digits}f}" for end in ("low", "high"))
    return f"{figure['median']:.{digits}f}" + (f" [{low}, {high}]" if low != high else "")
