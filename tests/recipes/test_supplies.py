"""What a configuration is turned into, and what is refused before any weights are loaded."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_llamagen
from omegaconf import DictConfig, OmegaConf
from training.harness import make_generator, real_codes, real_pairs, with_visible_tokens

from align.data import PairStream, PromptStream, TrainingStream
from align.generators import LlamaGen
from align.training.actions import Actions
from align.training.adapters import add_adapters
from align.training.penalties import EntropyBonus, KLPenalty
from align.training.reference import AdapterOffReference, CachedReference, FrozenReference
from align.training.rollouts import Rollouts
from align.training.sources import Betas, Fakes, Pairs, RealData
from align.training.straight_through import StraightThrough
from align.types import SamplingConfig
from recipes import study, train
from recipes.choices import CONF, options
from recipes.config import compose
from recipes.parts import make_objective
from recipes.supplies import (
    PAIRS_FILE,
    POOL_FILE,
    REFERENCE_FILE,
    check_recipe,
    make_penalties,
    make_supplies,
    needs_of,
    rollout_settings,
)

REWARD = """
def brightness(images, conditions):
    return images.float().mean(dim=(1, 2, 3)) / 255
"""
REWARDED = ("rollouts", "pairs")


@lru_cache
def composed() -> DictConfig:
    return compose("train", ["data=codes", "data.codes=codes.safetensors", "evaluation=none"])


@pytest.fixture(autouse=True)
def a_reward(in_a_folder_of_its_own: None) -> None:
    Path("reward.py").write_text(REWARD)


def configured(objective: str, **changes: Any) -> DictConfig:
    """`kl__where="reward"` sets kl.where; rewards are there for those that need one."""
    config: DictConfig = composed().copy()
    config.objective = OmegaConf.load(CONF / "objective" / f"{objective}.yaml")
    config.reward.rewards = [{"name": "reward.py:brightness", "weight": 1.0}]
    for key, value in changes.items():
        OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    return config


def supplied(objective: str, *, generator: LlamaGen | None = None, **changes: Any) -> Any:
    """Of a tiny generator, in a step of 6 rows, two steps."""
    generator = generator or with_visible_tokens(tiny_llamagen(with_tokenizer=False))
    real_codes(generator).save(Path("codes.safetensors"))
    real_pairs(generator).save(Path("given.safetensors"))
    beside = {
        "trainer__max_steps": 2,
        "trainer__per_device_train_batch_size": 6,
        "rollout__num_generations": 3,
        "pairs__file": "given.safetensors",
        "actions__perceptual": None,
        "actions__perceptual_weight": 0.0,
    }
    return make_supplies(configured(objective, **{**beside, **changes}), generator, Path())


# --- refused before any weights are loaded

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("cca", {"reference__kind": "copy"}, "unknown reference.kind 'copy'; known: frozen, cached, adapter_off"),
    ("cca", {"reference__cache": "tables"}, "reference.kind=frozen has none; set reference.kind=cached"),
    ("ddo", {"reference__kind": "cached"}, "trains on fakes; set reference.kind=frozen"),
    ("grpo", {"reference__kind": "cached", "kl__coefficient": 0.1}, "trains on rollouts; set reference.kind=frozen"),
    (
        "grpo",
        {"reference__kind": "cached", "kl__coefficient": 0.1, "kl__where": "reward"},
        "trains on rollouts; set reference.kind=frozen",
    ),
    ("grpo", {"reference__kind": "cached", "rollout__null_branch": "reference"}, "trains on rollouts; set reference"),
    (
        "erasure",
        {"reference__kind": "cached"},
        "cannot supply reference_positive_BLV, .*only log-probs of whole images",
    ),
    ("cca", {"reference__kind": "cached", "kl__coefficient": 0.1}, "cannot supply reference_positive_BL"),
    ("cca", {"reference__kind": "cached", "reference__sync_steps": 2}, "reference.kind=cached cannot move"),
    ("cca", {"reference__kind": "adapter_off"}, "without its adapters; set trainer.lora_rank"),
    (
        "cca",
        {"reference__kind": "adapter_off", "trainer__lora_rank": 2, "reference__sync_steps": 2},
        "reference.kind=adapter_off cannot move",
    ),
    (
        "ddo",
        {"reference__kind": "adapter_off", "trainer__lora_rank": 2},
        "fakes are drawn from a reference of its own; set reference.kind=frozen, or fakes.per_class",
    ),
    (
        "grpo",
        {"reference__kind": "adapter_off", "trainer__lora_rank": 2, "rollout__null_branch": "reference"},
        "null_branch=reference asks a reference of its own",
    ),
    ("grpo", {"reward__rewards": []}, "trains on rollouts, which need a reward .*choose reward=classifier"),
    ("dpo", {"reward__rewards": []}, "trains on pairs, which need a reward"),
    (
        "grpo",
        {"reward__rewards": [{"name": "reward.py:brightness", "weight": 0}]},
        "need a reward of a weight other than 0",
    ),
    ("grpo", {"reward__rewards": [{"name": "hsp"}]}, "unknown reward 'hsp'; known: "),
    ("grpo", {"reward__rewards": [{"name": "reward.py:darkness"}]}, "reward.py has no 'darkness'"),
    ("grpo", {"rollout__scoring": "guided"}, "unknown rollout.scoring 'guided'; known: same, plain"),
    (
        "grpo",
        {"rollout__scoring": "plain", "rollout__sampling__guidance_scale": 2.0},
        "are drawn from .* but trained under .*or rollout.importance_cap",
    ),
    ("grpo", {"rollout__null_branch": "frozen"}, "null_branch is 'frozen'; known: trains, detached, reference"),
    ("grpo", {"rollout__sampling__temperature": 0}, "rollouts at temperature 0 are all the same"),
    ("grpo", {"rollout__sampling__top_p": 0}, r"top_p is 0; it must be in \(0, 1\]"),
    ("grpo", {"rollout__importance_cap": -1}, "rollout.importance_cap is -1; it must be above 0"),
    ("grpo", {"rollout__num_generations": 0}, "rollout.num_generations is 0; it must be at least 1"),
    ("grpo", {"rollout__num_iterations": 0}, "rollout.num_iterations is 0; it must be at least 1"),
    ("grpo", {"rollout__batch_size": 0}, "rollout.batch_size is 0; it must be at least 1"),
    ("grpo", {"rollout__probe_every": 0}, "rollout.probe_every is 0; it must be at least 1"),
    (
        "grpo",
        {"rollout__num_generations": 5},
        "does not divide into groups of rollout.num_generations=5; set it to one of 2, 4, 8, or",
    ),
    ("grpo", {"reward__max_failed": 1.0}, "reward.max_failed is 1.0 .* the first is a share below 1"),
    ("grpo", {"reward__failure_window": 0}, "reward.failure_window is 0; .*a number of steps from 1"),
    ("grpo", {"trainer__dropout": 0.1}, "policy gradient compares log-probs .*set trainer.dropout=0"),
    (
        "grpo",
        {"kl__coefficient": 0.1, "kl__importance": True, "rollout__sampling__top_k": 5},
        "kl.importance weighs by ratios .* which filters cut",
    ),
    ("cca", {"kl__where": "penalty"}, "unknown kl.where 'penalty'; known: loss, reward"),
    ("cca", {"kl__where": "reward", "kl__coefficient": 0.1}, "needs rollouts with rewards.*trains on real; use loss"),
    ("va_pi", {"kl__coefficient": 0.1}, "actions share their logits.*set kl.estimator=exact"),
    (
        "cca",
        {"reproduce_bugs__label_drop_in_update": 0.1},
        "label_drop_in_update is VA-pi's, and this objective trains on real; set it to 0",
    ),
    (
        "cca",
        {"reproduce_bugs__reference_dropout": True},
        "reference_dropout is for a frozen reference of a policy with dropout; set .* trainer.dropout",
    ),
    (
        "cca",
        {"reproduce_bugs__reference_dropout": True, "trainer__dropout": 0.1, "reference__kind": "cached"},
        "reference_dropout is for a frozen reference",
    ),
    ("cca", {"objective___target_": "align.objectives.ccaa"}, "cannot build the objective align.objectives.ccaa"),
    ("sft", {"objective___target_": "align.objectives.exact_kl"}, "must take normalizer="),
    (
        "sft",
        {"objective___target_": "align.objectives.exact_kl_penalty"},
        "takes policy_BLV, reference_BLV, coefficient",
    ),
]


@pytest.mark.parametrize(("objective", "changes", "message"), REFUSED)
def test_what_cannot_work_is_refused_before_weights_are_loaded(
    monkeypatch: pytest.MonkeyPatch, objective: str, changes: dict[str, Any], message: str
) -> None:
    def load(*arguments: Any, **more: Any) -> None:
        raise AssertionError("weights were loaded")

    config = configured(objective, **changes)
    monkeypatch.setattr("recipes.parts.load_generator", load)
    monkeypatch.setattr(train, "compose", lambda command, overrides: config)
    with pytest.raises(ValueError, match=message):
        train.main([])
    assert not Path("runs").exists()  # nor is a folder left behind


def test_several_processes_ask_for_more_of_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging reward is given up before the other processes give up waiting, and a group stays on one process."""
    Path("reward.py").write_text(f"{REWARD}\nbrightness.kind = 'group'\n")
    settings = {"trainer__per_device_train_batch_size": 4, "rollout__num_generations": 8}
    check_recipe(configured("grpo", **settings, trainer__gradient_accumulation_steps=2, reward__timeout=None))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_recipe(configured("grpo", **settings, trainer__gradient_accumulation_steps=2))
    with pytest.raises(ValueError, match="compares the images of one prompt, and each process has 4 rows of a step"):
        check_recipe(configured("grpo", **settings, trainer__gradient_accumulation_steps=1))
    for timeout in (None, 601):
        with pytest.raises(
            ValueError, match=f"reward.timeout is {timeout} and processes wait 1800 seconds .*to 600 or"
        ):
            check_recipe(
                configured("grpo", **settings, trainer__gradient_accumulation_steps=2, reward__timeout=timeout)
            )


