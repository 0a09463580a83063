"""The card of a pushed run says what the run recorded, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_infinity, tiny_janus, tiny_llamagen, tiny_var
from hub import ROWS, SHORT, Hub, card_of, evaluate, row, run_snippet, section, set_record
from huggingface_hub import ModelCard
from omegaconf import OmegaConf

from align import load_generator
from align.checkpoints import save_tokenizer
from align.data import Codes
from align.files import sha256_of_tensors
from align.fingerprints import sha256_of_file
from align.tensor_files import read_tensors
from recipes import card_training, model_card
from recipes.cli import main
from recipes.config import compose
from recipes.facts import generator_facts
from recipes.push import push_to_hub

TOKENIZERS = {family: ["generator.tokenizer_checkpoint=y"] for family in ("var", "infinity")}
SCALES: Any = [[1, 1], [2, 2], [3, 3]]


def test_the_front_matter_is_read_by_the_hub(run: Path, hub: Hub) -> None:
    push_to_hub(run, "user/name")
    assert ModelCard(card_of(run)).data.to_dict() == {
        "library_name": "ar-align",
        "tags": ["image-generation", "autoregressive", "alignment", "llamagen", "cca", "lora"],
    }
    shutil.rmtree(run / "adapter")
    push_to_hub(run, "user/name", license="apache-2.0", base_model="them/base")
    data = ModelCard(card_of(run)).data
    assert (data.license, data.base_model) == ("apache-2.0", "them/base")
    assert "lora" not in (data.tags or [])
    assert "`apache-2.0`, as set by who published this" in section(card_of(run), "License")


def test_a_run_without_evaluation_claims_nothing(run: Path, hub: Hub) -> None:
    push_to_hub(run, "user/name")
    results = section(card_of(run), "Results")
    assert results.strip().startswith("Not evaluated")
    assert not re.search(r"\d|\|", results)
    # rows that chose settings are no claim either
    evaluate(run, ROWS[:1])
    push_to_hub(run, "user/name")
    assert section(card_of(run), "Results") == results


def test_the_results_are_those_of_the_report_rows(run: Path, hub: Hub) -> None:
    evaluate(run)
    push_to_hub(run, "user/name")
    results = section(card_of(run), "Results")
    assert [line for line in results.splitlines() if line.startswith("|")] == [
        "| generator | guidance scale (1 = off) | T | FID | accuracy | forwards an image |",
        "| --- | --- | --- | --- | --- | --- |",
        "| base | 1 | 1 | 7.50 ± 0.25 | 0.750 | 49 |",
        "| base | 1.5 | 1 | 4.25 ± 0.25 | 0.750 | 49 |",
        "| **aligned** | 1 | 1, top-k 9 | 5.12 ± 0.25 | 0.750 | 49 |",
        "| **aligned** | 1 | 1 | 4.50 ± 0.25 | 0.750 | 49 |",
    ]
    assert (
        "Protocol `mnist-cnn` (keys `fid_mnist-cnn_2k`, `accuracy_mnist-cnn_2k`): 2,000 images for each row" in results
    )
    assert "against 1,000 reference images, sampling seed 1001" in results
    assert "not comparable with Inception FID" in results
    assert re.findall(r"!\[.*?\]\((.*?)\)", results) == ["samples/base.png", "samples/aligned.png"]  # the unguided


def test_rows_of_several_protocols_are_refused(run: Path, hub: Hub) -> None:
    evaluate(run, [ROWS[1], replace(ROWS[4], n=500)])
    with pytest.raises(ValueError, match="cannot compare rows with different n"):
        push_to_hub(run, "user/name")
    assert hub.calls == []


def test_a_training_of_a_study_shows_the_studys_figures_of_its_own_weights(run: Path, hub: Hub) -> None:
    weights = json.loads((run / "run.json").read_text())["hashes"]["aligned"]
    rows = [row("base", 7.5), row("aligned", 4.5, checkpoint=weights[:16]), row("sft", 7.25, checkpoint="f" * 16)]
    rows += [row("base", 7.75, seed=1002), row("aligned", 5.5, seed=1002, checkpoint="e" * 16)]
    evaluate(run.parent, rows)
    push_to_hub(run, "user/name")
    figures = re.findall(r"\| ([\w*]+) \| 1 \| 1 \| ([\d.]+)", section(card_of(run), "Results"))
    assert figures == [("base", "7.50"), ("**aligned**", "4.50")]
    assert len((run / "push" / "results.jsonl").read_text().splitlines()) == 2
    assert not (run / "results.jsonl").exists()


def test_the_card_says_how_it_was_trained_and_how_to_repeat_it(run: Path, hub: Hub) -> None:
    push_to_hub(run, "user/name")
    card, record = card_of(run), json.loads((run / "run.json").read_text())
    training = section(card, "How it was trained")
    assert "**Method**: CCA (`align.objectives.cca`), [arXiv 2410.09347](https://arxiv.org/abs/2410.09347)" in training
    assert "the generator `mnist-llamagen` that ar-align ships" in training
    assert record["generator_facts"]["checkpoint"]["sha256"] in training
    assert record["hashes"]["base"] in training
    assert "**Reward**: none" in training
    assert "LoRA adapters of rank 2, alpha 16" in training
    table = dict(re.findall(r"^\| `([\w.]+)` \| `?(.*?)`? \|$", training, re.MULTILINE))
    assert {
        "objective.lambda_": "5",
        "trainer.learning_rate": "0.0002",
        "reference.kind": "frozen",
    }.items() <= table.items()
    assert table["trainer.max_steps"] == "2"
    # parts that CCA does not use, and what only watches, are left out
    assert not [name for name in table if name.startswith(("rollout", "pairs", "kl", "trainer.save", "actions"))]
    command = section(card, "How to make it again")
    assert f"    align train experiment=mnist/cca trainer.lora_rank=2 {' '.join(SHORT)}\n" in command
    assert str(run.parent.parent) not in card  # no folders of this machine
    assert f"ar-align {record['versions']['ar-align']}" in command
    digest = sha256_of_file(run / "generator.pt")
    assert f"| `generator.pt` | the generator's weights, 1.4 MB, sha256 `{digest}` |" in section(card, "What is here")


def test_guidance_is_told_in_all_three_conventions(run: Path, hub: Hub) -> None:
    push_to_hub(run, "user/name")
    guidance = section(card_of(run), "Guidance")
    assert "logits = null + s * (conditional - null)" in guidance
    assert "**1.0 is off**" in guidance
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", guidance, re.MULTILINE)
    assert rows
    generator = load_generator("mnist-llamagen")
    cond, null = (torch.randn(generator.vocab_size) for _ in range(2))
    for ours, llamagen, var in [map(float, values) for values in rows]:
        guided = null + ours * (cond - null)
        torch.testing.assert_close(guided, null + (cond - null) * llamagen)  # LlamaGen's formula
        torch.testing.assert_close(guided, (1 + var) * cond - var * null)  # VAR's


def test_the_cards_code_loads_what_was_trained(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a family, whose name, size and tokenizer the code must tell."""
    monkeypatch.chdir(tmp_path)
    generator = tiny_llamagen()
    assert generator.tokenizer is not None
    generator.save_published("mine.pt")
    save_tokenizer(generator.tokenizer, Path("vq.pt"))
    codes = torch.arange(8 * 6).view(8, 6) % 16
    Codes(codes, torch.arange(8) % 4, sha256_of_tensors(generator.tokenizer.state_dict())).save(Path("c.safetensors"))
    own = ["generator=llamagen", "generator.checkpoint=mine.pt", "generator.tokenizer_checkpoint=vq.pt"]
    own += ["generator.config.grid=[3,2]", "generator.config.num_heads=2", "data=codes", "data.codes=c.safetensors"]
    assert main(["train", "objective=sft", "output_dir=run", *own, *SHORT]) == 0
    push_to_hub("run", "user/name")
    card = card_of(Path("run"))
    names = run_snippet(card, Path("run/push"), monkeypatch)
    exported = read_tensors(Path("run/generator.pt")).tensors
    assert all(torch.equal(names["generator"].state_dict()[name], exported[name]) for name in exported)
    assert names["images"].shape == (1, 12, 8, 3)
    for name, title in (("vq.pt", "How to load it"), ("mine.pt", "How it was trained")):
        size, digest = Path(name).stat().st_size / 1e6, sha256_of_file(Path(name))
        assert f"`{name}`, {size:.1f} MB, sha256 `{digest}`" in section(card, title)
    assert "The authors' own code loads it as it loads theirs" in card
    assert "base_model" not in card  # a file of no published name
    # without the tokenizer there are tokens only
    record = json.loads(Path("run/run.json").read_text())
    del record["generator_facts"]["tokenizer"]
    record["config"]["generator"]["tokenizer_checkpoint"] = None
    set_record(Path("run"), **record)
    push_to_hub("run", "user/name")
    names = run_snippet(card_of(Path("run")), Path("run/push"), monkeypatch)
    assert names["tokens"].shape == (1, 6)
    assert "images" not in names


