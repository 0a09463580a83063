"""Prompt files; and conditions for rollouts: in groups, reshuffled each pass, repeated for further updates, by position alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from align.data import PromptStream
from align.data.prompts import collate, read_captions, read_prompts

SETTINGS: dict[str, Any] = {"length": 96, "seed": 1, "num_generations": 3, "rows_per_step": 6}


def stream(prompts: Any = range(8), **changes: Any) -> PromptStream:
    return PromptStream(prompts, **{**SETTINGS, **changes})


def column(items: PromptStream, name: str, rows: range) -> list[Any]:
    values = [items[row][name] for row in rows]
    return [value.item() if isinstance(value, torch.Tensor) else value for value in values]


def test_rows_come_in_groups_of_one_prompt() -> None:
    labels = column(stream(), "label", range(48))
    groups = [labels[start : start + 3] for start in range(0, 48, 3)]
    assert all(len(set(group)) == 1 for group in groups)
    assert column(stream(), "position", range(48)) == list(range(48))
    assert not any(column(stream(), "dropped", range(48)))


def test_every_pass_asks_for_every_prompt_once_in_a_new_order() -> None:
    labels = column(stream(), "label", range(72))[::3]
    passes = [labels[start : start + 8] for start in (0, 8, 16)]
    assert all(sorted(each) == list(range(8)) for each in passes)
    assert passes[0] != passes[1] != passes[2]
    assert passes[0] != column(stream(seed=2), "label", range(24))[::3]


def test_a_row_is_the_same_whenever_it_is_asked_for() -> None:
    one, two = stream(), stream()
    backwards = [two[row]["label"] for row in reversed(range(96))][::-1]
    assert column(one, "label", range(96)) == backwards
    assert len(one) == 96


@pytest.mark.parametrize("num_iterations", [2, 3])
def test_a_steps_rows_come_again_for_further_updates(num_iterations: int) -> None:
    """Positions then name rollouts: what is asked for is what one update each would ask for."""
    once, again = stream(), stream(num_iterations=num_iterations)
    for step in range(4):
        rows = range(6 * step, 6 * (step + 1))
        for repeat in range(num_iterations):
            first = 6 * (step * num_iterations + repeat)
            for name in ("label", "position"):
                assert column(again, name, range(first, first + 6)) == column(once, name, rows)


def test_prompts_may_be_texts() -> None:
    assert set(column(stream(["a red cube", "a dog"]), "label", range(12))) == {"a red cube", "a dog"}


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"num_generations": 2}, {"rows_per_step": 12}, {"num_iterations": 2}, {"length": 90}]
)
def test_the_fingerprint_tells_streams_apart(change: dict[str, int]) -> None:
    assert stream().fingerprint == stream().fingerprint
    assert stream().fingerprint != stream(**change).fingerprint
    assert stream().fingerprint != stream(range(9)).fingerprint


@pytest.mark.parametrize(
    ("prompts", "change", "message"),
    [
        ([], {}, "there are no prompts"),
        (range(8), {"num_generations": 0}, "num_generations is 0 and num_iterations is 1; both must be at least 1"),
        (range(8), {"num_iterations": 0}, "num_iterations is 0; both must be at least 1"),
        (range(8), {"num_generations": 4}, "a step of 6 rows does not divide into groups of num_generations=4"),
    ],
)
def test_what_makes_no_groups_is_refused(prompts: Any, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(prompts, **change)


# --- rows


def test_rows_keep_all_their_columns() -> None:
    rows = [{"prompt": "a dog", "include": [{"class": "dog", "count": 1}], "seed": None}, {"label": 3}]
    items = stream(rows, num_generations=1)
    found = {item["label"]: item["row"] for item in (items[row] for row in range(2))}
    assert found == {"a dog": rows[0], 3: rows[1]}
    assert stream(rows).fingerprint != stream([{"prompt": "a dog"}, {"label": 3}]).fingerprint


def test_bare_conditions_become_rows() -> None:
    items = stream(["a dog", 3], num_generations=1)
    assert {item["label"]: item["row"] for item in (items[0], items[1])} == {
        "a dog": {"prompt": "a dog"},
        3: {"label": 3},
    }


def test_a_row_without_a_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="a row has the columns 'text'; it needs a 'prompt', or a class as 'label'"):
        stream([{"text": "a dog"}])


def test_batches_list_texts_and_rows_and_stack_the_rest() -> None:
    texts, classes = stream([{"prompt": "a dog", "more": [1]}, "a cat"]), stream(range(8))
    batch = collate([texts[row] for row in range(6)])
    assert batch["label"] == [row["prompt"] for row in batch["row"]]
    assert set(batch["label"]) == {"a dog", "a cat"}
    assert batch["position"].tolist() == list(range(6))
    assert batch["dropped"].dtype == torch.bool
    batch = collate([classes[row] for row in range(6)])
    assert batch["label"].tolist() == [row["label"] for row in batch["row"]]
    assert "row" not in collate([{"position": torch.tensor(1)}])


# --- files


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "prompts.txt", "\ufeff a red cube\r\n\n  \nein Würfel\u2028rot\nlast")
    assert read_prompts(path) == [{"prompt": "a red cube"}, {"prompt": "ein Würfel\u2028rot"}, {"prompt": "last"}]
    assert read_captions(path) == ["a red cube", "ein Würfel\u2028rot", "last"]


def test_a_jsonl_file_keeps_all_columns(tmp_path: Path) -> None:
    rows = [{"prompt": "a red cube", "tag": "colors", "include": [{"class": "cube"}]}, {"prompt": "", "tag": None}]
    path = write(tmp_path, "prompts.jsonl", "\n\n".join(json.dumps(row) for row in rows) + "\n")
    assert read_prompts(path) == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt\na cat", r"a.csv is no prompt file; .txt \(a prompt a line\) and .jsonl"),
        ("a.txt", " \n\n", "a.txt holds no prompts"),
        ("a.jsonl", "", "a.jsonl holds no prompts"),
        ("a.jsonl", '{"prompt": "a"}\n\n{"prompt"', "a.jsonl, line 3 is not JSON .*: '{\"prompt\"'"),
        ("a.jsonl", '["a cat"]', r"a.jsonl, line 1 is '\[\"a cat\"\]'; a .jsonl has an object"),
        ("a.jsonl", '{"prompt": 5}', "line 1 has the columns 'prompt'; every line needs a text in the column 'prompt'"),
        ("a.jsonl", '{"text": "a", "id": 1}', "line 1 has the columns 'text', 'id'; every line needs a text"),
        ("a.jsonl", "{}", "line 1 has no columns; every line needs a text"),
        ("a.txt", b"\xff\xfea\x00", "a.txt is not UTF-8 text .*; save it as that"),
    ],
)
def test_what_is_no_prompt_file_is_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prompts(write(tmp_path, name, content))


def test_no_file_is_said(tmp_path: Path) -> None:
    for read in (read_prompts, read_captions):
        with pytest.raises(FileNotFoundError, match="no file of prompts or captions at .*none.txt"):
            read(tmp_path / "none.txt")


def test_captions_come_in_any_of_three_columns_and_in_lists(tmp_path: Path) -> None:
    rows = [{"text": ["one", "two"], "caption": "no"}, {"caption": "three", "text": None}, {"prompt": "four"}]
    path = write(tmp_path, "captions.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert read_captions(path) == ["one", "two", "three", "four"]


def test_captions_of_a_folder_of_shards(tmp_path: Path) -> None:
    for shard, caption in ((1, "two"), (0, "one")):
        write(tmp_path, f"shard-{shard:05d}.jsonl", json.dumps({"caption": caption, "more": {"text": "no"}}))
    write(tmp_path, "other.jsonl", '{"caption": "no"}')
    assert read_captions(tmp_path) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a cat", "a.csv is no caption file; .txt"),
        ("a.txt", "\n", "a.txt holds no captions"),
        ("a.jsonl", '{"image": "a.png"}', "line 1 has the columns 'image'; .* in a column text, caption, prompt"),
        ("a.jsonl", '{"text": ["a", null]}', "line 1 has the columns 'text'; every line needs a text, or a list"),
        ("a.jsonl", '{"text": []}', "line 1 has the columns 'text'; every line needs a text, or a list"),
    ],
)
def test_what_is_no_caption_file_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_captions(write(tmp_path, name, content))


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no captions: there is no shard-\*.jsonl in it"):
        read_captions(tmp_path)


def test_a_group_stays_on_one_process() -> None:
    """Two processes take micro-batches of two rows in turn; their six rows of a step are two whole groups of three."""
    items = stream(rows_per_step=12, processes=2, micro_batch=2)
    positions = column(items, "position", range(24))
    dealt = torch.tensor(positions).view(2, 3, 2, 2)  # steps, turns, processes, rows
    assert dealt[0, :, 0].flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert dealt[0, :, 1].flatten().tolist() == [6, 7, 8, 9, 10, 11]
    assert dealt[1, :, 0].flatten().tolist() == [12, 13, 14, 15, 16, 17]
    labels = dict(zip(positions, column(items, "label", range(24)), strict=True))
    assert labels == dict(enumerate(column(stream(rows_per_step=12), "label", range(24))))
    with pytest.raises(ValueError, match="12 rows does not divide into micro-batches of 5 on 2 processes"):
        stream(rows_per_step=12, processes=2, micro_batch=5)