def test_the_weights_are_loaded_where_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any, **more: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("recipes.parts.load_generator", load)
    monkeypatch.setattr(train, "compose", lambda command, overrides: configured("cca"))
    with pytest.raises(AssertionError, match="weights were loaded"):
        train.main([])


@pytest.mark.parametrize("objective", options("objective"))
def test_every_objective_that_is_shipped_can_be_run(objective: str) -> None:
    config = configured(objective)
    check_recipe(config)
    needs = needs_of(config)
    assert needs.names
    make_objective(config.objective)
    if needs.source not in REWARDED:
        config.reward.rewards = []
        check_recipe(config)  # and needs no reward


@pytest.mark.parametrize("kind", ["cached", "adapter_off"])
def test_a_reference_that_nobody_asks_for_stops_nothing(kind: str) -> None:
    check_recipe(configured("sft", reference__kind=kind, trainer__lora_rank=2))
    check_recipe(configured("grpo", reference__kind=kind, trainer__lora_rank=2))


def test_pairs_from_a_file_need_no_reward() -> None:
    check_recipe(configured("dpo", reward__rewards=[], pairs__file="pairs.safetensors"))


def test_a_step_counts_the_rows_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("grpo", trainer__per_device_train_batch_size=4, rollout__num_generations=8)
    with pytest.raises(ValueError, match="a step of 4 rows does not divide"):
        check_recipe(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_recipe(config)


# --- what is made


@pytest.mark.parametrize(
    ("objective", "stream", "source", "reference"),
    [
        ("sft", TrainingStream, RealData, None),
        ("cca", TrainingStream, RealData, FrozenReference),
        ("gft_sampled", TrainingStream, Betas, None),
        ("ddo", TrainingStream, Fakes, FrozenReference),
        ("spin", TrainingStream, Fakes, FrozenReference),
        ("dpo", PairStream, Pairs, FrozenReference),
        ("simpo", PairStream, Pairs, None),
        ("best_of_n", PairStream, Pairs, None),
        ("kto", PairStream, Pairs, FrozenReference),
        ("grpo", PromptStream, Rollouts, None),
        ("va_pi", TrainingStream, Actions, None),
        ("ste", TrainingStream, StraightThrough, None),
    ],
)
def test_each_objective_gets_what_it_asks_for(
    objective: str, stream: type, source: type, reference: type | None
) -> None:
    made = supplied(objective)
    assert type(made.stream) is stream
    assert type(made.source) is source
    assert made.reference is None if reference is None else type(made.reference) is reference
    assert made.penalties == []
    assert len(made.stream) == 12


@pytest.mark.parametrize(
    "changes",
    [
        {"kl__coefficient": 0.1},
        {"kl__coefficient": 0.1, "kl__where": "reward"},
        {"rollout__null_branch": "reference", "rollout__sampling__guidance_scale": 2.0},
    ],
)
def test_rollouts_get_a_reference_where_something_asks_it(changes: dict[str, Any]) -> None:
    assert isinstance(supplied("grpo", **changes).reference, FrozenReference)


def test_penalties_carry_their_settings() -> None:
    config = configured(
        "cca", kl__coefficient=0.1, kl__estimator="k3", kl__importance=True, kl__target=0.2, entropy__coefficient=0.01
    )
    config.entropy.target = 0.8
    kl, entropy = make_penalties(config, vocabulary=16)
    assert kl == KLPenalty(0.1, estimator="k3", importance=True, target=0.2)
    assert entropy == EntropyBonus.for_vocabulary(
        16, base=0.01, target=0.8, band=0.015, gain=3.0, minimum=7e-5, maximum=4e-3
    )
    # charged to the reward, KL is no term of the loss
    assert make_penalties(configured("grpo", kl__coefficient=0.1, kl__where="reward"), vocabulary=16) == []


def test_rollouts_are_drawn_by_the_runs_seed() -> None:
    config = configured("grpo", seed=7, rollout__sampling__guidance_scale=2.0, rollout__null_branch="detached")
    settings = rollout_settings(config)
    assert settings.sampling == settings.scoring.config == SamplingConfig(guidance_scale=2.0, seed=7)
    assert settings.scoring.null_branch == "detached"
    assert settings.timeout == config.reward.timeout
    plain = rollout_settings(configured("grpo", rollout__scoring="plain", rollout__importance_cap=2.0))
    assert plain.scoring.config == SamplingConfig()


def test_a_table_of_logprobs_stays_in_the_folder_and_is_found_again() -> None:
    first = supplied("kto", reference__kind="cached").reference
    assert isinstance(first, CachedReference)
    assert first.names == ["reference_chosen_B", "reference_rejected_B", "reference_mismatched_B"]
    stamp = Path(REFERENCE_FILE).stat().st_mtime_ns
    again = supplied("kto", reference__kind="cached").reference
    assert torch.equal(again.table_NK, first.table_NK)
    assert Path(REFERENCE_FILE).stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="computed with another stream"):
        supplied("kto", reference__kind="cached", seed=2)


