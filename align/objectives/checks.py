"""Refusing hyper-parameters that an objective has no meaning for."""

from __future__ import annotations


def check(**rules: tuple[object, bool, str]) -> None:
    """check(beta=(beta, beta > 0, "positive")): raise ValueError for the first value that breaks its rule."""
    for name, (value, valid, rule) in rules.items():
        if not valid:
            raise ValueError(f"{name} is {value!r}; it must be {rule}")