@pytest.mark.parametrize(
    ("family", "make", "given", "load"),
    [
        ("llamagen", tiny_llamagen, {}, {"grid": [3, 2]}),
        ("var", tiny_var, {"num_heads": 2}, {"num_heads": 2}),
        ("janus", tiny_janus, {}, {"grid": [3, 3]}),
        (
            "infinity",
            lambda: tiny_infinity(schedule=tuple(map(tuple, SCALES)), num_scales=2),
            {},
            {"schedule": SCALES, "num_scales": 2},
        ),
        ("infinity", tiny_infinity, {"image_size": [256, 512], "drop_path": 0.1}, {"image_size": [256, 512]}),
    ],
)
def test_what_the_exports_name_does_not_tell_is_recorded(family: str, make: Any, given: Any, load: Any) -> None:
    section = compose(
        "sample", [f"generator={family}", "generator.checkpoint=x", *TOKENIZERS.get(family, [])]
    ).generator
    section.tokenizer_checkpoint = None
    section.config = {**section.config, **given}
    facts = generator_facts(make(), section)
    assert facts["load"] == load
    assert json.loads(json.dumps(facts)) == facts
    assert facts["num_classes"] == make().num_classes


@pytest.mark.parametrize(
    ("value", "text"),
    [([3, 2], "(3, 2)"), ([[1, 1], [2, 2]], "((1, 1), (2, 2))"), ([7], "(7,)"), ("x", "'x'"), (5, "5"), (None, "None")],
)
def test_keywords_are_written_as_python(value: Any, text: str) -> None:
    assert model_card._literal(value) == text


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("c2i_XL_384.pt", "FoundationVision/LlamaGen"),
        ("t2i_XL_stage2_512.pt", "peizesun/llamagen_t2i"),
        ("var_d30.pth", "FoundationVision/var"),
        ("Janus-Pro-7B", "deepseek-ai/Janus-Pro-7B"),
        ("c2i_XL_384_mine.pt", None),
        ("generator.pt", None),
        ("", None),
    ],
)
def test_the_base_is_known_by_a_published_name_only(name: str, repository: str | None) -> None:
    assert model_card._hub_name(name) == repository


