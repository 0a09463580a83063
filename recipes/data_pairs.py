"""align data pairs: draw num_generations images of each of num_prompts conditions, score them, and keep the best and the
worst of each condition as a preference pair, if their rewards differ enough. output_dir/pairs.safetensors holds the
pairs as tokens, output_dir/run.json says how they were made.
For example: align data pairs num_prompts=2000 margin=1.0 winners=runs/pairs/winners.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from align.data import Codes, PreferencePairs
from align.data.pairs import PickedPairs, best_and_worst, total_rewards
from align.data.prompts import raw_condition
from align.files import sha256_of_tensors
from align.generators import Generator
from align.progress import progress_bar
from align.sampling import generate
from recipes.conditions import make_rows
from recipes.config import compose
from recipes.parts import make_generator, make_sampling, tokenizer_hash
from recipes.reward_settings import make_rewards
from recipes.run import Run, say
from rewards.combine import RewardSet
from rewards.failures import FailureWindow
from rewards.scoring import RewardScores, score_rewards, whole_groups

PAIRS_FILE = "pairs.safetensors"


def main(overrides: list[str]) -> None:
    config = compose("data_pairs", overrides)
    path, winners = Path(config.output_dir) / PAIRS_FILE, Path(config.winners) if config.winners else None
    for output in filter(None, (path, winners)):
        if output.exists() and not config.overwrite:
            raise ValueError(f"{output} exists already; add overwrite=true to replace it, or write elsewhere")
    if config.num_prompts < 1:
        raise ValueError(f"num_prompts is {config.num_prompts}; it must be at least 1")
    rewards = make_rewards(config.reward)
    if not rewards.names(trained=True):
        raise ValueError(
            "preference pairs need a reward of a weight other than 0; choose reward=classifier, or name yours: reward.rewards"
        )
    generator = make_generator(config.generator)
    rows = make_rows(config.prompts, generator, number=config.num_prompts, class_names=config.reward.class_names)
    tokenizer = tokenizer_hash(generator)
    if tokenizer is None:
        raise ValueError(
            "rewards look at images, and this generator has no tokenizer to make them with; set generator.tokenizer_checkpoint"
        )
    run = Run(config, kind="data pairs", overrides=overrides, append=True)
    path.unlink(missing_ok=True)  # from here on run.json speaks of the new pairs
    with run.watching():
        pairs, facts = draw_pairs(generator, rewards, rows, config)
        pairs.save(path)
        if winners is not None:
            Codes(pairs.chosen_NL, pairs.labels_N, tokenizer).save(winners)
    run.update(status="finished", hashes={"policy": pairs.policy, "tokenizer": tokenizer}, **facts)
    mean, counts = facts["mean_reward"], facts["counts"]
    say(f"{counts['kept']} pairs kept, {counts['dropped']} dropped (margin {config.margin:g}): {path}")
    say(f"mean reward: chosen {mean['chosen']:.3g}, rejected {mean['rejected']:.3g}, all images {mean['all']:.3g}")


def draw_pairs(
    generator: Generator, rewards: RewardSet, rows: Sequence[Mapping[str, Any]], config: DictConfig
) -> tuple[PreferencePairs, dict[str, Any]]:
    """Sample, decode, score and pick; the pairs, and what run.json says of them.

    Args:
        rows: what images are drawn for, as `recipes.conditions.make_rows` gives them.
        config: num_generations, margin, batch_size, sampling and reward, as in data_pairs.yaml.

    Raises:
        ValueError: no pair was kept, a setting is out of range, a reward failed too often or looks at whole batches, or
            the generator has no tokenizer.
    """
    rewards.refuse_distributions("preference pairs are picked by the images themselves")
    tokenizer = tokenizer_hash(generator)
    if tokenizer is None:
        raise ValueError(
            "rewards look at images, and this generator has no tokenizer to make them with; set generator.tokenizer_checkpoint"
        )
    size = config.num_generations
    # an empty selection checks the settings, before minutes of sampling
    best_and_worst(torch.empty(0, 1), torch.empty(0), torch.empty(0), num_generations=size, margin=config.margin)
    rows = [row for row in rows for _ in range(size)]
    labels = [raw_condition(row) for row in rows]
    tokens, found = [], []
    failures = FailureWindow(limit=config.reward.max_failed, steps=config.reward.failure_window)
    batch_size = whole_groups(rewards.rewards, config.batch_size, size)
    bar = progress_bar(total=len(labels), description="rollouts", unit="img")
    for rollout in generate(generator, labels, make_sampling(config.sampling), batch_size=batch_size):
        own = [rows[index] for index in rollout.index_B.tolist()]
        images = generator.decode(rollout.tokens_BL)
        scores = score_rewards(rewards.rewards, images, own, timeout=config.reward.timeout, group_size=size)
        failures.add([scores.report()])
        tokens.append(rollout.tokens_BL.cpu())
        found.append(scores)
        bar.update(len(own))
    bar.close()
    scores = RewardScores.cat(found)
    combined = rewards.combine(scores.values_NR, scores.valid_NR, gated=0.0)
    total_N = total_rewards(combined.columns_NK, combined.weights, num_generations=size)
    labels_N = labels if generator.num_classes is None else torch.tensor(labels)
    picked = best_and_worst(torch.cat(tokens), total_N, labels_N, num_generations=size, margin=config.margin)
    if picked.kept == 0:
        raise ValueError(_why_none(picked, total_N, config.margin))
    facts = {
        "counts": {"images": len(labels), "kept": picked.kept, "dropped": picked.dropped},
        "mean_reward": {
            "chosen": picked.chosen_reward_P.mean().item(),
            "rejected": picked.rejected_reward_P.mean().item(),
            "all": total_N.nanmean().item(),
        },
        "rewards": {
            reward.name: {**_summary(scores, index), "weight": reward.weight, "seconds": scores.seconds[index]}
            for index, reward in enumerate(rewards.rewards)
        },
    }
    pairs = PreferencePairs(
        chosen_NL=picked.chosen_PL,
        rejected_NL=picked.rejected_PL,
        labels_N=picked.labels_P,
        chosen_reward_N=picked.chosen_reward_P,
        rejected_reward_N=picked.rejected_reward_P,
        tokenizer=tokenizer,
        policy=sha256_of_tensors(generator.state_dict()),
    )
    return pairs, facts


def _summary(scores: RewardScores, index: int) -> dict[str, float | int | None]:
    values_N, failed = scores.values_NR[:, index], int((~scores.valid_NR[:, index]).sum())
    applicable = values_N[~values_N.isnan()]
    return {
        "mean": applicable.mean().item() if len(applicable) else None,
        "std": applicable.std().item() if len(applicable) > 1 else None,
        "not_applicable": len(values_N) - len(applicable) - failed,
        "failed": failed,
    }


def _why_none(picked: PickedPairs, total_N: Tensor, margin: float) -> str:
    known = total_N[~total_N.isnan()]
    spread = picked.spread_M[~picked.spread_M.isnan()]
    if not len(spread):
        return f"no pair was kept: of {len(total_N)} images the rewards apply to {len(known)}, never to two of one condition; choose another reward"
    return (
        f"no pair was kept: within a condition the best and the worst reward differ by {spread.max():.3g} at most, and margin is {margin:g} "
        f"(all {len(known)} rewards: mean {known.mean():.3g}, from {known.min():.3g} to {known.max():.3g}). "
        "Lower the margin, or draw more varied images: num_generations, sampling.temperature"
    )