def test_runs_share_a_folder_of_tables() -> None:
    shared = {"reference__kind": "cached", "reference__cache": "tables"}
    first = supplied("kto", **shared).reference
    assert not Path(REFERENCE_FILE).exists()
    (table,) = Path("tables").iterdir()
    stamp = table.stat().st_mtime_ns
    again = supplied("kto", trainer__learning_rate=1.0, **shared).reference
    assert torch.equal(again.table_NK, first.table_NK)
    assert table.stat().st_mtime_ns == stamp
    # what changes the numbers has a table of its own
    supplied("kto", seed=2, **shared)
    supplied("kto", trainer__precision="bf16", **shared)
    supplied("kto", generator=with_visible_tokens(tiny_llamagen(seed=1, with_tokenizer=False)), **shared)
    assert len(list(Path("tables").iterdir())) == 4


def test_a_pool_of_fakes_stays_in_the_folder_and_is_found_again() -> None:
    first = supplied("ddo", fakes__per_class=2).source.pool
    stamp = Path(POOL_FILE).stat().st_mtime_ns
    assert torch.equal(supplied("ddo", fakes__per_class=2).source.pool.tokens_KNL, first.tokens_KNL)
    assert Path(POOL_FILE).stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match="were drawn from another reference"):
        supplied("ddo", generator=with_visible_tokens(tiny_llamagen(seed=1, with_tokenizer=False)), fakes__per_class=2)