def test_an_input_that_the_authors_do_not_know_is_told(run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    export = model_card.Export("generator.pt", ["output.weight", "beta_embedding.layers.0.weight"], "bare", [])
    text = model_card._authors_code(record["generator_facts"], export)
    assert "1 tensors more, `beta_embedding.*`" in text
    assert "does not know it" in text


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("grpo", ("group relative policy optimisation (GRPO)", "2402.03300")),
        ("dapo", ("DAPO", "2503.14476")),
        ("reinforce", ("reinforce", None)),
        ("ddo", ("DDO", "2503.01103")),
        ("dpo", ("Direct preference optimisation", "2305.18290")),
        ("va_pi", ("VA-π", "2512.19680")),
        ("gft_sampled", ("GFT", "2501.15420")),
        ("sft", ("sft", None)),
    ],
)
def test_methods_are_named_with_their_papers(objective: str, expected: tuple[str, str | None]) -> None:
    assert card_training.method(compose("train", [f"objective={objective}"])) == expected


def test_settings_of_a_run_that_uses_rewards_and_penalties() -> None:
    config = compose("train", ["experiment=mnist/grpo", "reproduce_bugs.reference_dropout=true"])
    shown = card_training.settings(config)
    assert (shown["kl.coefficient"], shown["rollout.num_generations"], shown["objective.loss_type"]) == (
        0.15,
        8,
        "grpo",
    )
    assert "rollout.probe_every" not in shown
    assert "trainer.lora_rank" not in shown
    record = {"wall_seconds": 61.0, "device": "a GPU", "processes": 8, "config": OmegaConf.to_container(config)}
    more = [
        {"name": "/home/me/mine.py:score", "label": "mine", "weight": 0},
        {"name": "hpsv2", "gate": {"reward": "mine", "at_least": 1.0}},
        {"ensemble": ["mine", "hpsv2"], "name": "both", "penalty": 0.5, "weight": 2},
    ]
    config.reward.rewards = [*config.reward.rewards, *more]
    lines = "\n".join(card_training.training_lines(record, config, {}, "GRPO", None, "them/base"))
    assert "`classifier-log-prob` (weight 1), `mine.py:score` (logged only, as mine), " in lines
    assert "`hpsv2` (weight 1, where mine is at least 1), " in lines
    assert "`both` (weight 2, mean of mine, hpsv2 less 0.5 standard deviations)" in lines
    assert "reproduced on purpose**: reference_dropout True" in lines
    assert "61 s with its evaluation, on a GPU in 8 processes" in lines
