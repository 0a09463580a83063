"""A run's folder, and the processes that fill it: never overwritten by accident, and the same whatever stops them or how
many they are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import SHORT, fails, run
from safetensors.torch import load_file

from align.files import alone_in
from align.tensor_files import read_tensors


def test_a_run_is_not_overwritten_by_accident(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "experiment=mnist/sft", "evaluation=none", "output_dir=run", *SHORT]
    run(*arguments)
    before = Path("run/generator.pt").read_bytes()
    message = fails(capsys, *arguments, "seed=2")
    assert (
        "run holds a run already (finished); add resume=auto to go on with it, overwrite=true to replace it" in message
    )
    assert Path("run/generator.pt").read_bytes() == before
    with alone_in(Path("run")):  # as a training that goes on
        for add in ("resume=auto", "overwrite=true"):
            assert "another process is training in run; wait for its end" in fails(capsys, *arguments, add)
    assert json.loads(Path("run/run.json").read_text())["status"] == "finished"
    run(*arguments, "seed=2", "overwrite=true")
    assert Path("run/generator.pt").read_bytes() != before


def test_a_training_run_is_not_taken_for_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "experiment=mnist/sft", "evaluation=none", "output_dir=run", *SHORT)
    before = Path("run/run.json").read_text()
    message = fails(capsys, "eval", "output_dir=run", "evaluation.num_images=70")
    assert "run holds a run of `align train`, whose run.json would be replaced" in message
    assert Path("run/run.json").read_text() == before


@pytest.mark.slow
def test_a_run_is_resumed_with_its_own_settings_only(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "experiment=mnist/sft", "evaluation=none", "output_dir=run", *SHORT]
    run(*arguments)
    message = fails(capsys, *arguments, "trainer.learning_rate=0.5", "resume=auto")
    assert "cannot resume with other settings: trainer.learning_rate was 0.0002, now 0.5" in message
    run(*arguments, "resume=auto")


LONG = [
    "trainer.max_steps=12",
    "trainer.per_device_train_batch_size=4",
    "trainer.save_steps=3",
    "trainer.logging_steps=2",
]
TRAIN = [
    sys.executable,
    "-m",
    "recipes.cli",
    "train",
    "experiment=mnist/cca",
    "evaluation=none",
    "trainer.sample_every=0",
    *LONG,
]


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*TRAIN, *arguments], env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


@pytest.mark.slow
def test_stopping_at_any_point_changes_nothing() -> None:
    """kill -9, then SIGTERM, then Ctrl-C, each resumed: the weights and the log equal those of an unbroken run."""
    whole = start("output_dir=whole")
    assert whole.wait(timeout=300) == 0

    process = start("output_dir=broken")
    wait_for(Path("broken/checkpoint-3/complete.json"), process)
    process.kill()
    process.wait()
    for number, name in ((signal.SIGTERM, 6), (signal.SIGINT, 9)):
        process = start("output_dir=broken", "resume=auto")
        wait_for(Path(f"broken/checkpoint-{name}/complete.json"), process)
        process.send_signal(number)
        error = process.communicate(timeout=120)[1]
        # the signal may arrive after the last step; else the run says how to go on
        assert process.returncode in (130, 0), error
        if process.returncode == 130:
            assert "resume=auto" in error
            assert json.loads(Path("broken/run.json").read_text())["status"] == "interrupted"
    assert start("output_dir=broken", "resume=auto").wait(timeout=300) == 0
    whole_tensors, broken_tensors = (read_tensors(Path(name, "generator.pt")).tensors for name in ("whole", "broken"))
    assert all(torch.equal(whole_tensors[name], broken_tensors[name]) for name in whole_tensors)
    assert Path("whole/metrics.jsonl").read_text() == Path("broken/metrics.jsonl").read_text()
    shutil.rmtree("whole")


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """The same command under torchrun: one folder, one export, the same weights."""
    quick = ["experiment=mnist/cca", "evaluation=none", "trainer.max_steps=2", "trainer.per_device_train_batch_size=4"]
    quick += ["trainer.global_batch_size=16", "trainer.sample_every=0", "trainer.report_to=[]"]
    quick += ["reference.kind=cached"]  # its pass is shared out, too
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "recipes.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    for how, folder in ((launch, "two"), (["-m", "recipes.cli"], "one")):
        command = [sys.executable, *how, "train", *quick, f"output_dir={folder}"]
        subprocess.run(command, check=True, timeout=300, env=environment)
    record = json.loads(Path("two/run.json").read_text())
    assert record["status"] == "finished"
    assert record["config"]["trainer"]["gradient_accumulation_steps"] == 2
    one, two = (read_tensors(Path(name, "generator.pt")).tensors for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-5, rtol=1e-4)
    tables = [load_file(f"{name}/reference_logprobs.safetensors")["logprobs"] for name in ("one", "two")]
    assert tables[0].shape == (32, 2)
    torch.testing.assert_close(*tables, atol=1e-4, rtol=1e-5)
    rounds = subprocess.run(
        [sys.executable, *launch, "train", *quick, "rounds.number=2", "evaluation=mnist-cnn", "output_dir=rounds"],
        timeout=300, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert rounds.returncode != 0
    assert "self-play in rounds runs in one process" in rounds.stderr
