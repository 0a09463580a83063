"""What a set of results allows one to say: one sentence, and the remarks that an honest reader would ask for.

A direction is claimed only if at least two seeds were paired, all of them moved the same way, and the median move is
larger than the range over which the baseline itself moves from seed to seed. Everything else is "no clear change".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from evaluation.arms import Arm, Paired, Spread, paired
from evaluation.metric_names import METRICS, Metric, find_key, known_metric, known_metrics

MINUS = "\N{MINUS SIGN}"
HELD_OUT = next(metric for metric in METRICS if metric.name == "held-out")


@dataclass(frozen=True)
class Headline:
    """One sentence with numbers, and the remarks below it."""

    sentence: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Roles:
    """The arms that a claim about guidance-free quality needs; None where a run does not have one."""

    base: Arm | None = None
    temperature: Arm | None = None  # the base, unguided, at its best other temperature or filter
    cfg: Arm | None = None  # the base at its best guidance scale
    sft: Arm | None = None  # the same training on the same data without the objective
    search: Arm | None = None  # the base with the best search at test time
    aligned: Arm | None = None

    def present(self) -> list[Arm]:
        """Those that a run has: the three of the claim first, then its controls."""
        arms = (self.base, self.cfg, self.aligned, self.temperature, self.sft, self.search)
        return [arm for arm in arms if arm is not None]


class Verdict(Enum):
    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "no clear change"
    ONE_SEED = "one seed"


def headline_metric(arms: Sequence[Arm]) -> Metric | None:
    """The metric to judge by: the first known one, FID before others, that is not contaminated if there is such a one; else
    the first of any name."""
    rows = [row.metrics for arm in arms for row in arm.rows]
    for metric in [*known_metrics(rows, but=contaminated_metrics(arms)), *known_metrics(rows)]:
        if protocols := [arm.rows[0].protocol for arm in arms if arm.metric(metric.name)]:
            return metric.under(protocols)
    keys = [key for arm in arms for row in arm.rows for key in row.metrics]
    return Metric(keys[0], keys[0]) if keys else None


def contaminated_metrics(arms: Sequence[Arm]) -> list[str]:
    """Names of those whose own features a generator was rewarded by: they see what was optimised, not only what it did."""
    return list(dict.fromkeys(name for arm in arms for row in arm.rows for name in row.contaminated))


def assign_roles(arms: Sequence[Arm], metric: Metric) -> Roles:
    """Find the arms that matter among arms of one split."""
    measured = [arm for arm in arms if arm.metric(metric.name)]
    base = [arm for arm in measured if arm.label == "base"]
    once = [arm for arm in base if arm.drawn_once]
    plain = {arm.label: arm for arm in measured if arm.plain}
    return Roles(
        base=plain.get("base"),
        temperature=best_arm([arm for arm in once if arm.guidance_scale == 1 and not arm.plain], metric),
        cfg=best_arm([arm for arm in once if arm.guidance_scale > 1], metric),
        sft=plain.get("sft"),
        search=best_arm([arm for arm in base if arm.search], metric),
        aligned=plain.get("aligned"),
    )


def best_arm(arms: Sequence[Arm], metric: Metric) -> Arm | None:
    """The one with the best median; None where none is defined."""
    defined = [arm for arm in arms if not math.isnan(median(arm, metric))]
    return min(defined, key=lambda arm: metric.rank(median(arm, metric)), default=None)


def median(arm: Arm, metric: Metric) -> float:
    spread = arm.metric(metric.name)
    return spread.median if spread else math.nan


def judge(comparison: Paired, metric: Metric) -> Verdict:
    """Decide whether paired differences show a direction; the module's docstring holds the rule."""
    moves = comparison.differences
    if len(moves.values) == 1:
        return Verdict.ONE_SEED
    noise = comparison.base.max - comparison.base.min
    if not (moves.min > 0 or moves.max < 0) or not abs(moves.median) > noise:
        return Verdict.UNCLEAR
    return Verdict.BETTER if (moves.median < 0) == metric.lower_is_better else Verdict.WORSE


