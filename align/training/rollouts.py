"""Collect → score → advantage: the half of policy gradient that comes before the update."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from align.data.prompts import raw_condition
from align.generators.base import evaluating
from align.objectives import Advantages, group_advantages
from align.sampling import sample
from align.sampling.micro_batches import MicroBatches
from align.training.credit import TokenCredit
from align.training.inputs import Needs, Scoring, conditions, model_inputs
from align.training.sampling_copy import SamplingCopy
from align.training.sources import RealData, Step
from align.types import Average, Rollout, SamplingConfig
from rewards.background import BackgroundScorer
from rewards.base import DistributionReward, Reward, RewardError
from rewards.combine import RewardSet
from rewards.failures import FailureWindow
from rewards.scoring import RewardScores, as_column, whole_groups

Result = TypeVar("Result")
REWARD_STATE = "reward/"  # keys of a checkpoint: reward/NAME/KEY


@dataclass(frozen=True)
class RolloutSettings:
    """How rollouts are collected.

    sampling: the distribution that they are drawn from.
    scoring: the one that they are trained under: the same, or knowingly another with `importance_cap`.
    num_iterations: updates made on each batch of rollouts.
    batch_size: images sampled and decoded at once, and fewer where memory runs out.
    bf16: drawn from the weights in bfloat16, at half the memory traffic.
    advantages: the keywords of `align.objectives.group_advantages`.
    importance_cap: where scoring is another distribution, each token's weight is min(p_scoring / p_sampling, cap),
        a truncated importance weight (Ionides 2008); None refuses the mismatch.
    kl_in_reward: nats of k1 estimate of KL to the reference are charged at this rate to the reward; 0 is off.
    timeout: seconds that a reward may take for one batch.
    max_failed, failure_window: a run stops when more than this share of a reward's scores failed over so many steps.
    """

    num_generations: int
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    scoring: Scoring = field(default_factory=Scoring)
    num_iterations: int = 1
    batch_size: int = 64
    bf16: bool = False
    advantages: Mapping[str, Any] = field(default_factory=dict)
    importance_cap: float | None = None
    kl_in_reward: float = 0.0
    probe_every: int = 10
    timeout: float | None = 300.0
    max_failed: float = 0.05
    failure_window: int = 20

    @property
    def on_policy(self) -> bool:
        """Whether rollouts are trained under the distribution they were drawn from."""
        drawn, trained = self.sampling, self.scoring.config
        return all(
            getattr(drawn, name) == getattr(trained, name)
            for name in ("guidance_scale", "guided_blocks", "guidance_schedule", "temperature", "top_k", "top_p")
        )

    def __post_init__(self) -> None:
        for name in ("num_generations", "num_iterations", "batch_size", "probe_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"rollout.{name} is {getattr(self, name)}; it must be at least 1")
        if self.sampling.temperature == 0:
            raise ValueError(
                "rollouts at temperature 0 are all the same: there is nothing to learn from; set it above 0"
            )
        if not self.on_policy and self.importance_cap is None:
            raise ValueError(
                f"rollouts are drawn from {self.sampling} but trained under {self.scoring.config}. Set rollout.scoring=same, "
                "or rollout.importance_cap (2.0, say) to train off-policy with truncated importance weights"
            )
        if self.kl_in_reward and self.advantages.get("multi_objective_aggregation") == "normalize_then_sum":
            raise ValueError(
                "normalize_then_sum would standardise the KL charge like a reward, and its coefficient would mean nothing; "
                "use kl.where=loss, or multi_objective_aggregation=sum_then_normalize"
            )
        if self.importance_cap is not None and self.importance_cap <= 0:
            raise ValueError(f"rollout.importance_cap is {self.importance_cap}; it must be above 0")
        self.new_window()  # refuses what is out of range

    def new_window(self) -> FailureWindow:
        return FailureWindow(limit=self.max_failed, steps=self.failure_window)


class Rollouts(RealData):
    """Own samples with advantages; kept for `num_iterations` updates, and through a checkpoint in between.

    Scores that failed are no rewards: their rows are left out, and rows that have no peer left in their group with them.

    Raises:
        ValueError: no reward.
    """

    supplies = "rollouts"

    def __init__(
        self, settings: RolloutSettings, rewards: RewardSet | Sequence[Reward], credit: TokenCredit | None = None
    ) -> None:
        self.rewards = rewards if isinstance(rewards, RewardSet) else RewardSet(tuple(rewards))
        if not self.rewards.rewards:
            raise ValueError("policy gradient needs a reward; choose reward=classifier, or name yours: reward.rewards")
        self.settings = settings
        self.scoring = settings.scoring
        self.credit = credit
        self.failures = settings.new_window()
        self.copy = SamplingCopy()
        multiple = whole_groups(self.rewards.rewards, 1, settings.num_generations)
        self.micro_batches = MicroBatches(settings.batch_size, multiple=multiple, what="rollouts")
        self.buffer: list[dict[str, Tensor]] = []
        for _, function in self._moving():
            function.load_state_dict({})  # rewards are shared by the runs of a process; each run starts anew

    def prepare(self, batches: list[dict[str, Any]], step: Step) -> list[dict[str, Any]]:
        if step.index % self.settings.num_iterations == 0 or not self.buffer:
            with step.whole(step.policy) as policy:
                self.buffer = self._collect(batches, replace(step, policy=policy))
        for batch, kept in zip(batches, self.buffer, strict=True):
            if not torch.equal(batch["position"].cpu(), kept["position"].cpu()):
                raise ValueError("the rollouts in memory belong to other prompts; start the run anew, without resume")
        device = step.policy.device
        return [
            {**batch, **{name: tensor.to(device) for name, tensor in kept.items()}}
            for batch, kept in zip(batches, self.buffer, strict=True)
        ]

    # --- collect

    def _collect(self, batches: list[dict[str, Any]], step: Step) -> list[dict[str, Tensor]]:
        rows = [row for batch in batches for row in batch["row"]]
        position_N = torch.cat([batch["position"] for batch in batches])
        sizes = [len(batch["position"]) for batch in batches]
        clock = time.monotonic()
        tokens_NL, behaviour_NL, scores, seconds = _together(
            step, lambda: self._sample_and_score(rows, position_N, step, self.settings.sampling, self.rewards.rewards)
        )
        seconds["seconds_collecting"] = time.monotonic() - clock
        self.failures.add(step.share(scores.report()))

        fields = {"rollout": tokens_NL, "behaviour": behaviour_NL, "position": position_N}
        found = [
            dict(zip(fields, parts, strict=True))
            for parts in zip(*(f.split(sizes) for f in fields.values()), strict=True)
        ]
        with step.phase("score"):
            for extra, batch in zip(found, batches, strict=True):
                extra |= self._scores({**batch, **extra}, step)
        advantages, own_N = self._advantages(scores, found, position_N, step)
        advantages_N = advantages.advantages_N.to(tokens_NL.device)[own_N]
        kept_N = advantages.kept_N.to(tokens_NL.device)[own_N]
        num_kept = torch.tensor(float(advantages.kept_N.sum()), device=tokens_NL.device)
        buffer = []
        for batch, extra, advantages_B, kept_B in zip(
            batches, found, advantages_N.split(sizes), kept_N.split(sizes), strict=True
        ):
            weights_BL = self._weights({**batch, **extra}, step)
            kept = {"advantages": advantages_B[:, None] * weights_BL, "kept": kept_B, "num_kept": num_kept}
            buffer.append({**{name: extra[name] for name in (*fields, "old") if name in extra}, **kept})
        self._log(step, advantages, tokens_NL, seconds)
        self._probe(rows, position_N, step)
        return buffer

    def _sample_and_score(
        self,
        rows: list[dict[str, Any]],
        position_N: Tensor,
        step: Step,
        sampling: SamplingConfig,
        rewards: Sequence[Reward],
    ) -> tuple[Tensor, Tensor, RewardScores, dict[str, float]]:
        """Tokens [N, L], behaviour log-probs [N, L], what the rewards say, and the seconds that scoring took."""
        group = self.settings.num_generations
        tokens, behaviour = [], []
        sampled_from = self.copy.of(step.policy) if self.settings.bf16 else step.policy

        def draw(part: slice) -> tuple[Rollout, Tensor]:
            condition = step.policy.encode_condition([raw_condition(row) for row in rows[part]])
            rollout = sample(sampled_from, condition, sampling, index_B=position_N[part])
            return rollout, step.policy.decode(rollout.tokens_BL)

        with BackgroundScorer(rewards, timeout=self.settings.timeout, group_size=group) as scorer:
            for part, (rollout, images) in self.micro_batches(len(rows), draw):
                scorer.submit(images, rows[part])
                tokens.append(rollout.tokens_BL)
                behaviour.append(rollout.logprobs_BL)
            scores = scorer.collect()
        seconds = {"seconds_scoring_hidden": scorer.hidden, "seconds_scoring_exposed": scorer.exposed}
        return torch.cat(tokens), torch.cat(behaviour), scores, seconds

    def _scores(self, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:
        """Log-probs under the distribution trained under, by the forward that the update will make.

        With one update on the very distribution sampled from nothing is recomputed: the ratio is exactly 1.
        """
        names = [] if self.settings.num_iterations == 1 and self.settings.on_policy else ["policy_rollout_BL"]
        if self.settings.kl_in_reward:
            names = ["policy_rollout_BL", "policy_unfiltered_BL", "reference_unfiltered_BL"]
        wanted = Needs(tuple(names))
        given, _ = conditions(step.policy, batch)
        model, reference = step.policy, step.reference
        if self.settings.kl_in_reward and reference is None:
            raise ValueError("kl.where=reward needs a reference; set reference.kind=frozen")
        # the reference, too, in the precision of the update: a gap is not to be one of rounding
        with torch.no_grad(), step.accelerator.autocast():
            null_source = reference.generator if reference is not None else None
            found = model_inputs(model, model, batch, given, wanted.of_model("policy"), self.scoring, null_source)
            if reference is not None and wanted.of_model("reference"):
                found |= reference.inputs(batch, given, wanted.of_model("reference"), self.scoring)
        result = {"old": found["policy_rollout_BL"]} if found else {}
        if self.settings.kl_in_reward:
            result["log_ratio"] = found["policy_unfiltered_BL"] - found["reference_unfiltered_BL"]
        return result

    # --- advantages

    def _advantages(
        self, scores: RewardScores, found: list[dict[str, Tensor]], position_N: Tensor, step: Step
    ) -> tuple[Advantages, Tensor]:
        """Advantages of all ranks' rollouts, and where this rank's own are among them."""
        device = position_N.device
        values_NR, own_N = step.gather(scores.values_NR.to(device), position_N)
        valid_NR = step.gather(scores.valid_NR.to(device), position_N)[0].cpu()
        values_NR = self._with_distribution_rewards(values_NR.cpu(), scores, position_N, step)
        self._log_rewards(step, values_NR, valid_NR)
        combined = self.rewards.combine(values_NR, valid_NR)
        columns_NK, weights = combined.columns_NK, combined.weights
        if self.settings.kl_in_reward:
            # one more reward: minus the k1 estimate of KL to the reference, in nats
            kl_N = torch.cat([extra["log_ratio"].sum(dim=-1) for extra in found])
            step.log({"kl_charged": Average.of(kl_N)})
            all_kl_N = step.gather(kl_N, position_N)[0].cpu()
            # a row without a reward must not enter its group by the charge alone
            all_kl_N = all_kl_N.masked_fill(columns_NK.isnan().all(dim=1), torch.nan)
            columns_NK = torch.cat([columns_NK, -all_kl_N[:, None]], dim=1)
            weights = [*weights, self.settings.kl_in_reward]
        advantages = group_advantages(
            columns_NK,
            num_generations=self.settings.num_generations,
            reward_weights=weights,
            **self.settings.advantages,
        )
        return advantages, own_N

    def _with_distribution_rewards(
        self, values_NR: Tensor, scores: RewardScores, position_N: Tensor, step: Step
    ) -> Tensor:
        """The columns of rewards that look at the whole step, which all ranks compute alike; their state moves."""
        for index, reward in enumerate(self.rewards.rewards):
            if not isinstance(reward.function, DistributionReward):
                continue
            features_ND = scores.features[reward.name]
            width = max(step.share(features_ND.shape[1]))  # of a rank on which all failed it is not known
            features_ND = features_ND.expand(-1, width).to(position_N.device)
            features_ND = step.gather(features_ND.contiguous(), position_N)[0].cpu()
            described_N = ~features_ND.isnan().any(dim=1)
            if described_N.any():
                column = reward.function.score(features_ND[described_N])
                values_NR[described_N, index] = as_column(column, int(described_N.sum()))
                reward.function.advance(features_ND[described_N])
        return values_NR

    def _weights(self, batch: dict[str, Any], step: Step) -> Tensor:
        """[B, L]: token credit times truncated importance weight."""
        weights_BL = torch.ones_like(batch["behaviour"])
        if not self.settings.on_policy:
            cap = self.settings.importance_cap
            weights_BL = (batch["old"] - batch["behaviour"]).exp().clamp(max=cap)
            step.log({"importance_weight": Average.of(weights_BL), "importance_capped": Average.of(weights_BL >= cap)})
        if self.credit is not None:
            weights_BL = weights_BL * self.credit(batch, step.policy)
        return weights_BL

    # --- what is logged

    def _log_rewards(self, step: Step, values_NR: Tensor, valid_NR: Tensor) -> None:
        """Each reward as it came, before gates and weights: of all ranks' rollouts."""
        for index, reward in enumerate(self.rewards.rewards):
            values_N, failed_N = values_NR[:, index], ~valid_NR[:, index]
            applies_N = ~values_N.isnan()
            step.log(
                {
                    f"reward/{reward.name}": Average.of(values_N.nan_to_num(), applies_N),
                    f"reward_std/{reward.name}": _std(values_N[applies_N]),
                    f"not_applicable/{reward.name}": Average.of(~applies_N & ~failed_N),
                    f"failed/{reward.name}": Average.of(failed_N),
                }
            )

    def _log(self, step: Step, advantages: Advantages, tokens_NL: Tensor, seconds: Mapping[str, float]) -> None:
        unique = torch.unique(tokens_NL, dim=0)
        duplicates = torch.tensor(float(len(tokens_NL) - len(unique)))
        step.log(
            {
                **advantages.metrics,
                "duplicates": Average(duplicates, torch.tensor(float(len(tokens_NL)))),
                **{name: Average.of(torch.tensor(value)) for name, value in seconds.items()},
            }
        )

    def _probe(self, rows: list[dict[str, Any]], position_N: Tensor, step: Step) -> None:
        """Guided training moves the guidance-free model too: its reward, on the same prompts, every so many steps."""
        guided = self.settings.sampling.guidance_scale != 1.0
        # a distribution's state follows the rollouts that are trained on
        rewards = [reward for reward in self.rewards.rewards if reward.kind != "distribution"]
        if not guided or step.index % self.settings.probe_every or not rewards:
            return
        plain = SamplingConfig(seed=self.settings.sampling.seed, temperature=self.settings.sampling.temperature)
        with evaluating(step.policy):
            scores = _together(step, lambda: self._sample_and_score(rows, position_N, step, plain, rewards))[2]
        step.log(
            {
                f"reward_unguided/{name}": Average.of(values_N.nan_to_num(), ~values_N.isnan())
                for name, values_N in zip(scores.names, scores.values_NR.unbind(dim=1), strict=True)
            }
        )

    # --- checkpoints

    def state_dict(self) -> dict[str, Tensor]:
        # copies: micro-batches share tensors, which safetensors refuses
        state = {
            f"{index}.{name}": tensor.clone() for index, part in enumerate(self.buffer) for name, tensor in part.items()
        }
        for name, function in self._moving():
            state |= {f"{REWARD_STATE}{name}/{key}": tensor for key, tensor in function.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.failures.clear()
        for name, function in self._moving():
            prefix = f"{REWARD_STATE}{name}/"
            function.load_state_dict(
                {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            )
        kept = {name: tensor for name, tensor in state.items() if not name.startswith(REWARD_STATE)}
        self.buffer = [{} for _ in range(1 + max((int(name.split(".")[0]) for name in kept), default=-1))]
        for name, tensor in kept.items():
            index, key = name.split(".", 1)
            self.buffer[int(index)][key] = tensor

    def _moving(self) -> list[tuple[str, DistributionReward]]:
        """Rewards that keep a state."""
        return [(r.name, r.function) for r in self.rewards.rewards if isinstance(r.function, DistributionReward)]


def _together(step: Step, work: Callable[[], Result]) -> Result:
    """The work of this process; what goes wrong on one stops all, with its message.

    Without it the others would wait for the one that is gone, until their communication times out.
    """
    problem: Exception | None = None
    try:
        result = work()
    except Exception as error:
        problem = error
    messages = step.share(None if problem is None else f"{type(problem).__name__}: {problem}")
    if problem is not None:
        raise problem
    for rank, message in enumerate(messages):
        if message is not None:
            raise RewardError(f"process {rank} stopped while it made its rollouts: {message}")
    return result


def _std(values_N: Tensor) -> Average:
    """Of a step; a mean over nothing where there are fewer than two values."""
    enough = len(values_N) > 1
    return Average(values_N.std() if enough else torch.zeros(()), torch.tensor(float(enough)))
