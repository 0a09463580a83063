"""Score a generator under one sampling setting: images of fixed seeds, of classes evenly or of prompts, through a protocol.

The row is appended to output_dir/results.jsonl, the first images go to output_dir/samples/, verdicts on single images of
prompts to output_dir/verdicts/, and report.html is written anew.
For example: align eval generator.checkpoint=runs/mnist/cca label=aligned
Of generators of text: align eval generator=llamagen-t2i ... evaluation=geneval
By rewards, on prompts of your own: align eval generator=llamagen-t2i ... prompts=FILE 'rewards=[{name: clip-score, kwargs: {model: MODEL}}]'
The best of four of each image: align eval search=best_of_n search.n=4 'search.reward.rewards=[{name: NAME}]'; the judge that
selects must not be the one that is reported, and the row names it
Of images from elsewhere, in GenEval's folders: align eval images=FOLDER evaluation=geneval label=theirs
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from align.sampling import generate
from evaluation.arms import summarize, text_table
from evaluation.report import write_report
from recipes.config import compose
from recipes.image_folders import FolderWriter, check_folder, score_folder
from recipes.judge import Draw, Judge
from recipes.parts import make_generator, make_sampling
from recipes.run import Run, say
from recipes.search_settings import make_draw, same_judges
from recipes.tasks import PromptTask, Task, make_task

IMAGES = "images"


def main(overrides: list[str]) -> None:
    config = compose("eval", _with_section(overrides))
    _refuse_unread(config)
    task = make_task(config.evaluation, classes=None if config.classes is None else list(config.classes))
    sampling = make_sampling(config.sampling)
    draw: Draw = generate
    search = ""
    if config.images is None:
        generator = make_generator(config.generator)
        task.check(generator)
        draw, search = make_draw(config.search, generator, task.rows(generator))
        _warn_of_judges(config.search, task)
    else:
        check_folder(Path(config.images), task)
    keep = _keep(config, task)
    run = Run(config, kind="eval", overrides=overrides, name=config.label, append=True)  # replaces an earlier record
    run.update(evaluation=task.facts())
    judge = Judge(task, config.evaluation.batch_size, run.folder, draw=draw, search=search, keep=keep)
    with run.watching():
        if config.images is None:
            row = judge.score(generator, config.label, sampling, split="report", grid=True)
        else:
            row = score_folder(judge, Path(config.images), config.label, sampling)
    run.update(status="finished", hashes={"generator": row.checkpoint})
    print(text_table(summarize([row])))
    say(f"report: {write_report(run.folder)}")


def _warn_of_judges(search: DictConfig, task: Task) -> None:
    for name in same_judges(search, task.protocol):
        say(
            f"note: reward {name!r} selects the images and is what protocol {task.protocol.name} judges them by: its figures tell how "
            "well that judge can be pleased. Go by the held-out judge or other metrics, or select by another reward"
        )
    for name in same_judges(search, task.protocol, held_out=True):
        say(
            f"note: reward {name!r} selects the images and is the held-out judge too, whose figure confirms nothing here"
        )


def _keep(config: DictConfig, task: Task) -> FolderWriter | None:
    if not config.save_images:
        return None
    if config.images is not None or not isinstance(task, PromptTask):
        raise ValueError(
            "save_images=true writes images that are drawn for prompts to folders as GenEval has them; not with images=, nor "
            "for classes (`align sample` writes those)"
        )
    return FolderWriter(Path(config.output_dir) / IMAGES, task)


def _with_section(overrides: list[str]) -> list[str]:
    """Prompts or rewards by themselves mean the protocol that consists of them."""
    names = {word.partition("=")[0] for word in overrides}
    return (
        ["evaluation=prompts", *overrides]
        if names & {"prompts", "rewards"} and "evaluation" not in names
        else overrides
    )


def _refuse_unread(config: DictConfig) -> None:
    """Raises ValueError where prompts or rewards are given to a protocol that does not read them, or a search for images
    that are drawn already."""
    if config.images is not None and config.search.mode != "none":
        raise ValueError("a search draws images, and images= are drawn already; leave search= out")
    protocol = config.evaluation.protocol
    for name in ("prompts", "rewards"):
        read = isinstance(protocol, DictConfig) and protocol.get(name) == config[name]
        if config[name] and not read:
            raise ValueError(
                f"{name}= is given, and this evaluation has {name} of its own; leave it out, or choose evaluation=prompts"
            )
