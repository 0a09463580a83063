"""Compare runs: every metric of the same arm of each, with intervals, paired by seed.

The arm is the guidance-free one at temperature 1 unless settings say otherwise; rows of the split "report" count.
For example: align compare runs/mnist/cca runs/mnist/ddo
The base of one run against the aligned generator of another: align compare runs/base runs/mnist/cca
At guidance 1.5 each: align compare runs/a runs/b guidance_scale=1.5
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from align.files import write_text
from evaluation.arms import ARM, Arm, summarize
from evaluation.comparison import compare_arms, comparison_table
from evaluation.headline import contaminated_metrics
from evaluation.results import read_results
from recipes.config import compose
from recipes.run import say

SETTINGS = tuple(name for name in ARM if name not in ("label", "images", "split"))


def main(arguments: list[str]) -> None:
    folders = [word for word in arguments if "=" not in word]
    quoted = ",".join(f"'{folder}'" for folder in folders)
    overrides = [word for word in arguments if "=" in word]
    config = compose("compare", [*([f"runs=[{quoted}]"] if folders else []), *overrides])
    if len(config.runs) < 2:
        raise ValueError(f"a comparison takes at least two runs, got {len(config.runs)}: align compare RUN_A RUN_B")
    base, *others = [(str(folder), _arm(Path(folder), config)) for folder in config.runs]
    told = []
    for folder, arm in others:
        names = f"{base[0]} ({base[1].label})", f"{folder} ({arm.label})"
        table = comparison_table(compare_arms(arm, base[1]), *names)
        first = base[1].rows[0]
        told.append(f"{arm.settings}; protocol {first.protocol}, n = {first.n}\n\n{table}")
        if rewarded := contaminated_metrics([base[1], arm]):
            told.append(f"Contaminated, since a generator was rewarded by the same features: {', '.join(rewarded)}.")
    text = "\n\n".join(told)
    print(text)
    if config.output:
        write_text(Path(config.output), text + "\n")
        say(f"written to {config.output}")


def _arm(folder: Path, config: DictConfig) -> Arm:
    if not (folder / "results.jsonl").exists():
        raise FileNotFoundError(f"{folder} is no run with results: it has no results.jsonl")
    arms = summarize(row for row in read_results(folder / "results.jsonl") if row.split == "report")
    alike = {arm.label: arm for arm in arms if all(getattr(arm, name) == config[name] for name in SETTINGS)}
    label = config.label or ("aligned" if "aligned" in alike else next(iter(alike), None) if len(alike) == 1 else None)
    if label in alike:
        return alike[label]
    has = "; ".join(f"{arm.label}, {arm.settings}" for arm in arms) or "none on report seeds"
    wanted = f"{config.label} " if config.label else ""
    raise ValueError(
        f"{folder} has no single arm {wanted}with these settings; choose by label=, guidance_scale=, temperature= and the like. "
        f"Its arms: {has}"
    )