def number(value: float, decimals: int = 3) -> str:
    """Three significant digits, at most `decimals` of them behind the point, never an exponent."""
    if not math.isfinite(value):
        return "undefined"
    needed = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(max(needed, 0), decimals)}f}".replace("-", MINUS)


def fixed(value: float, metric: Metric) -> str:
    """All decimals of the metric, for columns."""
    return f"{value:.{metric.digits}f}" if math.isfinite(value) else "undefined"


def change(value: float, metric: Metric) -> str:
    """A difference with its sign."""
    return ("+" if value > 0 else "") + number(value, metric.digits)


def ratio(comparison: Paired) -> str | None:
    """The median ratio; None where a value is not positive, as of log-probabilities, whose ratios mean nothing."""
    positive = comparison.base.min > 0 and comparison.arm.min > 0
    return number(comparison.ratios.median, 2) if positive else None


def headline(arms: Sequence[Arm], method: str) -> Headline:
    """The sentence that these arms support, for a run of the objective `method` (such as "CCA")."""
    metric = headline_metric(arms)
    if metric is None:
        return Headline("This run holds no evaluation yet, so nothing can be said about a gain.")
    report = [arm for arm in arms if arm.split == "report" and arm.metric(metric.name)]
    if not report:
        return _selection_only(arms, metric)
    roles = assign_roles(report, metric)
    if roles.aligned is None:
        return _without_aligned(roles.base or report[0], metric)
    if roles.base is None:
        return _without_base(roles.aligned, metric, method)
    comparison = paired(roles.aligned, roles.base, metric.name)
    verdict = judge(comparison, metric)
    sentence = _change(roles, comparison, verdict, metric, method)
    if roles.temperature is not None:
        sentence += _against_temperature(roles.aligned, roles.temperature, verdict, metric, arms)
    if roles.cfg is not None:
        sentence += _against_cfg(roles.aligned, roles.cfg, verdict, metric, arms)
    return Headline(sentence + ".", tuple(_notes(roles, verdict, metric, method)))


def _selection_only(arms: Sequence[Arm], metric: Metric) -> Headline:
    best = best_arm(arms, metric)
    if best is None:
        return Headline(f"{metric.title} is undefined in every row, so nothing can be said about a gain.")
    order = "lowest" if metric.lower_is_better else "highest"
    return Headline(
        f"On the selection seeds, the {order} {metric.title} is {number(median(best, metric))}: "
        f"{best.label}, {best.settings} ({len(arms)} {'setting' if len(arms) == 1 else 'settings'} tried).",
        (
            "A setting chosen on these rows looks better than it is; evaluate it on other seeds before claiming a gain.",
            *_contaminated(arms, metric),
        ),
    )


def _without_aligned(arm: Arm, metric: Metric) -> Headline:
    return Headline(
        f"{arm.label}, {arm.settings}: {metric.title} {_stated(arm, metric)}, n = {arm.rows[0].n}.",
        (
            "This run evaluated no aligned, guidance-free generator, so it says nothing about a gain.",
            *_contaminated([arm], metric),
        ),
    )


def _without_base(aligned: Arm, metric: Metric, method: str) -> Headline:
    return Headline(
        f"{method} has a guidance-free {metric.title} of {_stated(aligned, metric)}; "
        "the base was not evaluated in this run, so no gain can be claimed.",
        tuple(_contaminated([aligned], metric)),
    )


def _stated(arm: Arm, metric: Metric) -> str:
    """An arm's value by itself, with what is known of its uncertainty."""
    spread = arm.metric(metric.name)
    assert spread is not None
    if len(spread.values) == 1:
        return f"{_with_error(arm, spread, metric)} (one seed)"
    return (
        f"{number(spread.median)} (median of {len(spread.values)} seeds, {number(spread.min)} to {number(spread.max)})"
    )


def _with_error(arm: Arm, spread: Spread, metric: Metric) -> str:
    """The value of a single seed with its standard error."""
    stderr = next(row.stderr for row in arm.rows if row.seed in spread.values)
    error = stderr.get(find_key(stderr, metric.name) or "", math.nan)
    known = math.isfinite(error) and math.isfinite(spread.median)
    return number(spread.median) + (f" ± {error:.2g}" if known else "")


