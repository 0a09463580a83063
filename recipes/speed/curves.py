"""How the cost of drawing grows: a line in images and tokens, with attention's term, fitted to what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recipes.speed.table import markdown

FEWEST = 4  # measured cells of a fit with three numbers


def fit(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each size, guidance and precision, ours' seconds as a L + b B L + c B L^2 of L tokens and B images.

    a: of a step, whatever the batch (weights are read); b: of an image's token; c: of a token's attending to another one.
    Least squares of relative errors, no coefficient below 0; `deviation` is the largest of these errors. Left out where
    there are fewer than FEWEST cells, or one length or one batch size only.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell[name] for name in ("size", "guidance", "precision")), []).append(cell)
    fits = []
    for (size, guidance, precision), members in groups.items():
        batch, length = (np.array([cell[name] for cell in members], dtype=float) for name in ("batch", "length"))
        if len(members) < FEWEST or len(set(batch)) < 2 or len(set(length)) < 2:
            continue
        seconds = np.array([np.median(cell["drawn_by"]["ours"]["seconds"]) for cell in members])
        terms = np.stack([length, batch * length, batch * length**2], axis=1)
        found = _nonnegative(terms / seconds[:, None], np.ones(len(members)))
        errors = terms @ found / seconds - 1
        names = ("per_step", "per_token", "per_pair")
        fits.append(
            {"size": size, "guidance": guidance, "precision": precision, "cells": len(members)}
            | {f"seconds_{name}": float(value) for name, value in zip(names, found, strict=True)}
            | {"deviation": float(np.abs(errors).max()), "median_deviation": float(np.median(np.abs(errors)))}
        )
    return fits


def _nonnegative(terms: np.ndarray, values: np.ndarray) -> np.ndarray:
    from scipy.optimize import nnls

    scale = np.linalg.norm(terms, axis=0)
    return nnls(terms / scale, values)[0] / scale


def table(fits: Sequence[dict[str, Any]]) -> str:
    header = ["size", "guidance", "precision", "cells", "ms a step", "ms a token", "ns a pair of tokens"]
    header += ["largest deviation", "median deviation"]
    rows = [
        [
            *(str(fit[name] or "") for name in ("size", "guidance", "precision", "cells")),
            *(f"{fit[name] * unit:.3g}" for name, unit in _UNITS.items()),
            f"{fit['deviation']:.1%}",
            f"{fit['median_deviation']:.1%}",
        ]
        for fit in fits
    ]
    return markdown(header, rows)


_UNITS = {"seconds_per_step": 1e3, "seconds_per_token": 1e3, "seconds_per_pair": 1e9}
