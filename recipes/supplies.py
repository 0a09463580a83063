"""What an objective asks for, made from the configuration: its stream, its source, its reference, the penalties."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from align.data import PairStream, PromptStream, Stream
from align.data.prompts import read_prompts
from align.files import write_text
from align.generators import Generator
from align.training.actions import Actions, ActionSettings, Perceptual
from align.training.credit import make_credit
from align.training.fakes import FakePool
from align.training.inputs import Needs, Scoring
from align.training.penalties import EntropyBonus, KLPenalty, Penalty
from align.training.reference import AdapterOffReference, CachedReference, FrozenReference, Reference
from align.training.rollouts import Rollouts, RolloutSettings
from align.training.sources import Betas, Fakes, Pairs, RealData, Source
from align.training.straight_through import StraightThrough
from align.types import SamplingConfig
from recipes.conditions import make_rows, prompt_file
from recipes.data_pairs import draw_pairs
from recipes.parts import make_objective, use_bf16, zoo_file
from recipes.reward_settings import make_rewards
from recipes.rounds import check_rounds
from recipes.run import is_first_process, num_processes, of_first_process, process_index
from recipes.training_data import make_pairs, make_stream
from rewards.combine import RewardSet
from rewards.perceptual import load_distance

PAIRS_FILE, POOL_FILE = "pairs.safetensors", "fakes.safetensors"
REFERENCE_FILE = "reference_logprobs.safetensors"
KINDS = ("frozen", "cached", "adapter_off")
DDP_TIMEOUT = 1800  # seconds, transformers' own


@dataclass(frozen=True)
class Supplies:
    """What a trainer needs beside the generator and the objective."""

    stream: Stream | PromptStream
    source: Source
    reference: Reference | None
    penalties: list[Penalty]


def needs_of(config: DictConfig) -> Needs:
    """What the objective and the penalties look at."""
    needs = Needs.of(make_objective(config.objective))
    for penalty in make_penalties(config, vocabulary=2):
        needs |= penalty.term(needs.primary).needs
    return needs


def check_recipe(config: DictConfig) -> None:
    """Everything that the configuration alone can tell about whether its parts fit, before any weights are loaded.

    Raises:
        ValueError: what is missing for the objective, or contradicts it, and which setting mends it.
    """
    if config.kl.where not in ("loss", "reward"):
        raise ValueError(f"unknown kl.where {config.kl.where!r}; known: loss, reward")
    needs = needs_of(config)
    source = Needs.of(make_objective(config.objective)).source
    _check_reference(config, needs, source)
    if _charges_kl(config) and source != "rollouts":
        raise ValueError(
            f"kl.where=reward needs rollouts with rewards, and this objective trains on {source}; use loss"
        )
    rewards = make_rewards(config.reward)
    rewarded = source == "rollouts" or (source == "pairs" and config.pairs.file is None)
    if rewarded and not rewards.names(trained=True):
        raise ValueError(
            f"this objective trains on {source}, which need a reward of a weight other than 0; choose reward=classifier, or name yours: reward.rewards"
        )
    if config.reproduce_bugs.label_drop_in_update and source != "actions":
        raise ValueError(
            f"reproduce_bugs.label_drop_in_update is VA-pi's, and this objective trains on {source}; set it to 0 (trainer.label_drop drops labels properly)"
        )
    if source == "rollouts":
        _check_rollouts(config, rewards)
    if config.data.get("prompts") is not None:
        read_prompts(prompt_file(config.data.prompts))
    check_rounds(config)


def _charges_kl(config: DictConfig) -> bool:
    return config.kl.where == "reward" and bool(config.kl.coefficient)


def _guides_by_reference(config: DictConfig, source: str) -> bool:
    return source == "rollouts" and config.rollout.null_branch == "reference"


def _check_reference(config: DictConfig, needs: Needs, source: str) -> None:
    kind, guides = config.reference.kind, _guides_by_reference(config, source)
    if kind not in KINDS:
        raise ValueError(f"unknown reference.kind {kind!r}; known: {', '.join(KINDS)}")
    if kind == "cached":
        asked = needs.reference or _charges_kl(config) or guides
        if asked and source not in ("real", "pairs"):
            raise ValueError(
                f"reference.kind=cached holds log-probs of a fixed dataset, and this objective trains on {source}; set reference.kind=frozen"
            )
        if asked and source == "real" and config.data.get("images") is not None:
            raise ValueError(
                "reference.kind=cached holds log-probs of stored tokens, and data.images are encoded as they come; encode "
                "them first (align data encode), or set reference.kind=frozen"
            )
        CachedReference.check(needs.of_reference, ("tokens", "chosen", "rejected"))
    if config.reference.cache is not None and kind != "cached":
        raise ValueError(
            f"reference.cache keeps tables of log-probs, and reference.kind={kind} has none; set reference.kind=cached"
        )
    if kind != "frozen" and config.reference.sync_steps is not None:
        raise ValueError(f"reference.kind={kind} cannot move; set reference.sync_steps=null, or kind=frozen")
    if config.reproduce_bugs.reference_dropout and (kind != "frozen" or not drops_out(config)):
        raise ValueError(
            "reproduce_bugs.reference_dropout is for a frozen reference of a policy with dropout; set reference.kind=frozen and trainer.dropout "
            "(or a VAR's generator.config.drop_path)"
        )
    if kind == "adapter_off" and guides:
        raise ValueError(
            "rollout.null_branch=reference asks a reference of its own; set reference.kind=frozen, or null_branch=detached"
        )
    if kind == "adapter_off" and not config.trainer.lora_rank:
        raise ValueError(
            "reference.kind=adapter_off is the policy without its adapters; set trainer.lora_rank (8, say)"
        )
    if kind == "adapter_off" and source == "fakes" and config.fakes.per_class is None:
        raise ValueError("fakes are drawn from a reference of its own; set reference.kind=frozen, or fakes.per_class")


def drops_out(config: DictConfig) -> bool:
    """Whether the policy leaves anything out at random in training."""
    return bool(config.trainer.dropout or config.generator.config.get("drop_path"))


def _check_rollouts(config: DictConfig, rewards: RewardSet) -> None:
    rollout_settings(config)
    if drops_out(config):
        raise ValueError(
            "policy gradient compares log-probs of sampling and of training; set trainer.dropout=0 (and a VAR's generator.config.drop_path=0)"
        )
    rows = _rows_per_step(config)
    if rows % config.rollout.num_generations:
        raise ValueError(
            f"a step of {rows} rows does not divide into groups of rollout.num_generations={config.rollout.num_generations}; set it to one of "
            + ", ".join(str(n) for n in range(2, 2 * config.rollout.num_generations) if rows % n == 0)
            + f", or trainer.global_batch_size to a multiple of {config.rollout.num_generations}"
        )
    _check_processes(config, rewards, rows // num_processes())
    sampling = config.rollout.sampling
    if config.kl.coefficient and config.kl.importance and (sampling.top_k or sampling.top_p < 1):
        raise ValueError(
            "kl.importance weighs by ratios of the distribution sampled from, which filters cut; set top_k=0 and top_p=1"
        )


def _check_processes(config: DictConfig, rewards: RewardSet, rows: int) -> None:
    """What several processes ask for beside what one does."""
    if num_processes() == 1:
        return
    for reward in rewards.rewards:
        if reward.kind == "group" and rows % config.rollout.num_generations:
            raise ValueError(
                f"reward {reward.name!r} compares the images of one prompt, and each process has {rows} rows of a step, which are no whole groups of "
                f"rollout.num_generations={config.rollout.num_generations}; raise trainer.gradient_accumulation_steps"
            )
    # the others wait for the one whose reward hangs, and must not give up before it does
    timeout, patience = config.reward.timeout, config.trainer.get("ddp_timeout", DDP_TIMEOUT)
    if timeout is None or timeout > patience / 3:
        raise ValueError(
            f"reward.timeout is {timeout} and processes wait {patience} seconds for each other; set it to {patience // 3} or less, or raise trainer.ddp_timeout"
        )


def make_supplies(config: DictConfig, generator: Generator, folder: Path) -> Supplies:
    """Files that are made on the way (pairs, a pool of fakes, a table of log-probs) stay in the run's folder."""
    needs, source = needs_of(config), Needs.of(make_objective(config.objective)).source
    stream = _stream(config, source, generator, folder)
    sampled = source == "fakes" and config.fakes.per_class is None
    wanted = needs.reference or _charges_kl(config) or _guides_by_reference(config, source) or sampled
    return Supplies(
        stream,
        _source(config, source, generator, folder),
        _reference(config, needs, generator, stream, folder) if wanted else None,
        make_penalties(config, vocabulary=generator.vocab_size),
    )