def _change(roles: Roles, comparison: Paired, verdict: Verdict, metric: Metric, method: str) -> str:
    assert roles.aligned is not None and roles.base is not None
    what = f"guidance-free {metric.title}"
    if verdict is Verdict.ONE_SEED:
        before = _with_error(roles.base, comparison.base, metric)
        after = _with_error(roles.aligned, comparison.arm, metric)
        times = f" (ratio {ratio(comparison)})" if ratio(comparison) else ""
        return f"On one seed, {method} takes {what} from {before} to {after}{times}; how much seeds differ is unknown"
    moves = comparison.differences
    details = [f"medians of {len(moves.values)} paired seeds"]
    details.append(f"change {change(moves.min, metric)} to {change(moves.max, metric)}")
    details += [f"ratio {ratio(comparison)}"] if ratio(comparison) else []
    values = f"from {number(comparison.base.median)} to {number(comparison.arm.median)} ({'; '.join(details)})"
    if verdict is Verdict.UNCLEAR:
        return f"{method} shows no clear gain: {what} goes {values}"
    verb = "lowers" if moves.median < 0 else "raises"
    return f"{method} {verb} {what} {values}" + (", which is worse" if verdict is Verdict.WORSE else "")


def _against_temperature(aligned: Arm, other: Arm, verdict: Verdict, metric: Metric, arms: Sequence[Arm]) -> str:
    """The free alternative: the base itself, sampled at another temperature or with a filter."""
    tried = [arm for arm in _tried(arms) if arm.guidance_scale == 1]
    setting = ", ".join([f"T={other.temperature:g}", *other.filters])
    value = number(median(other, metric))
    best = f"the best {'sampling setting' if other.filters else 'temperature'} ({setting}: {value})"
    name = best if sum(not arm.plain for arm in tried) > 1 else f"the base at {setting} ({value})"
    compared = judge(paired(aligned, other, metric.name), metric)
    if verdict is not Verdict.BETTER or compared is Verdict.ONE_SEED:
        return f"; compare {name}"
    if compared is Verdict.BETTER:
        return f", better than {name}"
    if compared is Verdict.WORSE:
        return f", but worse than {name}, which needs no training"
    return f", but not clearly better than {name}, which needs no training"


def _against_cfg(aligned: Arm, guided: Arm, verdict: Verdict, metric: Metric, arms: Sequence[Arm]) -> str:
    """The costly alternative: guidance, with its price."""
    tried = [arm for arm in _tried(arms) if arm.guidance_scale > 1]
    reshaped = [f"T={guided.temperature:g}", *guided.filters] if guided.reshaped else []
    setting = ", ".join([f"scale {guided.guidance}", *reshaped])
    name = f"{'the best CFG' if len(tried) > 1 else 'CFG'} ({setting})"
    text = f"{', against' if verdict is Verdict.BETTER else '; compare'} {number(median(guided, metric))} for {name}"
    return text + _price(guided, aligned)


def _tried(arms: Sequence[Arm]) -> list[Arm]:
    """The base's settings among which the best was chosen."""
    return [arm for arm in arms if arm.split == "select" and arm.label == "base" and not arm.search]


def _price(costly: Arm, aligned: Arm) -> str:
    if not (costly.forwards_per_image and aligned.forwards_per_image):
        return ""
    times = f"{costly.forwards_per_image / aligned.forwards_per_image:.1f}".removesuffix(".0")
    return f" at {'twice' if times == '2' else times + ' times'} the forwards per image"


