"""The experiments with the papers' settings: each composes, says what it should, and runs two steps on a tiny checkpoint."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import SHORT, UNTOLD, checkpoint, data

from align.checkpoints import load_generator
from align.tensor_files import read_tensors
from recipes.choices import CONF, options
from recipes.cli import main
from recipes.config import compose
from recipes.exports import find_export
from recipes.supplies import check_recipe
from rewards.registry import known_rewards

ROOT = Path(__file__).parents[2]
PUBLISHED = [name for name in options("experiment") if name.split("/")[0] in ("llamagen", "var", "janus")]
# what each file's header has to say
SAID = ("published:", "files:", "8 GPUs:", "1 GPU:", "memory:", "time:")


def header(name: str) -> str:
    lines = (CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    return " ".join(" ".join(line.removeprefix("#").split()) for line in lines if line.startswith("#"))


def files_of(name: str) -> list[str]:
    """The settings that the header's FILES stands for."""
    text = header(name)
    found = re.search(r"FILES='([^']*)'", text)
    assert found, f"{name}: its header gives no FILES"
    return shlex.split(found[1])


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_header_says_what_a_researcher_asks(name: str) -> None:
    text = header(name)
    assert [word for word in SAID if word not in text] == []
    assert "ithout guidance" in text and "scale 1 here" in text, "the convention of guidance is not said"
    assert f"torchrun --nproc-per-node 8 -m recipes.cli train experiment={name} $FILES" in text
    assert f"align train experiment={name} $FILES" in text


@pytest.mark.slow  # half a second each
@pytest.mark.parametrize("world", [1, 8])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_commands_of_the_header_compose(name: str, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    config = compose("train", [f"experiment={name}", *files_of(name)])
    if config.data.get("prompts") is not None:
        config.data.prompts = None  # a file
    if config.reward.rewards:
        assert {entry.name for entry in config.reward.rewards} <= set(known_rewards())
        config.reward.rewards = [{"name": "jpeg-compressibility"}]  # without the models' files
    check_recipe(config)
    trainer = config.trainer
    rows = trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps * world
    assert rows == trainer.global_batch_size
    assert config.name == name
    if trainer.lr_scheduler_type == "warmup_stable_decay":
        # the released schedule: 2 % warm-up, full rate to 5 %, then down to the end
        assert trainer.warmup_steps == 0.02 * trainer.max_steps
        assert trainer.lr_scheduler_kwargs.num_decay_steps == 0.95 * trainer.max_steps


@pytest.mark.slow
def test_the_costs_in_the_headers_are_the_recorded_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured where they were, and else what benchmarks/estimate.py makes of it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    estimate = importlib.import_module("estimate")
    results = json.loads((ROOT / "benchmarks" / "results" / "true-size-h100.json").read_text())
    guesses = estimate.estimates(results)
    assert set(guesses) == set(PUBLISHED)
    for name, (memory, seconds) in guesses.items():
        row, text = results["recipes"].get(name, {}), header(name)
        memory, seconds = row.get("peak_gb", memory), row.get("published_step_seconds", seconds)
        kind = "measured on an H100" if "peak_gb" in row else "estimated, not measured"
        assert memory is None or (f"memory: {memory:.0f} GB" in text and kind in text), name
        if seconds is None:
            assert "time: not measured" in text, name
            continue
        hours = seconds * estimate.read(name).steps / 3600
        told = f"{60 * hours:.0f} minutes" if hours < 1 else f"{hours:.1f} h" if hours < 9.95 else f"{hours:.0f} h"
        assert f"time: {told} on one H100" in text or f"time: at least {told} on one H100" in text, (name, told)


def test_no_family_lacks_its_recipes() -> None:
    wanted = (
        "llamagen/cca_b llamagen/cca_l llamagen/cca_xl llamagen/cca_xxl llamagen/cca_3b var/cca_d16 var/cca_d20 var/cca_d24 "
        "var/cca_d30 var/ddo_d16 var/ddo_d30 llamagen/va_pi_xxl llamagen/va_pi_t2i janus/va_pi llamagen/grpo_c2i "
        "llamagen/grpo_t2i janus/grpo llamagen/dpo var/dpo"
    )
    assert set(wanted.split()) <= set(PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_it_runs_two_steps_and_exports(name: str, tmp_path: Path) -> None:
    experiment = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    chosen = {key.removeprefix("override /"): value for entry in experiment["defaults"] for key, value in entry.items()}
    family = chosen["generator"]
    made, settings = checkpoint(family, tmp_path)
    settings += data("pairs" if chosen["objective"] == "dpo" else chosen["data"], made, tmp_path)
    run = tmp_path / "run"
    assert main(["train", f"experiment={name}", f"output_dir={run}", *settings, *SHORT]) == 0

    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    exported = find_export(run)
    assert exported is not None
    before, after = read_tensors(tmp_path / exported.name).tensors, read_tensors(exported).tensors
    assert list(before) == list(after)
    assert any(not torch.equal(before[key], after[key]) for key in before)
    tokenizer = tmp_path / "tokenizer.pt"
    load_generator(family, exported, tokenizer if tokenizer.exists() else None, **UNTOLD[family])
