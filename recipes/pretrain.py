"""Make a zoo entry from nothing: tokenizer, generator, judges, card.

For example: align pretrain experiment=zoo/mnist-llamagen
The folder it leaves can be used wherever a zoo name can: align train generator.name=runs/zoo/mnist-llamagen
"""

from __future__ import annotations

from evaluation.report import write_report
from recipes.config import compose
from recipes.pretrain_digits import pretrain_on_digits
from recipes.pretrain_shapes import pretrain_on_shapes
from recipes.run import Run, refuse_many_processes, say

WORLDS = {"digits": pretrain_on_digits, "shapes": pretrain_on_shapes}


def main(overrides: list[str]) -> None:
    refuse_many_processes("`align pretrain`")
    config = compose("pretrain", overrides)
    if config.world not in WORLDS:
        raise ValueError(f"unknown world {config.world!r}; known: {', '.join(WORLDS)}")
    if "tokenizer" not in config:
        raise ValueError("nothing to pretrain: name an entry, as in experiment=zoo/mnist-llamagen")
    if config.resume not in (None, "auto") or (config.resume and config.world != "shapes"):
        raise ValueError(
            f"resume is {config.resume!r}; known: null, and for world=shapes auto (go on after the last whole part)"
        )
    run = Run(config, kind="pretrain", overrides=overrides)
    facts = WORLDS[config.world](config, run)
    run.update(status="finished", facts=facts)
    say((run.folder / "card.md").read_text())
    say(f"report: {write_report(run.folder)}")
