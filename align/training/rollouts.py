"""Collect → score → advantage: the half of policy gradient that comes before the update."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from align.data.prompts import raw_condition
from align.generators.base import evaluating
from align.objectives import Advantages, group_advantages
from align.sampling import sample
from align.training.credit import TokenCredit
from align.training.inputs import Needs, Scoring, conditions, model_inputs
from align.training.sources import RealData, Step, chunks
from align.types import Average, SamplingConfig
from rewards.base import Reward, score_rewards


@dataclass(frozen=True)
class RolloutSettings:
    """How rollouts are collected.

    sampling: the distribution that they are drawn from.
    scoring: the one that they are trained under: the same, or knowingly another with `importance_cap`.
    num_iterations: updates made on each batch of rollouts.
    batch_size: images sampled and decoded at once.
    advantages: the keywords of `align.objectives.group_advantages`.
    importance_cap: where scoring is another distribution, each token's weight is min(p_scoring / p_sampling, cap),
        a truncated importance weight (Ionides 2008); None refuses the mismatch.
    kl_in_reward: nats of k1 estimate of KL to the reference are charged at this rate to the reward; 0 is off.
    timeout: seconds that a reward may take for one batch.
    """

    num_generations: int
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    scoring: Scoring = field(default_factory=Scoring)
    num_iterations: int = 1
    batch_size: int = 64
    advantages: Mapping[str, Any] = field(default_factory=dict)
    importance_cap: float | None = None
    kl_in_reward: float = 0.0
    probe_every: int = 10
    timeout: float | None = 600.0

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


class Rollouts(RealData):
    """Own samples with advantages; kept for `num_iterations` updates, and through a checkpoint in between."""

    supplies = "rollouts"

    def __init__(self, settings: RolloutSettings, rewards: Sequence[Reward], credit: TokenCredit | None = None) -> None:
        if not rewards:
            raise ValueError("policy gradient needs a reward; choose reward=classifier, or name yours: reward.rewards")
        self.settings = settings
        self.rewards = list(rewards)
        self.scoring = settings.scoring
        self.credit = credit
        self.buffer: list[dict[str, Tensor]] = []

    def prepare(self, batches: list[dict[str, Any]], step: Step) -> list[dict[str, Any]]:
        if step.index % self.settings.num_iterations == 0 or not self.buffer:
            self.buffer = self._collect(batches, step)
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
        tokens_NL, behaviour_NL, values_NR = self._sample_and_score(rows, position_N, step, self.settings.sampling)
        seconds = time.monotonic() - clock

        fields = {"rollout": tokens_NL, "behaviour": behaviour_NL, "position": position_N}
        found = [
            dict(zip(fields, parts, strict=True))
            for parts in zip(*(f.split(sizes) for f in fields.values()), strict=True)
        ]
        for extra, batch in zip(found, batches, strict=True):
            extra |= self._scores({**batch, **extra}, step)
        advantages, own_N = self._advantages(values_NR, found, position_N, step)
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
        self._log(step, advantages, values_NR, tokens_NL, seconds)
        self._probe(rows, position_N, step)
        return buffer

    def _sample_and_score(
        self, rows: list[dict[str, Any]], position_N: Tensor, step: Step, sampling: SamplingConfig
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens [N, L], behaviour log-probs [N, L] and rewards [N, R] (NaN: not applicable)."""
        tokens, behaviour, values = [], [], []
        for part in chunks(len(rows), self.settings.batch_size):
            condition = step.policy.encode_condition([raw_condition(row) for row in rows[part]])
            rollout = sample(step.policy, condition, sampling, index_B=position_N[part])
            images = step.policy.decode(rollout.tokens_BL).cpu()
            scores = score_rewards(self.rewards, images, rows[part], timeout=self.settings.timeout)
            tokens.append(rollout.tokens_BL)
            behaviour.append(rollout.logprobs_BL)
            values.append(scores.values_NR)
        return torch.cat(tokens), torch.cat(behaviour), torch.cat(values).to(position_N.device)

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
        self, values_NR: Tensor, found: list[dict[str, Tensor]], position_N: Tensor, step: Step
    ) -> tuple[Advantages, Tensor]:
        """Advantages of all ranks' rollouts, and where this rank's own are among them. Rewards of weight 0 only watch."""
        trained = [index for index, reward in enumerate(self.rewards) if reward.weight != 0]
        columns, weights = values_NR[:, trained], [self.rewards[index].weight for index in trained]
        if self.settings.kl_in_reward:
            # one more reward: minus the k1 estimate of KL to the reference, in nats
            kl_N = torch.cat([extra["log_ratio"].sum(dim=-1) for extra in found])
            step.log({"kl_charged": Average.of(kl_N)})
            # a row without a reward must not enter its group by the charge alone
            kl_N = kl_N.masked_fill(columns.isnan().all(dim=1), torch.nan)
            columns, weights = torch.cat([columns, -kl_N[:, None]], dim=1), [*weights, self.settings.kl_in_reward]
        all_NR, own_N = step.gather(columns, position_N)
        advantages = group_advantages(
            all_NR.cpu(),
            num_generations=self.settings.num_generations,
            reward_weights=weights,
            **self.settings.advantages,
        )
        return advantages, own_N

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

    def _log(self, step: Step, advantages: Advantages, values_NR: Tensor, tokens_NL: Tensor, seconds: float) -> None:
        metrics = {
            f"reward/{reward.name}": Average.of(values_NR[:, index].nan_to_num(), ~values_NR[:, index].isnan())
            for index, reward in enumerate(self.rewards)
        }
        unique = torch.unique(tokens_NL, dim=0)
        duplicates = torch.tensor(float(len(tokens_NL) - len(unique)))
        metrics |= {
            **advantages.metrics,
            "not_applicable": Average.of(values_NR.isnan()),
            "duplicates": Average(duplicates, torch.tensor(float(len(tokens_NL)))),
            "seconds_collecting": Average.of(torch.tensor(seconds)),
        }
        step.log(metrics)

    def _probe(self, rows: list[dict[str, Any]], position_N: Tensor, step: Step) -> None:
        """Guided training moves the guidance-free model too: its reward, on the same prompts, every so many steps."""
        guided = self.settings.sampling.guidance_scale != 1.0
        if not guided or step.index % self.settings.probe_every:
            return
        plain = SamplingConfig(seed=self.settings.sampling.seed, temperature=self.settings.sampling.temperature)
        with evaluating(step.policy):
            _, _, values_NR = self._sample_and_score(rows, position_N, step, plain)
        step.log(
            {
                f"reward_unguided/{reward.name}": Average.of(
                    values_NR[:, index].nan_to_num(), ~values_NR[:, index].isnan()
                )
                for index, reward in enumerate(self.rewards)
            }
        )

    # --- checkpoints

    def state_dict(self) -> dict[str, Tensor]:
        # copies: micro-batches share tensors, which safetensors refuses
        return {
            f"{index}.{name}": tensor.clone() for index, part in enumerate(self.buffer) for name, tensor in part.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.buffer = [{} for _ in range(1 + max((int(name.split(".")[0]) for name in state), default=-1))]
        for name, tensor in state.items():
            index, key = name.split(".", 1)
            self.buffer[int(index)][key] = tensor
