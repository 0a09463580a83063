"""Score a generator under one sampling setting: images of fixed seeds, of classes evenly or of prompts, through a protocol.

The row is appended to output_dir/results.jsonl, the first images go to output_dir/samples/, verdicts on single images of
prompts to output_dir/verdicts/, and report.html is written anew.
For example: align eval generator.checkpoint=runs/mnist/cca label=aligned
Of generators of text: align eval generator=llamagen-t2i ... evaluation=geneval
By rewards, on prompts of your own: align eval generator=llamagen-t2i ... prompts=FILE 'rewards=[{name: clip-score, kwargs: {model: MODEL}}]'
The best of four of each image: align eval search=best_of_n search.n=4 'search.reward.rewards=[{name: NAME}]'; the judge that
selects must not be the one that is reported, and the row names it
Of images from elsewhere, a folder or an npz with arr_0: align eval images=samples.npz protocol=adm256-50k label=theirs
evaluation.protocol.extractor.path=FILE evaluation.protocol.reference=FILE
Of prompts, in GenEval's folders: align eval images=FOLDER protocol=geneval label=theirs

An evaluation that was stopped goes on where it was when the same command is given again. torchrun shares it among processes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from align.generators import Generator
from align.sampling import generate
from evaluation.arms import summarize, text_table
from evaluation.image_files import ImageFiles, open_images
from evaluation.report import write_report
from recipes.choices import options
from recipes.config import compose
from recipes.image_folders import FolderWriter, NpzWriter, check_folder, score_files, score_folder
from recipes.judge import Draw, Judge, Keep
from recipes.parts import make_generator, make_sampling
from recipes.protocols import is_prompt_section
from recipes.reward_settings import optimised_in
from recipes.run import Run, is_first_process, refuse_many_processes, say
from recipes.search_settings import make_draw, same_judges, selecting
from recipes.tasks import PromptTask, Task, make_task

IMAGES = "images"


def main(overrides: list[str]) -> None:
    config = compose("eval", _with_section(overrides))
    _refuse_unread(config)
    sampling = make_sampling(config.sampling)
    generator, search = None, ""
    draw: Draw = generate
    files = _class_images(config)
    task = make_task(
        config.evaluation,
        num_images=None if files is None else len(files),
        classes=None if config.classes is None else list(config.classes),
    )
    if config.images is None:
        generator = make_generator(config.generator)
        task.check(generator)
        draw, search = make_draw(config.search, generator, task.rows(generator))
        _warn_of_judges(config.search, task)
    elif isinstance(task, PromptTask):
        refuse_many_processes("align eval images= of prompts")
        check_folder(Path(config.images), task)
    keep = _keep(config, task, generator)
    run = Run(config, kind="eval", overrides=overrides, name=config.label, append=True)  # replaces an earlier record
    run.update(evaluation=task.facts())
    judge = Judge(task, config.evaluation.batch_size, run.folder, draw=draw, search=search, keep=keep)
    judge = replace(judge, images=config.images or "")
    if generator is not None:
        judge = replace(judge, optimised=optimised_in(config.generator) | selecting(config.search))
    with run.watching():
        if generator is not None:
            row = judge.score(generator, config.label, sampling, split="report", grid=True)
        elif files is not None:
            row = score_files(judge, files, config.label, sampling)
        else:
            row = score_folder(judge, Path(config.images), config.label, sampling)
    run.update(status="finished", hashes={"generator": row.checkpoint})
    if is_first_process():
        print(text_table(summarize([row])))
        say(f"report: {write_report(run.folder)}")


def _class_images(config: DictConfig) -> ImageFiles | None:
    """Those of `images=`, where they are no folders of prompts."""
    if config.images is None or is_prompt_section(config.evaluation):
        return None
    if config.classes is not None:
        raise ValueError("classes= are of images that are drawn, and images= are drawn already; leave it out")
    if (Path(config.images) / "00000" / "metadata.jsonl").exists():
        raise ValueError(
            f"{config.images} holds images of prompts, as GenEval's folders do, and this protocol judges images of classes; choose protocol=geneval"
        )
    return open_images(config.images)


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


def _keep(config: DictConfig, task: Task, generator: Generator | None) -> Keep | None:
    if not config.save_images:
        return None
    if generator is None:
        raise ValueError("save_images=true writes images that are drawn, and images= are written already; leave it out")
    if isinstance(task, PromptTask):
        return FolderWriter(Path(config.output_dir) / IMAGES, task)
    return NpzWriter(Path(config.output_dir) / f"{IMAGES}.npz", [row["label"] for row in task.rows(generator)])


def _with_section(overrides: list[str]) -> list[str]:
    """`protocol=` is short for a section of conf/evaluation/ or a protocol of one's own; prompts or rewards by themselves
    mean the protocol that consists of them."""
    given = {word.partition("=")[0]: word.partition("=")[2] for word in overrides}
    if "protocol" in given:
        if "evaluation" in given:
            raise ValueError("protocol= chooses the evaluation's section; leave evaluation= out")
        chosen, rest = given["protocol"], [word for word in overrides if not word.startswith("protocol=")]
        if chosen in (known := options("evaluation")):
            return [f"evaluation={chosen}", *rest]
        if not chosen.endswith((".yaml", ".yml")) and not chosen.startswith("zoo:"):
            raise ValueError(
                f"unknown protocol {chosen!r}; known: {', '.join(known)}, a FILE.yaml of your own, or zoo:NAME"
            )
        return ["evaluation=own", f"evaluation.protocol={json.dumps(chosen)}", *rest]
    if given.keys() & {"prompts", "rewards"} and "evaluation" not in given:
        return ["evaluation=prompts", *overrides]
    return overrides


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