def _notes(roles: Roles, verdict: Verdict, metric: Metric, method: str) -> list[str]:
    assert roles.aligned is not None and roles.base is not None
    rises = median(roles.aligned, metric) > median(roles.base, metric)
    gained = verdict in (Verdict.BETTER, Verdict.ONE_SEED) and rises
    judged = _second_opinion(roles.aligned, roles.base) if gained and metric.name == "geneval" else None
    notes = [*_contaminated([roles.aligned], metric), *([judged] if judged else [])]
    if roles.sft is not None:
        comparison = paired(roles.aligned, roles.sft, metric.name)
        compared = judge(comparison, metric)
        text = f"Control: the same data without the objective (SFT) gives {metric.title} {_stated(roles.sft, metric)}"
        if verdict is Verdict.BETTER and compared is Verdict.BETTER:
            text += ", so the gain is not just further training"
        elif verdict is Verdict.BETTER and compared is not Verdict.ONE_SEED:
            text += f", so the gain cannot be credited to {method}"
        notes.append(text + ".")
    if roles.search is not None:
        notes.append(_against_search(roles.aligned, roles.search, metric, method))
    told = {metric.name, *(["held-out"] if judged else [])}
    known = known_metrics(row.metrics for row in roles.aligned.rows)
    others = [other.under([roles.base.rows[0].protocol]) for other in known if other.name not in told]
    moved = [_side_effect(roles.aligned, roles.base, other) for other in others]
    if changes := [text for text in moved if text]:
        notes.append(f"{method} against base, both without guidance: {'; '.join(changes)}.")
    wanted = {"another temperature": roles.temperature, "CFG": roles.cfg, "an SFT control": roles.sft}
    if missing := [name for name, arm in wanted.items() if arm is None]:
        notes.append(f"Not compared in this run: {', '.join(missing)}.")
    return notes


def _contaminated(arms: Sequence[Arm], metric: Metric) -> list[str]:
    """That metrics were rewarded themselves, and whether another one leads."""
    names = contaminated_metrics(arms)
    if not names:
        return []
    titles = ", ".join(one.title for name in names if (one := known_metric(name)) is not None)
    text = f"Contaminated: {titles}. The generator was rewarded by the very features that these are measured in, so that a gain in them may be no gain to the eye"
    led = (
        f"; this page leads with {metric.title} instead"
        if metric.name not in names
        else ", and no other metric was measured"
    )
    return [f"{text}{led}."]


def _side_effect(aligned: Arm, base: Arm, metric: Metric) -> str | None:
    if aligned.metric(metric.name) is None or base.metric(metric.name) is None:
        return None
    comparison = paired(aligned, base, metric.name)
    moved = f"{metric.title} {number(comparison.base.median)} → {number(comparison.arm.median)}"
    verdict = judge(comparison, metric)
    return moved if verdict is Verdict.ONE_SEED else f"{moved} ({verdict.value})"


def _against_search(aligned: Arm, searched: Arm, metric: Metric, method: str) -> str:
    """Compute at test time instead of training, with its price."""
    text = f"Without training, the base with {searched.search}"
    text += f" and guidance {searched.guidance}" if searched.guidance_scale != 1 else ""
    text += f" gives {metric.title} {_stated(searched, metric)}{_price(searched, aligned)}"
    compared = judge(paired(aligned, searched, metric.name), metric)
    said = {Verdict.BETTER: "is better", Verdict.WORSE: "is worse", Verdict.UNCLEAR: "is not clearly different"}
    return text + (f"; {method} {said[compared]}." if compared in said else ".")


def _second_opinion(aligned: Arm, base: Arm) -> str | None:
    """Whether the judge that no reward used sees the gain as well; None if there is no such judge."""
    moved = _side_effect(aligned, base, HELD_OUT)
    if moved is None:
        return None
    comparison = paired(aligned, base, HELD_OUT.name)
    verdict = judge(comparison, HELD_OUT)
    if verdict is Verdict.ONE_SEED:
        verdict = Verdict.BETTER if comparison.differences.min > 0 else Verdict.UNCLEAR
    said = {Verdict.BETTER: "agrees", Verdict.UNCLEAR: "sees no clear gain", Verdict.WORSE: "sees a loss"}[verdict]
    warning = "" if verdict is Verdict.BETTER else " The detector may have been gamed."
    return f"A judge that no reward used {said}: {moved}.{warning}"