def make_penalties(config: DictConfig, *, vocabulary: int) -> list[Penalty]:
    penalties: list[Penalty] = []
    if config.kl.coefficient and config.kl.where == "loss":
        kl = config.kl
        penalties.append(KLPenalty(kl.coefficient, estimator=kl.estimator, importance=kl.importance, target=kl.target))
    if config.entropy.coefficient:
        settings: dict[str, Any] = OmegaConf.to_container(config.entropy)  # type: ignore[assignment]
        penalties.append(EntropyBonus.for_vocabulary(vocabulary, base=settings.pop("coefficient"), **settings))
    return penalties


def rollout_settings(config: DictConfig) -> RolloutSettings:
    rollout = config.rollout
    sampling = SamplingConfig(**{**rollout.sampling, "seed": config.seed})
    if rollout.scoring not in ("same", "plain"):
        raise ValueError(f"unknown rollout.scoring {rollout.scoring!r}; known: same, plain")
    trained = sampling if rollout.scoring == "same" else SamplingConfig()
    return RolloutSettings(
        num_generations=rollout.num_generations,
        sampling=sampling,
        scoring=Scoring(trained, rollout.null_branch),
        num_iterations=rollout.num_iterations,
        batch_size=rollout.batch_size,
        bf16=use_bf16(config.trainer.precision),
        advantages=OmegaConf.to_container(rollout.advantages),  # type: ignore[arg-type]
        importance_cap=rollout.importance_cap,
        kl_in_reward=config.kl.coefficient if config.kl.where == "reward" else 0.0,
        probe_every=rollout.probe_every,
        timeout=config.reward.timeout,
        max_failed=config.reward.max_failed,
        failure_window=config.reward.failure_window,
    )


