"""The tables of a leaderboard for a paper: in Markdown, and in LaTeX for the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Callable

from evaluation.headline import MINUS
from evaluation.leaderboard import Entry, Figure, Group, Leaderboard, best_text, figure
from evaluation.metric_names import Metric, known_metric

_LATEX = {
    **{character: f"\\{character}" for character in "{}$&#%_"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # an argument of the line break before it
    "*": "{*}",
    "π": r"$\pi$",  # of VA-π: no letter of the usual text fonts
    MINUS: "$-$",
}
_HEADER = "% in the preamble: \\usepackage{booktabs} and \\usepackage[T1]{fontenc}\n"
_READING = "Medians over seeds with their range, or one seed with its standard error where that is known"


def markdown(board: Leaderboard) -> str:
    """Every group's table, and what a reader should know of the runs."""
    parts = [f"# Leaderboard\n\n{board.summary}. Numbers compare inside of a table only."]
    parts += [markdown_table(group) for group in board.groups]
    if notes := [*(f"Left out: {reason}" for reason in board.left_out), *board.remarks]:
        parts.append("\n".join(f"- {escape_markdown(note)}" for note in notes))
    return "\n\n".join(parts) + "\n"


def latex(board: Leaderboard) -> str:
    return "\n".join([_HEADER, *(latex_table(group, number) for number, group in enumerate(board.groups, start=1))])


def markdown_table(group: Group) -> str:
    titles = [
        *("run", "arm", "method", "sampling", "seeds"),
        *_titles(group, "↓", "↑"),
        "forwards per image",
        "images/s",
    ]
    rows = _rows(group, escape_markdown, _markdown_figure)
    lines = [
        f"**{escape_markdown(group.protocol)}**, {escape_markdown(group.measured)}. {_READING}.",
        "",
        f"| {' | '.join(map(escape_markdown, titles))} |",
        f"|{'---|' * 4}{'---:|' * (len(titles) - 4)}",
        *(f"| {' | '.join([*row, _cost(entry.arm.images_per_second)])} |" for entry, row in rows),
    ]
    if remarks := group.remarks():
        lines += ["", *(f"- {escape_markdown(f'{remark} ({_arms(count)})')}" for remark, count in remarks.items())]
    return "\n".join(lines)


def latex_table(group: Group, number: int) -> str:
    titles = [
        *("run", "arm", "method", "sampling", "seeds"),
        *_titles(group, r"$\downarrow$", r"$\uparrow$", escape_latex),
    ]
    body = [f"{' & '.join(row)} \\\\" for _, row in _rows(group, escape_latex, _latex_figure)]
    remarks = [f"{escape_latex(f'{text} ({_arms(count)})')}\\par" for text, count in group.remarks().items()]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering\small",
            f"\\caption{{Protocol {escape_latex(group.protocol)}, {escape_latex(group.measured)}. {_READING}.}}",
            f"\\label{{tab:leaderboard-{number}}}",
            f"\\begin{{tabular}}{{llll{'r' * (len(titles) - 3)}}}",
            r"\toprule",
            f"{' & '.join([*titles, 'forwards'])} \\\\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *([r"\par\smallskip\footnotesize\raggedright", *remarks] if remarks else []),
            r"\end{table}",
            "",
        ]
    )


def _rows(
    group: Group, escape: Callable[[str], str], show: Callable[[Figure, bool], str]
) -> list[tuple[Entry, list[str]]]:
    """The cells up to the forwards per image."""
    columns = paper_columns(group)
    figures = [[figure(entry.arm, column) for column in columns] for entry in group.entries]
    best = [best_text(of_column, column) for of_column, column in zip(zip(*figures, strict=True), columns, strict=True)]
    rows = []
    for entry, known in zip(group.entries, figures, strict=True):
        words = [entry.run, entry.arm.label, entry.method, entry.arm.settings]
        cells = [show(one, one.text == top) if one else "" for one, top in zip(known, best, strict=True)]
        cells = [*map(escape, words), str(len(entry.arm.rows)), *cells, _cost(entry.arm.forwards_per_image)]
        rows.append((entry, cells))
    return rows


def paper_columns(group: Group) -> list[Metric]:
    """The known metrics, or where there are none those of any name: GenEval's kinds of prompt would fill a page."""
    known = [metric for name, metric in group.columns.items() if known_metric(name) is not None]
    return known or list(group.columns.values())


def _titles(group: Group, lower: str, higher: str, escape: Callable[[str], str] = str) -> list[str]:
    return [f"{escape(metric.title)} {lower if metric.lower_is_better else higher}" for metric in paper_columns(group)]


def _markdown_figure(known: Figure, best: bool) -> str:
    value = f"**{known.text}**" if best else known.text
    if known.ends:
        return f"{value} [{', '.join(known.ends)}]"
    return f"{value} ± {known.error}" if known.error else value


def _latex_figure(known: Figure, best: bool) -> str:
    if known.text == "undefined":
        return known.text
    value = f"\\mathbf{{{known.text}}}" if best else known.text
    if known.ends:
        return f"${value}_{{[{', '.join(known.ends)}]}}$"
    return f"${value} \\pm {known.error}$" if known.error else f"${value}$"


def _cost(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _arms(count: int) -> str:
    return f"{count} arm" if count == 1 else f"{count} arms"


def escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def escape_markdown(text: str) -> str:
    """Also against HTML, which Markdown lets through."""
    html = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html)


def _one_line(text: str) -> str:
    return " ".join(text.split())
