"""How the cost of drawing grows: a line in images and tokens, with attention's term, fitted to what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recipes.speed.table import markdown

FEWEST = 3  # lengths, and batch sizes: any curve goes through two
TERMS = ("per_step", "per_token", "per_pair")
CAPTION = "Growth: ours draws B images of L tokens in a L + b B L + c B L² seconds."


def fit(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each size, guidance and precision, ours' seconds as a L + b B L + c B L^2 of L tokens and B images.

    a: of a step, whatever the batch (weights are read); b: of an image's token; c: of a token's attending to another one.
    Least squares of relative errors, no coefficient below 0; `error_per_*` are the coefficients' standard errors.
    `deviation` is how far from the fit the worst cell is, as a share of what was measured; `worst` says which one that
    is. Left out where there are fewer than FEWEST lengths or batch sizes.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell[name] for name in ("size", "guidance", "precision")), []).append(cell)
    return [_fit(members) for members in groups.values() if _enough(members)]


def _enough(cells: Sequence[dict[str, Any]]) -> bool:
    return all(len({cell[name] for cell in cells}) >= FEWEST for name in ("batch", "length"))


def _fit(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from scipy.optimize import nnls

    batch, length = (np.array([cell[name] for cell in cells], dtype=float) for name in ("batch", "length"))
    seconds = np.array([np.median(cell["drawn_by"]["ours"]["seconds"]) for cell in cells])
    terms = np.stack([length, batch * length, batch * length**2], axis=1) / seconds[:, None]
    scale = np.linalg.norm(terms, axis=0)
    terms /= scale
    found = nnls(terms, np.ones(len(cells)))[0]
    errors = terms @ found - 1
    variance = errors @ errors / (len(cells) - len(TERMS))
    spread = np.sqrt(variance * np.diag(np.linalg.inv(terms.T @ terms)))
    worst = cells[int(np.abs(errors).argmax())]
    return {
        **{name: cells[0][name] for name in ("size", "parameters", "guidance", "precision")},
        "cells": len(cells),
        **{f"seconds_{name}": float(value) for name, value in zip(TERMS, found / scale, strict=True)},
        **{f"error_{name}": float(value) for name, value in zip(TERMS, spread / scale, strict=True)},
        "deviation": float(np.abs(errors).max()),
        "median_deviation": float(np.median(np.abs(errors))),
        "worst": {name: worst[name] for name in ("batch", "length")},
    }


def table(fits: Sequence[dict[str, Any]]) -> str:
    header = [
        "size",
        "million parameters",
        "guidance",
        "precision",
        "cells",
        "a, ms a step",
        "b, ms a token of an image",
    ]
    header += ["c, ns a pair of tokens", "median deviation", "largest deviation"]
    rows = []
    for found in fits:
        row = [str(found["size"] or ""), f"{found['parameters'] / 1e6:.0f}"]
        row += [str(found[name]) for name in ("guidance", "precision", "cells")]
        for name, unit in zip(TERMS, (1e3, 1e3, 1e9), strict=True):
            row.append(f"{found[f'seconds_{name}'] * unit:.3g} ± {found[f'error_{name}'] * unit:.1g}")
        worst = found["worst"]
        row += [f"{found['median_deviation']:.1%}"]
        row += [f"{found['deviation']:.1%} (batch {worst['batch']}, {worst['length']} tokens)"]
        rows.append(row)
    return f"{CAPTION}\n\n{markdown(header, rows)}"
