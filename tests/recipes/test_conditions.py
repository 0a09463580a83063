"""What images are drawn for: rows of prompts or classes, and the columns of a sample grid."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen, tiny_llamagen_t2i
from transformers import TrainerControl, TrainerState, TrainingArguments

from align.data import PromptStream, Stream
from align.generators import LlamaGen
from align.training.callbacks import SampleGrid
from recipes.conditions import make_rows, read_class_names, shown_conditions


def prompt_file(path: Path, *prompts: str) -> str:
    path.write_text("".join(f"{prompt}\n" for prompt in prompts))
    return str(path)


def class_stream(number: int) -> Stream:
    return Stream({}, torch.arange(number), source="t", length=number, seed=0, label_drop=0.0)


def of_classes(number: int) -> LlamaGen:
    with torch.device("meta"):
        return LlamaGen(replace(tiny_llamagen().sizes, num_classes=number))


def test_rows_are_prompts_in_turn_with_all_their_columns(tmp_path: Path) -> None:
    generator = tiny_llamagen_t2i()
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a cat", "tag": "color"}\n{"prompt": "two dogs"}\n')
    assert make_rows(str(file), generator, number=3) == [
        {"prompt": "a cat", "tag": "color"},
        {"prompt": "two dogs"},
        {"prompt": "a cat", "tag": "color"},
    ]
    assert make_rows(["a", "b"], generator, number=None) == [{"prompt": "a"}, {"prompt": "b"}]
    assert make_rows(None, tiny_llamagen(), number=None) == [{"label": label} for label in range(4)]
    assert [row["label"] for row in make_rows(None, tiny_llamagen(), number=6)] == [0, 1, 2, 3, 0, 1]


def test_rows_of_classes_may_have_their_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n\nhen\nfrog \n")
    rows = make_rows(None, tiny_llamagen(), number=5, class_names=str(tmp_path / "names.txt"))
    assert [row["class_name"] for row in rows] == ["cat", "dog", "hen", "frog", "cat"]
    assert rows[1]["label"] == 1
    with pytest.raises(FileNotFoundError, match="no file of class names at .*gone.txt; reward.class_names is"):
        read_class_names(str(tmp_path / "gone.txt"), number=4)
    with pytest.raises(ValueError, match="names.txt names 4 classes, and the generator has 3; give one name a line"):
        read_class_names(str(tmp_path / "names.txt"), number=3)


@pytest.mark.slow  # open_clip takes 2 seconds to import
def test_the_names_of_imagenet() -> None:
    names = read_class_names("imagenet", number=1000)
    assert (names[0], names[207].lower(), names[999]) == ("tench", "golden retriever", "toilet paper")


@pytest.mark.parametrize(
    ("prompts", "text", "message"),
    [
        (None, True, r"draws images of prompts, and there are none; set prompts= \(data.prompts= of `align train`\)"),
        (["a cat"], False, "a llamagen generator draws images of classes; set it to null"),
        ([3], True, r"prompts is \[3\]; it must be a list of texts"),
        ("prompts.csv", True, "prompts.csv is no prompt file"),
    ],
)
def test_other_conditions_than_the_generator_takes_are_refused(prompts: Any, text: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_rows(prompts, tiny_llamagen_t2i() if text else tiny_llamagen(), number=2)


def test_grids_show_ten_classes_of_a_thousand(tmp_path: Path) -> None:
    assert shown_conditions(None, of_classes(1000), class_stream(3)) == list(range(0, 1000, 100))
    assert shown_conditions(None, of_classes(10), class_stream(3)) == list(range(10))
    assert shown_conditions(None, of_classes(4), class_stream(3)) == [0, 1, 2, 3]


def test_grids_show_prompts_of_the_whole_file_or_the_captions_of_training(tmp_path: Path) -> None:
    generator = tiny_llamagen_t2i()
    captions = [f"caption {number % 3}" for number in range(40)]
    stream = Stream({"tokens": torch.zeros(40, 6)}, captions, source="t", length=10**9, seed=0, label_drop=0.5)
    assert sorted(shown_conditions(None, generator, stream)) == ["caption 0", "caption 1", "caption 2"]
    file = prompt_file(tmp_path / "prompts.txt", *[f"prompt {number}" for number in range(25)])
    assert shown_conditions(file, generator, stream) == [
        f"prompt {number}" for number in (0, 2, 5, 7, 10, 12, 15, 17, 20, 22)
    ]
    rows = [{"prompt": "one", "tag": 1}, {"prompt": "two"}]
    prompts = PromptStream(rows, length=8, seed=0, num_generations=2, rows_per_step=4)
    assert sorted(shown_conditions(None, generator, prompts)) == ["one", "two"]


def test_a_grid_is_a_column_for_each_condition(tmp_path: Path) -> None:
    generator = tiny_llamagen()
    trainer = SimpleNamespace(whole=lambda: nullcontext(generator))
    grid = SampleGrid(trainer, 2, tmp_path, conditions=[0, 2, 3], rows=2)
    args, control = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerControl()
    for step in range(4):
        grid.on_step_end(args, TrainerState(global_step=step), control, model=generator)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["step-000000.png", "step-000002.png"]
    assert grid.conditions == [0, 2, 3, 0, 2, 3]
    assert grid.columns == 3