def test_adapters_off_are_a_reference_and_with_a_pool_fakes_too() -> None:
    generator = make_generator("cca")
    add_adapters(generator, rank=2, alpha=4, seed=1)
    changes = {"reference__kind": "adapter_off", "trainer__lora_rank": 2, "fakes__per_class": 2}
    made = supplied("ddo", generator=generator, **changes)
    assert isinstance(made.reference, AdapterOffReference)
    assert made.source.pool is not None


def test_pairs_are_drawn_where_no_file_is_given() -> None:
    """By the generator itself under the reward; a second run in the folder finds them."""
    generator = with_visible_tokens(tiny_llamagen())
    real_codes(generator).save(Path("codes.safetensors"))
    changes = {
        "trainer__max_steps": 2,
        "pairs__num_prompts": 4,
        "pairs__num_generations": 4,
        "pairs__margin": 0.0,
        "pairs__batch_size": 8,
    }
    made = make_supplies(configured("dpo", **changes), generator, Path())
    assert isinstance(made.stream, PairStream)
    item = made.stream[0]
    chosen, rejected = (generator.decode(item[name][None]).float().mean() for name in ("chosen", "rejected"))
    assert chosen > rejected
    assert Path(PAIRS_FILE).with_suffix(".json").exists()
    stamp = Path(PAIRS_FILE).stat().st_mtime_ns
    make_supplies(configured("dpo", **changes), generator, Path())
    assert Path(PAIRS_FILE).stat().st_mtime_ns == stamp


def test_a_control_is_plain() -> None:
    config = configured("grpo", kl__coefficient=0.1, kl__where="reward", entropy__coefficient=0.01)
    control = study._arm(config, configured("sft").objective, seed=3)
    check_recipe(control)
    assert (control.kl.coefficient, control.entropy.coefficient, control.seed) == (0.0, 0.0, 3)
    assert study._arm(config, config.objective).kl.coefficient == 0.1
