"""`align rewards`: list, show, score and check, from the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import fails, run
from PIL import Image

from recipes.cli import main
from recipes.reward_words import read_words

CODE = '''
import numpy as np
from rewards.base import PartialScores, groupwise


def redness(images, conditions, *, scale=1.0, needed: int = 0):
    """Share of red."""
    return scale * images[..., 0].float().mean(dim=(1, 2)) / 255


def labels(images, conditions):
    return [row.get("label", np.nan) for row in conditions]


def words(images, conditions):
    return [len(row["prompt"]) + row.get("extra", 0) for row in conditions]


def first_only(images, conditions):
    return PartialScores([0.5] * len(images), [index == 0 for index in range(len(images))], "too dark")


@groupwise
def ranks(images, conditions):
    return images.float().mean(dim=(1, 2, 3)).argsort().argsort()


def weight(images, conditions, *, file):
    return redness(images, conditions)
'''


@pytest.fixture(autouse=True)
def files() -> None:
    Path("mine.py").write_text(CODE)
    Path("pictures/more").mkdir(parents=True)
    for name, red, side in (("a.png", 51, 4), ("more/b.png", 102, 4), ("more/c.png", 255, 6)):
        Image.new("RGB", (side, side), (red, 0, 0)).save(Path("pictures", name))
    Path("pictures/notes.txt").write_text("no image")
    images = np.zeros((3, 4, 4, 3), dtype=np.uint8)
    np.savez("drawn.npz", arr_0=images, arr_1=np.array([3, 1, 2]))
    np.savez("told.npz", arr_0=images, arr_1=np.array(["a", "bcd", "ef"]))


def scores(capsys: pytest.CaptureFixture[str], *words: str) -> list[float | None]:
    capsys.readouterr()
    run("rewards", "score", *words, "--json")
    return [pytest.approx(one["score"]) for one in json.loads(capsys.readouterr().out)["scores"]]


def test_the_list_names_what_is_built_in(capsys: pytest.CaptureFixture[str]) -> None:
    run("rewards", "list")
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("jpeg-compressibility ")]
    assert line.split()[1] == "image"
    assert "JPEG" in line
    assert lines[-1].startswith("Your own: path/to/file.py:function")


@pytest.mark.parametrize(
    ("words", "usage", "line"),
    [
        (["rewards"], "usage: align rewards {list,show,score,check,env,serve} [key=value ...]", "align rewards check NAME: run"),
        (["rewards", "check"], "usage: align rewards check [key=value ...]", "size=64  "),
        (["rewards", "score"], "usage: align rewards score [key=value ...]", "--json  "),
        (["doctor"], "usage: align doctor [key=value ...]", "For example: align doctor experiment=mnist/grpo"),
    ],
)  # fmt: skip
def test_each_word_has_its_help(capsys: pytest.CaptureFixture[str], words: list[str], usage: str, line: str) -> None:
    run(*words, "--help")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == usage
    assert any(own.startswith(line) for own in said)


def test_show_tells_settings_and_a_line_to_train_with(capsys: pytest.CaptureFixture[str]) -> None:
    run("rewards", "show", "mine.py:redness")
    said = capsys.readouterr().out
    assert "mine.py:redness, a reward of an image\na file of yours\n\nShare of red.\n" in said
    assert "settings:\n  scale=1.0\n  needed=0  (int)\n" in said
    assert """align train experiment=mnist/grpo 'reward.rewards=[{name: "mine.py:redness"}]'""" in said
    run("rewards", "show", "mine.py:weight")
    assert '{name: "mine.py:weight", kwargs: {file: ...}}' in capsys.readouterr().out
    run("rewards", "show", "classifier-log-prob")
    said = capsys.readouterr().out
    assert "built in (rewards.builtin.classifier:classifier_log_prob)" in said
    assert "  weights  (str | Path, required)" in said
    run("rewards", "show", "image-reward-package")
    assert "[{name: image-reward-package, worker: {environment: image-reward}}]" in capsys.readouterr().out


def test_files_and_folders_of_any_sizes_are_scored(capsys: pytest.CaptureFixture[str]) -> None:
    run("rewards", "score", "mine.py:redness", "pictures", "pictures/a.png", "kwargs.scale=10")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["pictures/a.png", "2"],
        ["pictures/more/b.png", "4"],
        ["pictures/more/c.png", "10"],
        ["pictures/a.png", "2"],
        ["mean", "4.5,", "std", "3.28;", "4", "of", "4", "images", "scored"],
    ]
    assert scores(capsys, "mine.py:redness", "pictures") == [0.2, 0.4, 1.0]


@pytest.mark.parametrize("prompt", [["prompt=a b: 7"], ["--prompt", "a b: 7"], ["--prompt=a b: 7"]])
def test_rows_say_what_images_show(capsys: pytest.CaptureFixture[str], prompt: list[str]) -> None:
    assert scores(capsys, "mine.py:words", "pictures", *prompt, "row.extra=10") == [16, 16, 16]
    assert scores(capsys, "mine.py:labels", "drawn.npz") == [3, 1, 2]
    assert scores(capsys, "mine.py:labels", "drawn.npz", "label=7", "batch_size=2") == [7, 7, 7]
    assert scores(capsys, "mine.py:words", "told.npz", "pictures/a.png", *prompt) == [6, 6, 6, 6]
    assert scores(capsys, "mine.py:words", "told.npz") == [1, 3, 2]


def test_a_group_is_scored_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert scores(capsys, "mine.py:ranks", "pictures/more/b.png", "pictures/a.png", "batch_size=1") == [1, 0]
    assert "compares images, and these have 2 sizes" in fails(capsys, "rewards", "score", "mine.py:ranks", "pictures")


def test_a_distribution_is_scored_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)
    np.savez("digits.npz", arr_0=images, arr_1=np.arange(5))
    zoo = ["kwargs.weights=zoo:mnist-llamagen", "kwargs.reference=zoo:mnist-llamagen", "kwargs.device=cpu"]
    found = scores(capsys, "loo-fid", "digits.npz", *zoo)
    assert len({one.expected for one in found}) == 5
    assert None not in {one.expected for one in found}


def test_what_fails_or_does_not_apply_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    run("rewards", "score", "mine.py:labels", "pictures", "drawn.npz")
    said = capsys.readouterr().out
    assert "pictures/a.png       does not apply\n" in said
    assert said.endswith("mean 2, std 0.816; 3 of 6 images scored; 3 do not apply\n")
    assert fails(capsys, "rewards", "score", "mine.py:first_only", "drawn.npz").endswith("failed: too dark\n")
    run("rewards", "score", "mine.py:labels", "pictures", "--json")
    assert json.loads(capsys.readouterr().out) == {
        "reward": "mine.py:labels",
        "mean": None,
        "std": None,
        "scores": [
            {"image": f"pictures/{name}.png", "score": None, "valid": True} for name in ("a", "more/b", "more/c")
        ],
        "error": None,
    }


def test_failures_are_shown_beside_the_scores(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewards", "score", "mine.py:first_only", "drawn.npz"]) == 1
    assert capsys.readouterr().out.endswith("mean 0.5, std 0; 1 of 3 images scored; 2 failed\n")
    assert main(["rewards", "score", "mine.py:first_only", "drawn.npz", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [(one["score"], one["valid"]) for one in found["scores"]] == [(0.5, True), (None, False), (None, False)]
    assert found["error"] == "reward 'mine.py:first_only' failed: too dark"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "said"), [("reward worker 0", ""), ("other", "the end")])
def test_the_process_does_not_end_the_long_way_while_a_reward_is_busy(name: str, said: str) -> None:
    code = (
        "import atexit, threading, time\nfrom recipes import cli\ncli.main = lambda: 3\n"
        f"threading.Thread(target=time.sleep, args=(30,), name={name!r}, daemon=True).start()\n"
        "atexit.register(print, 'the end')\ncli.entry()"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout.strip()) == (3, said)


def test_a_command_leaves_the_search_path_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.path)
    run("rewards", "list")
    fails(capsys, "rewards", "show", "hsp")
    assert sys.path == before


def test_a_file_named_like_a_package_of_ours_hides_nothing() -> None:
    Path("rewards.py").write_text(CODE)
    command = [sys.executable, "-P", "-m", "recipes.cli", "rewards", "score", "rewards.py:redness", "pictures/a.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("pictures/a.png  0.2\n"), done.stderr


def test_check_runs_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    run("rewards", "check", "mine.py:ranks", "size=8")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "mine.py:ranks, a reward of kind group, on images of 8 pixels a side"
    assert said[-1] == "7 ok"
    error = fails(capsys, "rewards", "check", "mine.py:words", "timeout=5")
    assert error == "error: mine.py:words is not ready for training: call\n"
    run("rewards", "check", "mine.py:words", "prompt=a b")
    assert re.search(r"warning +range +\S+ for every image\n +-> equal rewards teach nothing", capsys.readouterr().out)
    run("rewards", "check", "classifier-log-prob", "kwargs.weights=zoo:mnist-llamagen", "label=3", "size=28")
    assert "reads 'label'; without: it says so" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "align rewards does several things; known: list, show, score, check, env, serve; see align rewards --help"),
        (["chekc"], "unknown: align rewards chekc; known: list, show, score, check, env, serve. Did you mean: align rewards check?"),
        (["list", "hps"], "align rewards list takes nothing; got hps. Try: align rewards show hps"),
        (["show"], "align rewards show takes one name"),
        (["show", "hsp"], "unknown reward 'hsp'; known: "),
        (["score", "mine.py:redness"], "which reward, and which images?"),
        (["score", "mine.py:redness", "none.png"], "there is no image none.png (relative to "),
        (["score", "mine.py:redness", "pictures/notes.txt"], "cannot read pictures/notes.txt: not an image (8 bytes); leave it out"),
        (["score", "mine.py:redness", "pictures", "promt=x"], "unknown setting 'promt'; known: prompt, label, kwargs.NAME"),
        (["score", "mine.py:redness", "pictures", "kwargs.scal=2"], "got an unexpected keyword argument 'scal'"),
        (["score", "mine.py:redness", "pictures", "--prompt"], "--prompt needs a value: --prompt VALUE, or prompt=VALUE"),
        (["score", "mine.py:redness", "pictures", "batch_size=0"], "batch_size is 32 by default; got '0'"),
        (["score", "mine.py:redness", "pictures", "label=[1"], "cannot read the value of label='[1'"),
        (["check"], "which reward? align rewards check path/to/file.py:function"),
        (["check", "mine.py:gone"], "mine.py has no 'gone'; its functions: redness, labels, words"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_clear_line(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    error = fails(capsys, "rewards", *words)
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_a_reward_in_the_place_of_a_configuration_is_told_where_it_goes(capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "train", "reward=mine.py:redness")
    assert error.startswith("error: unknown reward 'mine.py:redness'; known: classifier, ")
    assert error.endswith("Rewards themselves are named as 'reward.rewards=[{name: NAME}]'\n")


def test_an_empty_folder_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert "empty holds no image (.jpg, " in fails(capsys, "rewards", "score", "mine.py:redness", "empty")


def test_values_are_yaml_and_prompts_are_texts() -> None:
    words = read_words(
        [
            "a",
            "kwargs.x=[1, 2]",
            "kwargs.y=null",
            "prompt=3",
            "label=3",
            "worker.python=p",
            "--json",
            "row.tag={a: 1}",
            "b",
        ],
        {"json": False},
    )
    assert words.names == ["a", "b"]
    assert words.kwargs == {"x": [1, 2], "y": None}
    assert words.row == {"prompt": "3", "label": 3, "tag": {"a": 1}}
    assert words.worker == {"python": "p"}
    assert words.settings == {"json": True}
