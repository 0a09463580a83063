"""Files of prompt suites become rows; what is damaged in them is refused by its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.suites import Question, read_questions, read_suite
from evaluation.suites.compbench import compbench_questions

ATOMS = {
    "prompt": "two red hats",
    "atom_count": 3,
    "vqa_list": [["How many hats are in the image?", "two"], ["Are the hats red?", "Yes"]],
    "skills": ["count", "attribute"],
}
HEAD = [
    *("item_id", "text", "keywords", "proposition_id", "dependency"),
    *("category_broad", "category_detailed", "tuple", "question_natural_language"),
]


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in records))
    return path


def dpg(path: Path, *rows: tuple[str, str, str, str, str, str]) -> Path:
    """A table of item, text, number, parents, tuple, question."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEAD)
        for item, text, number, parents, kind, question in rows:
            writer.writerow([item, text, "", number, parents, "", "", kind, question])
    return path


def test_geneval2_asks_counts_in_words_and_digits(tmp_path: Path) -> None:
    (row,) = read_suite("geneval2", lines(tmp_path / "g.jsonl", ATOMS))
    assert (row["prompt"], row["id"], row["tag"]) == ("two red hats", "00000", "atoms-3")
    assert read_questions(row) == (
        Question("How many hats are in the image?", ("two", "2"), kind="count"),
        Question("Are the hats red?", ("yes",), kind="attribute"),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skills": ["count"]}, "line 2 has a vqa_list and skills that are no lists of the same length"),
        ({"skills": ["count", "colour"]}, "line 2 has the skill 'colour'; known: object, attribute"),
        ({"vqa_list": [["How many?", "several"], ["Red?", "Yes"]]}, "line 2 has the answer 'several' to 'How many"),
        ({"vqa_list": [["How many?", "two"], ["Red?", "No"]]}, "line 2 has the answer 'No' to 'Red"),
        ({"vqa_list": [["How many?"], ["Red?", "Yes"]]}, r"line 2 has \['How many\?'\] in vqa_list"),
        ({"atom_count": "3"}, "line 2 has the prompt 'two red hats' and the atom_count '3'"),
    ],
)
def test_a_damaged_geneval2_is_refused_by_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_suite("geneval2", lines(tmp_path / "g.jsonl", ATOMS, ATOMS | change))
    with pytest.raises(ValueError, match="line 1 has no 'atom_count', but prompt"):
        read_suite("geneval2", lines(tmp_path / "g.jsonl", {"prompt": "x"}))
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_suite("geneval2", lines(tmp_path / "g.jsonl", ATOMS, json.dumps(ATOMS)[:-5]))


def test_dpg_links_questions_by_their_numbers(tmp_path: Path) -> None:
    table = dpg(
        tmp_path / "dpg_bench.csv",
        ("b1", 'A "big", red hat\nby a cat', "2", "0", "entity - whole (cat)", "Is there a cat?"),
        ("b1", "-", "1", "0", "entity - whole (hat)", "Is there a hat?"),
        ("a0", "a dog runs", "1", "0", "entity - whole (dog)", "Is there a dog?"),
        ("b1", "-", "3", "1, 2", "relation - spatial (hat, cat, by)", "Is the hat by the cat?"),
        ("a0", "a dog runs", "2", "1", "action - (dog, run)", "Does the dog run?"),
    )
    first, second = read_suite("dpg", table)
    assert (first["id"], first["prompt"]) == ("b1", 'A "big", red hat\nby a cat')
    assert [one.text for one in read_questions(first)] == [
        "Is there a cat?",
        "Is there a hat?",
        "Is the hat by the cat?",
    ]
    assert [one.depends_on for one in read_questions(first)] == [(), (), (1, 0)]
    assert [one.kind for one in read_questions(second)] == ["entity - whole", "action"]