def _rows_per_step(config: DictConfig) -> int:
    trainer = config.trainer
    return trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps * num_processes()


def _stream(config: DictConfig, source: str, generator: Generator, folder: Path) -> Stream | PromptStream:
    rows = _rows_per_step(config)
    length = rows * config.trainer.max_steps
    if source == "rollouts":
        return PromptStream(
            make_rows(config.data.get("prompts"), generator, number=None, class_names=config.reward.class_names),
            length=length,
            seed=config.seed,
            num_generations=config.rollout.num_generations,
            rows_per_step=rows,
            num_iterations=config.rollout.num_iterations,
            processes=num_processes(),
            micro_batch=config.trainer.per_device_train_batch_size,
        )
    if source == "pairs":
        path = Path(config.pairs.file or folder / PAIRS_FILE)
        if config.pairs.file is None and not path.exists():
            settings = {**config.pairs, "sampling": {"seed": config.seed}, "reward": config.reward}
            prompts = make_rows(
                config.data.get("prompts"),
                generator,
                number=config.pairs.num_prompts,
                class_names=config.reward.class_names,
            )
            drawn, facts = draw_pairs(generator, make_rewards(config.reward), prompts, OmegaConf.create(settings))
            drawn.save(path)
            write_text(path.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")
        pairs = make_pairs(str(path), generator)
        return PairStream(
            pairs,
            length=length,
            seed=config.seed,
            label_drop=config.trainer.label_drop,
            negative_label=config.data.negative_label,
            hard_negatives=config.data.hard_negatives or (),
        )
    return make_stream(config.data, generator, length=length, seed=config.seed, label_drop=config.trainer.label_drop)


def _source(config: DictConfig, source: str, generator: Generator, folder: Path) -> Source:
    if source == "rollouts":
        credit = None
        if config.rollout.credit is not None:
            credit = make_credit(
                config.rollout.credit,
                generator,
                num_generations=config.rollout.num_generations,
                rows=config.trainer.per_device_train_batch_size,
                **config.rollout.credit_settings,
            )
        return Rollouts(rollout_settings(config), make_rewards(config.reward), credit)
    if source == "fakes":
        fakes, pool = config.fakes, None
        if fakes.per_class is not None:
            path = folder / POOL_FILE
            if not path.exists():
                FakePool.compute(
                    generator, per_class=fakes.per_class, seed=config.seed, batch_size=fakes.batch_size
                ).save(path)
            pool = FakePool.load(path, generator)
        return Fakes(seed=config.seed, batch_size=fakes.batch_size, pool=pool)
    if source == "betas":
        return Betas(seed=config.seed)
    if source in ("actions", "pixels"):
        settings: dict[str, Any] = OmegaConf.to_container(config.actions)  # type: ignore[assignment]
        chosen = settings.pop("perceptual")
        perceptual = None
        if chosen is not None:
            weights = str(chosen["weights"])
            file = str(zoo_file(weights, "reward")) if weights.startswith("zoo:") else weights
            perceptual = Perceptual(chosen["kind"], load_distance(chosen["kind"], file))
        kind = Actions if source == "actions" else StraightThrough
        late = config.reproduce_bugs.label_drop_in_update
        return kind(ActionSettings(**settings, label_drop_in_update=late), perceptual, seed=config.seed)
    return Pairs() if source == "pairs" else RealData()


def _reference(
    config: DictConfig, needs: Needs, generator: Generator, stream: Stream | PromptStream, folder: Path
) -> Reference:
    section = config.reference
    if section.kind == "adapter_off":
        return AdapterOffReference(generator)
    if section.kind == "cached" and isinstance(stream, Stream):
        wanted, bf16 = needs.of_reference, use_bf16(config.trainer.precision)
        path = folder / REFERENCE_FILE
        if section.cache is not None:
            path = Path(section.cache) / CachedReference.file_name(generator, stream, wanted, bf16=bf16)
        if of_first_process(path.exists()):  # another run may be about to put it there
            return CachedReference.load(path, generator, stream, wanted)
        cached = CachedReference.compute(
            generator,
            stream,
            wanted,
            batch_size=config.trainer.per_device_train_batch_size,
            bf16=bf16,
            rank=process_index(),
            world=num_processes(),
        )
        if is_first_process():
            cached.save(path, stream)
        return cached
    dropout = config.reproduce_bugs.reference_dropout
    return FrozenReference(generator, sync_steps=section.sync_steps, mixup=section.mixup, dropout=dropout)
