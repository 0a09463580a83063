"""An evaluation that was killed goes on where it was, and gives the same numbers to the last digit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import run
from omegaconf import OmegaConf

from align import load_generator
from align.generators import Generator
from align.sampling import generate
from align.types import Rollout, SamplingConfig
from evaluation.results import ResultRow, read_results
from recipes.config import compose
from recipes.image_folders import NpzWriter
from recipes.judge import Judge
from recipes.reward_settings import optimised_in
from recipes.shards import Shards
from recipes.tasks import PromptTask, make_task
from rewards.base import Reward
from rewards.combine import RewardSet

SMALL = ["evaluation.num_images=60", "evaluation.batch_size=10"]


def judge(folder: Path, draw: Any = generate) -> Judge:
    evaluation = compose("eval", SMALL).evaluation
    return Judge(make_task(evaluation), evaluation.batch_size, folder, draw=draw)


def score(one: Judge) -> ResultRow:
    return one.score(load_generator("mnist-llamagen"), "base", SamplingConfig(seed=3), split="report", grid=True)


def test_shards_that_are_done_are_not_made_again(tmp_path: Path) -> None:
    drawn: list[int] = []

    def counted(
        generator: Generator, raw_conditions: Any, config: SamplingConfig, *, batch_size: int, first: int = 0
    ) -> Iterator[Rollout]:
        if first == 30 and 30 not in drawn:
            drawn.append(first)
            raise KeyboardInterrupt
        drawn.append(first)
        yield from generate(generator, raw_conditions, config, batch_size=batch_size, first=first)

    whole = score(judge(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        score(judge(tmp_path / "killed", counted))
    assert read_results(tmp_path / "killed/results.jsonl") == []
    resumed = score(judge(tmp_path / "killed", counted))
    assert drawn == [0, 10, 20, 30, 30, 40, 50]
    assert resumed.metrics == whole.metrics  # to the last digit
    assert resumed.stderr == whole.stderr
    pictures = [(tmp_path / name / whole.samples).read_bytes() for name in ("whole", "killed")]
    assert pictures[0] == pictures[1]
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["results.jsonl", "samples"]


def test_other_settings_do_not_meet_the_shards_of_these(tmp_path: Path) -> None:
    one = Shards(tmp_path, {"seed": 1}, total=5, size=2)
    one.write(2, {"a": np.arange(1)})
    assert [len(one.indices(shard)) for shard in range(len(one))] == [2, 2, 1]
    assert one.has(2)
    for other in (Shards(tmp_path, {"seed": 2}, total=5, size=2), Shards(tmp_path, {"seed": 1}, total=5, size=3)):
        assert not any(map(other.has, range(3)))
    assert Shards(tmp_path, {"seed": 1}, total=5, size=2).read(2)["a"].tolist() == [0]
    one.remove()
    assert not list(tmp_path.iterdir())


def test_kept_images_are_those_of_the_row(tmp_path: Path) -> None:
    """Whatever other evaluation began or ended in between."""

    def kept(seed: int, stop: int | None) -> NpzWriter:
        def draw(*arguments: Any, first: int = 0, **settings: Any) -> Iterator[Rollout]:
            if first == stop:
                raise KeyboardInterrupt
            yield from generate(*arguments, first=first, **settings)

        writer = NpzWriter(tmp_path / "images.npz", [index % 10 for index in range(60)])
        one = replace(judge(tmp_path, draw), keep=writer)
        one.score(load_generator("mnist-llamagen"), "base", SamplingConfig(seed=seed), split="report")
        return writer

    def images() -> np.ndarray:
        with np.load(tmp_path / "images.npz") as archive:
            return archive["arr_0"]

    kept(3, None)
    whole = images()
    (tmp_path / "images.npz").unlink()
    for seed, stop in ((3, 0), (3, 30), (4, 30)):
        with pytest.raises(KeyboardInterrupt):
            kept(seed, stop)
    kept(3, None)
    np.testing.assert_array_equal(images(), whole)
    for _ in range(2):  # what was refused is not taken for a start
        with pytest.raises(ValueError, match="images.npz is there already; take it away"):
            kept(5, None)
    assert len(list((tmp_path / "partial").iterdir())) == 1  # that of seed 4
    (tmp_path / "images.npz").unlink()
    kept(4, None)
    assert not np.array_equal(images(), whole)
    assert not (tmp_path / "partial").exists()


def test_other_classes_or_rules_are_other_shards(tmp_path: Path) -> None:
    def stopped(*_: Any, first: int = 0, **__: Any) -> Iterator[Rollout]:
        if first:
            raise KeyboardInterrupt
        yield from generate(*_, first=first, **__)

    one = judge(tmp_path, stopped)
    few = replace(one, task=replace(one.task, classes=(1, 2)))
    assert few.task.fingerprint == f"{one.task.fingerprint}+classes-1-2"  # rows that are not compared with others
    for each in (one, few):
        with pytest.raises(KeyboardInterrupt):
            score(each)
    assert len(list((tmp_path / "partial").iterdir())) == 2


def test_a_metric_of_what_was_rewarded_is_marked_and_chooses_nothing(tmp_path: Path) -> None:
    one = judge(tmp_path)
    print_ = one.task.protocol.extractor.fingerprint
    assert score(one).contaminated == ()
    row = score(replace(one, optimised=frozenset({print_})))
    assert row.contaminated == ("fid", "is", "precision", "recall", "accuracy")
    assert one.leading(row)[0].name == "fid"
    assert replace(one, not_led_by=frozenset({print_})).leading(row)[0].name == "fid"  # there is no other


def test_what_a_checkpoint_was_rewarded_by_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "run/adapter").mkdir(parents=True)
    (tmp_path / "run/run.json").write_text(json.dumps({"optimised": ["aaaa"]}))
    places = {"checkpoint": [tmp_path / "run", tmp_path / "run/generator.pt"], "adapter": [tmp_path / "run/adapter"]}
    for key, paths in places.items():
        for path in paths:
            section = OmegaConf.create({"checkpoint": None, "adapter": None, key: str(path)})
            assert optimised_in(section) == {"aaaa"}
    nothing = OmegaConf.create({"checkpoint": str(tmp_path / "x.pt"), "adapter": None})
    assert optimised_in(nothing) == frozenset()


def test_prompts_that_are_judged_by_the_reward_itself_are_marked() -> None:
    class Named:
        fingerprint = "bbbb"

        def __call__(self, images: Any, conditions: Any) -> Any: ...

    protocol: Any = SimpleNamespace(rewards=RewardSet((Reward("mine", Named()), Reward("other", lambda *_: None))))
    assert PromptTask(protocol).contaminated({"bbbb"}) == ["mine"]
    assert PromptTask(protocol).contaminated({"cccc"}) == []


@pytest.mark.slow
def test_a_training_of_two_processes_shares_its_evaluation() -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    short = ["experiment=mnist/sft", "trainer.max_steps=2", "trainer.per_device_train_batch_size=2", "preflight=false"]
    few = ["evaluation.guidance_scales=[]", "evaluation.temperatures=[]", "evaluation.filters=[]"]
    command = [*torchrun, "-m", "recipes.cli", "train", *short, *SMALL, *few, "trainer.sample_every=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    rows = [row for row in read_results(Path("runs/mnist/sft/results.jsonl")) if row.split == "report"]
    assert [(row.label, row.n) for row in rows] == [("base", 60), ("aligned", 60), ("aligned", 60)]
    assert Path("runs/mnist/sft/report.html").exists()
    assert ended.stdout.count("base") == 1  # one process tells


@pytest.mark.slow
def test_a_kill_at_any_moment_changes_no_digit() -> None:
    command = [sys.executable, "-m", "recipes.cli", "eval", *SMALL, "save_images=true"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "output_dir=whole"], check=True, env=environment, capture_output=True)
    for wait in (0.0, 0.37, 0.71):  # after the first shard is there
        process = subprocess.Popen([*command, "output_dir=killed"], env=environment, stderr=subprocess.PIPE)
        while not list(Path("killed").glob("partial/*/*.npz")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    subprocess.run([*command, "output_dir=killed"], check=True, env=environment, capture_output=True)
    rows = [read_results(Path(folder, "results.jsonl"))[-1] for folder in ("whole", "killed")]
    assert rows[0].metrics == rows[1].metrics
    images = [np.load(Path(folder, "images.npz")) for folder in ("whole", "killed")]
    np.testing.assert_array_equal(images[0]["arr_0"], images[1]["arr_0"])
    assert images[0]["arr_1"].tolist() == [index % 10 for index in range(60)]


@pytest.mark.slow
def test_two_processes_share_an_evaluation() -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    together = [*torchrun, "-m", "recipes.cli", "eval", *SMALL, "save_images=true", "output_dir=two"]
    subprocess.run(together, check=True, env=environment, capture_output=True)
    alone = [sys.executable, "-m", "recipes.cli", "eval", *SMALL, "output_dir=one"]
    subprocess.run(alone, check=True, env=environment, capture_output=True)
    (two,), (one,) = (read_results(Path(folder, "results.jsonl")) for folder in ("two", "one"))
    assert two.metrics == one.metrics
    with np.load("two/images.npz") as archive:
        assert archive["arr_0"].shape == (60, 28, 28, 3)
    # what one tool writes another reads
    run("eval", "images=two/images.npz", "output_dir=read", *SMALL[1:])
    (read,) = read_results(Path("read/results.jsonl"))
    assert read.metrics == one.metrics