def test_the_prompt_files_of_dpg_count(tmp_path: Path) -> None:
    dpg(tmp_path / "dpg_bench.csv", ("a0", "of the table", "1", "0", "entity - whole (dog)", "A dog?"))
    assert read_suite("dpg", tmp_path)[0]["prompt"] == "of the table"
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/a0.txt").write_text("of the file\n")
    assert read_suite("dpg", tmp_path)[0]["prompt"] == "of the file"
    (tmp_path / "prompts/a1.txt").write_text("another")
    with pytest.raises(ValueError, match="holds 2 prompts and dpg_bench.csv 1; 'a1' is in one of them only"):
        read_suite("dpg", tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a", "t", "2", "3", "x (y)", "q?"), "line 3 depends on question 3, which is no other one of a; it has 1, 2"),
        (("a", "t", "2", "2", "x (y)", "q?"), "line 3 depends on question 2, which is no other one of a"),
        (("a", "t", "1", "0", "x (y)", "q?"), "line 3 has question 1 of a a second time"),
        (("a", "t", "2", "", "x (y)", "q?"), "line 3 has proposition_id '2' and dependency ''; whole numbers"),
        (("a", "t", "2", "0", "x (y)", " "), "line 3 has nothing in the column question_natural_language"),
    ],
)
def test_a_damaged_dpg_is_refused_by_line(
    tmp_path: Path, row: tuple[str, str, str, str, str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_suite("dpg", dpg(tmp_path / "d.csv", ("a", "t", "1", "0", "x (y)", "q?"), row))


def test_tables_have_their_columns_and_whole_rows(tmp_path: Path) -> None:
    table = tmp_path / "d.csv"
    table.write_text("item_id,text\na,b\n")
    with pytest.raises(ValueError, match="line 1 names the columns item_id, text; proposition_id, dependency, tuple"):
        read_suite("dpg", table)
    table.write_text(",".join(HEAD) + "\na,b\n")
    with pytest.raises(ValueError, match="line 2 has 2 cells; the head line names 9"):
        read_suite("dpg", table)
    table.write_text(",".join(HEAD) + '\na,"b')
    with pytest.raises(ValueError, match="line 2 is no row of a table"):
        read_suite("dpg", table)


def test_parti_is_cut_at_tabs_alone(tmp_path: Path) -> None:
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text('Prompt\tCategory\tChallenge\tNote\n"Hi" on a wall, red \tFood & Beverage\tBasic\t\n')
    assert read_suite("parti", path) == [
        {"id": "00000", "prompt": '"Hi" on a wall, red', "tag": "Food & Beverage", "challenge": "Basic"}
    ]


@pytest.mark.parametrize(
    ("prompt", "category", "questions"),
    [
        (
            "a red book and an old yellow vase.",
            "color",
            ["Is there a red book in this image?", "Is there an old yellow vase in this image?"],
        ),
        ("a red book and an old yellow vase", "numeracy", ["Does this image show the following? a red book and an"]),
        ("a black and white cat and a red dog", "color", ["Does this image show the following? a black and"]),
        ("The red hat was on the brown rack.", "color", ["Does this image show the following? The red hat was"]),
        ("a room with white tiles and a beige tub", "color", ["Does this image show the following? a room with"]),
    ],
)
def test_compbench_asks_of_both_things_where_it_can_tell_them_apart(
    prompt: str, category: str, questions: list[str]
) -> None:
    asked = [question.text for question in compbench_questions(prompt, category)]
    assert len(asked) == len(questions)
    assert all(text.startswith(start) for text, start in zip(asked, questions, strict=True))


def test_compbench_takes_a_file_or_all_validation_files(tmp_path: Path) -> None:
    (tmp_path / "3d_spatial_val.txt").write_bytes(b"a dog behind a cup\r\n")
    (tmp_path / "color_val.txt").write_bytes(b"a red book and a blue cup\r\na red cup")
    (tmp_path / "color_train.txt").write_text("a red cat")
    rows = read_suite("compbench", tmp_path)
    assert [(row["prompt"], row["tag"], row["id"]) for row in rows] == [
        ("a red book and a blue cup", "color", "color_val-00000"),
        ("a red cup", "color", "color_val-00001"),
        ("a dog behind a cup", "3d_spatial", "3d_spatial_val-00000"),
    ]
    assert [row["tag"] for row in read_suite("compbench", tmp_path / "3d_spatial_val.txt")] == ["3d_spatial"]
    lines(tmp_path / "new_objects.txt", "a drone")
    with pytest.raises(ValueError, match=r"new_objects\.txt is of no known category; .* color, shape"):
        read_suite("compbench", tmp_path / "new_objects.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no color_val\.txt nor that of another category"):
        read_suite("compbench", tmp_path / "empty")


def test_a_list_of_ones_own_keeps_its_columns(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\ufeffa cat\n\n a dög \n", encoding="utf-8")
    assert read_suite("prompts", tmp_path / "p.txt") == [
        {"id": "00000", "prompt": "a cat"},
        {"id": "00001", "prompt": "a dög"},
    ]
    record = {"prompt": "a cat", "tag": "pets", "style": "ink", "questions": ["A cat?"]}
    rows = read_suite("prompts", lines(tmp_path / "p.jsonl", record, {"prompt": "a dog", "id": 7}))
    assert rows == [{"id": "00000", **record}, {"prompt": "a dog", "id": 7}]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, "line 2 has text; a text in the column 'prompt' is needed"),
        ({"prompt": "a", "tag": 3}, "line 2 has the tag 3; it must be a text"),
        ({"prompt": "a", "questions": []}, r"line 2 is refused: questions is \[\]; a list"),
        ({"prompt": "a", "questions": [{"text": "x"}]}, r"line 2 is refused: questions\[0\] is .*'question'"),
        (
            {"prompt": "a", "questions": [{"question": "x", "answer": "no"}]},
            "the unknown key 'answer'; allowed: question",
        ),
        ({"prompt": "a", "questions": [{"question": "x", "answers": "no"}]}, "has the answers 'no'; a list of single"),
        ({"prompt": "a", "questions": [{"question": "x", "answers": ["a b"]}]}, "a list of single words"),
        ({"prompt": "a", "questions": ["x", {"question": "y", "depends_on": [2]}]}, "from 0 to 1"),
        ({"prompt": "a", "questions": ["x", {"question": "y", "depends_on": [1]}]}, r"questions\[1\] depends on \[1\]"),
        ({"prompt": "a", "id": "00000"}, "has the id '00000' twice"),
        ({"prompt": "  "}, r"prompt 1 \(counted from 0\) of .* is empty"),
        ("[1]", r"line 2 is '\[1\]'; an object"),
    ],
)
def test_a_damaged_list_is_refused_by_line(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_suite("prompts", lines(tmp_path / "p.jsonl", {"prompt": "first"}, record))


def test_what_is_no_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="unknown prompt suite 'drawbench'; known: geneval2, dpg, compbench, parti, prompts"
    ):
        read_suite("drawbench", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.txt; docs/prompt-suites\.md"):
        read_suite("prompts", tmp_path / "none.txt")
    (tmp_path / "p.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_suite("prompts", tmp_path / "p.txt")
    (tmp_path / "p.txt").write_bytes(b"fine\n\xff\n")
    with pytest.raises(ValueError, match="line 2 is not UTF-8"):
        read_suite("prompts", tmp_path / "p.txt")
    with pytest.raises(ValueError, match=r"is no prompt file; \.txt"):
        read_suite("prompts", tmp_path / "p.csv")
