"""What a look at something found: fine, odd or wrong, and what to do. `align rewards check` and `align doctor` tell it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line of what was found.

    level: ok, warning (odd, may be meant so), error (will not work).
    what: a word or two for what was looked at.
    text: what was seen.
    advice: what to do; empty where there is nothing to do.
    """

    level: Literal["ok", "warning", "error"]
    what: str
    text: str
    advice: str = ""


def ok(what: str, text: str) -> Finding:
    return Finding("ok", what, text)


def warning(what: str, text: str, advice: str) -> Finding:
    return Finding("warning", what, text, advice)


def error(what: str, text: str, advice: str) -> Finding:
    return Finding("error", what, text, advice)


def line_of(finding: Finding, width: int = 14) -> str:
    """For the terminal: one line, and one for the advice."""
    advice = f"\n{'':<{10 + width}}-> {finding.advice}" if finding.advice else ""
    return f"{finding.level:<8}  {finding.what:<{width - 1}} {finding.text}{advice}"


def summary(findings: Iterable[Finding]) -> str:
    """`9 ok, 1 warning, 2 errors`."""
    levels = [finding.level for finding in findings]
    numbers = {level: levels.count(level) for level in ("ok", "warning", "error")}
    plural = {level: level + ("s" if numbers[level] != 1 and level != "ok" else "") for level in numbers}
    return ", ".join(f"{number} {plural[level]}" for level, number in numbers.items() if number)
