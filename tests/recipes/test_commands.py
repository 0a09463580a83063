"""The commands, run for real on the shipped generator, a few steps and few images each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import SHORT, fails, run
from PIL import Image

from align import load_generator
from align.data.prompts import read_prompts
from align.tensor_files import read_tensors
from evaluation.geneval.protocol import GenEvalProtocol
from evaluation.results import read_results
from recipes.choices import options
from recipes.parts import zoo_file
from recipes.protocols import make_protocol

EXPERIMENTS = [name for name in options("experiment") if name.startswith("mnist/")]
SHAPES = [name for name in options("experiment") if name.startswith("shapes/")]
QUICK = ("mnist/cca",)  # an evaluation takes seconds; the others' parts are tested by themselves
# the fewest images that a Fréchet distance in 64 features takes
FEW = [
    *("evaluation.num_images=70", "evaluation.guidance_scales=[2.0]", "evaluation.temperatures=[0.8]"),
    *("evaluation.filters=[]", "evaluation.aligned_guidance_scales=[]"),
]
FEW_PROMPTS = [
    "evaluation.max_prompts=6",
    "evaluation.images_per_prompt=1",
    "evaluation.guidance_scales=[2.0]",
    "evaluation.temperatures=[]",
    "evaluation.aligned_guidance_scales=[]",
]


@pytest.mark.parametrize(
    "experiment",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EXPERIMENTS],
)
def test_every_experiment_runs_two_steps(experiment: str) -> None:
    run("train", f"experiment={experiment}", "output_dir=run", *SHORT, *FEW)
    record = json.loads(Path("run/run.json").read_text())
    assert record["status"] == "finished"
    assert record["config"]["trainer"]["max_steps"] == 2
    assert record["command"].startswith(f"align train experiment={experiment}")
    assert {"versions", "git", "device", "hashes", "wall_seconds"} <= record.keys()
    assert any("the gradient is finite and not zero" in line for line in record["preflight"])
    assert [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [1, 2]
    rows = read_results(Path("run/results.jsonl"))
    claims = [(row.label, row.guidance_scale, row.temperature) for row in rows if row.split == "report"]
    aligned = [("aligned", 1, 1), ("aligned", 1, 0.8)]
    assert claims == [("base", 1, 1), ("base", 1, 0.8), ("base", 2, 1), ("base", 2, 0.8), *aligned]
    assert {row.seed for row in rows if row.split == "report"}.isdisjoint(
        row.seed for row in rows if row.split == "select"
    )
    assert [row.forwards_per_image for row in rows if row.label == "base" and row.split == "report"] == [49, 49, 98, 98]
    assert (Path("run/samples/step-000002.png")).exists()
    assert all(Path("run", row.samples).exists() for row in rows if row.samples)
    assert "<html" in Path("run/report.html").read_text()
    # the exported weights have the published file's names and differ from the base's
    exported = read_tensors(Path("run/generator.pt"))
    base = load_generator("mnist-llamagen").state_dict()
    assert exported.wrapper == "model"
    added = {name for name in exported.tensors if name not in base}
    assert {name.split(".")[0] for name in added} == (
        {"beta_embedding"} if experiment == "mnist/gft_sampled" else set()
    )
    assert exported.tensors.keys() - added == base.keys()
    assert any(not torch.equal(exported.tensors[name], base[name]) for name in base)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", SHAPES)
def test_every_experiment_with_prompts_runs_two_steps(experiment: str) -> None:
    enough = [
        "trainer.per_device_train_batch_size=16",
        "rollout.num_generations=8",
    ]  # for verdicts to differ in a group
    run("train", f"experiment={experiment}", "output_dir=run", *SHORT, *FEW_PROMPTS, *enough)
    rows = [row for row in read_results(Path("run/results.jsonl")) if row.split == "report"]
    assert {(row.label, row.guidance_scale) for row in rows} == {("base", 1.0), ("base", 2.0), ("aligned", 1.0)}
    assert {row.protocol for row in rows} == {"geneval-shapes"}
    assert Path("run/report.html").exists()


def test_adapters_are_trained_against_the_policy_without_them_and_merged() -> None:
    adapters = ["trainer.lora_rank=2", "reference.kind=adapter_off", "trainer.learning_rate=0.01"]
    run("train", "experiment=mnist/cca", "evaluation=none", "output_dir=run", *SHORT, *adapters)
    base, aligned = load_generator("mnist-llamagen").state_dict(), read_tensors(Path("run/generator.pt")).tensors
    assert aligned.keys() == base.keys()
    assert any(not torch.equal(aligned[name], base[name]) for name in base if name.endswith("wqkv.weight"))
    assert torch.equal(aligned["tok_embeddings.weight"], base["tok_embeddings.weight"])  # no linear layer


def test_an_alarm_that_stops_a_run_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "experiment=mnist/sft", "evaluation=none", "output_dir=run", *SHORT]
    message = fails(capsys, *arguments, "alarms.entropy=2.0", "alarms.stop=[entropy]")
    assert "stopped at step 1 of 2 with a checkpoint by an alarm: the entropy fell" in message
    assert "alarms.stop=[] goes on regardless" in message
    run(*arguments, "alarms.entropy=2.0", "alarms.stop=[]", "resume=auto")
    assert [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [1, 2]


@pytest.mark.slow
def test_guided_rollouts_are_judged_with_their_guidance_and_without() -> None:
    guided = ["rollout.sampling.guidance_scale=3", "rollout.sampling.guidance_schedule=linear"]
    run("train", "experiment=mnist/grpo", "output_dir=run", *guided, *SHORT, *FEW)
    rows = [row for row in read_results(Path("run/results.jsonl")) if row.split == "report"]
    claims = [(row.label, row.guidance_scale, row.guidance_schedule) for row in rows if row.temperature == 1]
    assert claims == [
        *(("base", 1, "constant"), ("base", 2, "constant"), ("base", 3, "linear")),
        *(("aligned", 1, "constant"), ("aligned", 3, "linear")),
    ]
    assert {row.samples for row in rows if row.label == "aligned"} == {
        "samples/aligned_mnist-cnn_g1_t1_seed1001.png",
        "samples/aligned_mnist-cnn_g1_t0.8_seed1001.png",
        "samples/aligned_mnist-cnn_g3-linear_t1_seed1001.png",
    }


@pytest.mark.slow
def test_a_study_compares_arms_on_paired_seeds() -> None:
    run("study", "experiment=mnist/cca", "output_dir=study", "seeds=[1,2]", *SHORT, *FEW)
    rows = [row for row in read_results(Path("study/results.jsonl")) if row.split == "report"]
    seeds: dict[tuple[str, float, float], set[int]] = {}
    for row in rows:
        seeds.setdefault((row.label, row.guidance_scale, row.temperature), set()).add(row.seed)
    base = {("base", 1, 1), ("base", 1, 0.8), ("base", 2, 1), ("base", 2, 0.8)}
    assert set(seeds) == base | {("aligned", 1, 1), ("aligned", 1, 0.8), ("sft", 1, 1)}
    assert all(value == {1001, 1002} for value in seeds.values())
    assert {path.name for path in Path("study").glob("*-seed*")} == {"cca-seed1", "cca-seed2", "sft-seed1", "sft-seed2"}
    # a study that is run again with resume=auto finds its trained generators
    before = Path("study/cca-seed2/generator.pt").stat().st_mtime_ns
    run("study", "experiment=mnist/cca", "output_dir=study", "seeds=[1,2]", "resume=auto", *SHORT, *FEW)
    assert Path("study/cca-seed2/generator.pt").stat().st_mtime_ns == before


@pytest.mark.slow
def test_sample_eval_sweep_report_and_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    run("sample", "labels=[3,1,4]", "output_dir=drawn", "sampling.guidance_scale=2")
    assert Image.open("drawn/samples.png").size == (10 * 30 - 2, 28)
    with np.load("drawn/images.npz") as arrays:
        assert arrays["arr_0"].shape == (3, 28, 28, 3)
        assert arrays["arr_1"].tolist() == [3, 1, 4]
    run("train", "experiment=mnist/sft", "evaluation=none", "output_dir=run", *SHORT)
    capsys.readouterr()
    run(
        "eval",
        "generator.checkpoint=run",
        "label=sft",
        "sampling.temperature=0.9",
        "output_dir=scored",
        "evaluation.num_images=70",
    )
    run("eval", "output_dir=scored", "evaluation.num_images=70")
    assert [(row.label, row.temperature) for row in read_results(Path("scored/results.jsonl"))] == [
        ("sft", 0.9),
        ("base", 1),
    ]
    run("sweep", "guidance_scales=[1,2]", "temperatures=[1.0,0.8]", "output_dir=swept", "evaluation.num_images=70")
    splits = [row.split for row in read_results(Path("swept/results.jsonl"))]
    assert splits == 4 * ["select"] + 4 * ["report"]  # the grid, then the best of each of four cells
    Path("swept/report.html").unlink()
    run("report", "swept")
    assert Path("swept/report.html").exists()
    run("zoo")
    assert "mnist-llamagen" in capsys.readouterr().out
    run("zoo", "mnist-llamagen")
    assert "align pretrain experiment=zoo/mnist-llamagen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "labels=[10]"], "class label 10 is out of range; this generator knows 0 to 9"),
        (["sample", "generator.name=mnist"], "unknown generator 'mnist'; known zoo entries: mnist-llamagen"),
        (["sample", "sampling.top_p=0"], "top_p is 0; it must be in (0, 1]"),
        (["train", "resume=yes-please"], "resume is 'yes-please'; known: auto"),
        (
            ["train", "reference.kind=copy", *SHORT, "evaluation=none"],
            "unknown reference.kind 'copy'; known: frozen, cached, adapter_off",
        ),
        (["eval", "generator.checkpoint=missing.pt"], "no checkpoint at missing.pt"),
        (["eval", "evaluation.num_images=1"], "metrics compare distributions and need at least 2 images, got 1"),
        (["report", "nothing"], "nothing is not a run's folder"),
        (["zoo", "imagenet"], "unknown zoo entry 'imagenet'; known: mnist-llamagen"),
        (["pretrain"], "name"),
    ],
)
def test_mistakes_end_in_one_clear_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    error = fails(capsys, *arguments)
    assert message in error
    assert "Traceback" not in error


def test_codes_of_another_tokenizer_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from align.data import Codes

    Codes(torch.zeros(4, 49, dtype=torch.long), torch.zeros(4, dtype=torch.long), "f" * 64).save(
        Path("codes.safetensors")
    )
    error = fails(capsys, "train", "data=codes", "data.codes=codes.safetensors", "evaluation=none", *SHORT)
    assert "was made by another tokenizer (ffffffffffff" in error


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "own"), [("mnist-llamagen", ["classifiers.steps=2"]), ("mnist-var", [])])
def test_the_zoo_entry_is_made_from_nothing(entry: str, own: list[str]) -> None:
    """`align pretrain` with two steps of everything; what it leaves is a generator like any other."""
    few = [
        "tokenizer.steps=2",
        "generator.steps=2",
        "generator.batch_size=4",
        "generator.deformed_copies=1",
        "evaluation.num_images=70",
        "evaluation.guidance_scales=[2.0]",
        "evaluation.temperatures=[0.8]",
    ]
    run("pretrain", f"experiment=zoo/{entry}", "output_dir=made", *few, *own)
    assert make_protocol("zoo:made").name == "mnist-cnn"
    assert zoo_file("zoo:made", "reward").parent.name == ("made" if own else "mnist-llamagen")
    run("train", "generator.name=made", "evaluation.protocol=zoo:made", "output_dir=run", *SHORT, *FEW)
    run("zoo", "made")


@pytest.mark.slow
def test_the_entry_of_shapes_is_made_from_nothing() -> None:
    """As above, of text: with its own text encoder, prompts and learnt judge; and what it leaves is aligned and judged."""
    few = ["scenes.number=200", "scenes.shipped=64", "tokenizer.steps=2", "generator.steps=2", "generator.batch_size=4"]
    few += [
        "judge_network.steps=2",
        "images_per_prompt=1",
        "evaluation.guidance_scales=[2.0]",
        "evaluation.temperatures=[]",
    ]
    run("pretrain", "experiment=zoo/shapes-t2i", "output_dir=made", *few)
    protocol = make_protocol("zoo:made")
    assert isinstance(protocol, GenEvalProtocol)
    assert (protocol.name, len(protocol.rows)) == ("geneval-shapes", 144)
    asked = {row["prompt"] for row in read_prompts(zoo_file("zoo:made", "prompts"))}
    assert asked.isdisjoint(row["prompt"] for row in protocol.rows)
    assert not Path("made/verdicts").exists()
    assert "a T5 of 24 words" in Path("made/card.md").read_text()
    made = ["generator.name=made", "evaluation.protocol=zoo:made", "reward.judge=zoo:made", "preflight=false"]
    run("train", "experiment=shapes/grpo", "output_dir=run", *made, *SHORT, *FEW_PROMPTS)
    rows = read_results(Path("run/results.jsonl"))
    assert {row.label for row in rows} == {"base", "aligned"}
    assert {"geneval", "held-out"} <= {key.partition("_")[0] for key in rows[0].metrics}
    run("zoo", "made")


def test_a_reader_that_has_enough_ends_a_command_quietly() -> None:
    """As in `align train --help | head`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "recipes.cli", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0
