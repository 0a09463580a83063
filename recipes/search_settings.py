"""From the `search:` section of a configuration to how images are drawn: once each, or by a search among candidates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from align.data.pairs import total_rewards
from align.data.prompts import as_row, raw_condition
from align.generators import Generator
from align.sampling import SearchPlan, Selection, generate, guided_search
from align.types import Rollout, SamplingConfig
from evaluation.geneval.protocol import GenEvalProtocol
from evaluation.prompted import PromptProtocol
from evaluation.protocol import Protocol
from recipes.judge import Draw
from recipes.parts import tokenizer_hash
from recipes.reward_settings import make_rewards, optimised, reward_facts, reward_fingerprint
from rewards.base import Reward
from rewards.builtin.geneval import GenEvalReward
from rewards.combine import RewardSet
from rewards.scoring import score_rewards

MODES = ("none", "best_of_n", "tts")
Row = Mapping[str, Any]


def make_draw(config: DictConfig, generator: Generator, rows: Sequence[Row] = ()) -> tuple[Draw, str]:
    """What draws images, with the signature of `align.sampling.generate`; and in words what it spends beyond drawing each
    once, which tells arms apart: `best of 4 by geneval`, or nothing.

    Args:
        config: a section as in conf/search/.
        rows: dataset rows of the images, for rewards that look at more than a prompt or a class.

    Raises:
        ValueError: an unknown mode, a plan that does not fit the generator, one without a tokenizer, or rewards that
            cannot select.
    """
    if config.mode not in MODES:
        raise ValueError(f"unknown search.mode {config.mode!r}; known: {', '.join(MODES)}")
    if config.mode == "none":
        return generate, ""
    plan = _plan(config)
    plan.check(generator.layout)
    if tokenizer_hash(generator) is None:
        raise ValueError(
            "a search looks at images, and this generator has no tokenizer to make them with; set generator.tokenizer_checkpoint, or search=none"
        )
    known = _by_condition(rows)
    score, drawn = Selector(make_rewards(config.reward), config.reward.timeout, known), 0

    def draw(
        generator: Generator, raw_conditions: Sequence[Any], config: SamplingConfig, *, batch_size: int, first: int = 0
    ) -> Iterator[Rollout]:
        nonlocal drawn
        if first == 0:
            score.asked = score.answered = drawn = 0
        yield from guided_search(
            generator, raw_conditions, config, plan=plan, score=score, batch_size=batch_size, first=first
        )
        drawn += len(raw_conditions)
        if drawn >= len(rows):  # this process has seen them all
            score.refuse_if_idle()

    return draw, f"{_words(plan)} by {score.words}"


def _by_condition(rows: Sequence[Row]) -> dict[Any, Row]:
    """Raises ValueError for a condition whose rows differ: candidates come with their condition alone."""
    known: dict[Any, Row] = {}
    for row in rows:
        if known.setdefault(condition := raw_condition(row), row) != row:
            raise ValueError(
                f"{condition!r:.80} has several rows with other columns, and a search cannot tell which one an image is for; "
                "leave one of them, or set search=none"
            )
    return known


def same_judges(config: DictConfig, protocol: Protocol | PromptProtocol, *, held_out: bool = False) -> list[str]:
    """Names of the rewards that a search selects by and that `protocol` reports too: the same network or detector.

    held_out: of the protocol's held-out judge instead, whose figure should tell of a gain that nothing was selected for.
    """
    if config.mode == "none":
        return []
    if isinstance(protocol, Protocol):
        every = make_rewards(config.reward).rewards
        return [one.name for one in every if protocol.contaminated({reward_fingerprint(one.function) or ""})]
    reported = _held_out(protocol) if held_out else _reported(protocol)
    return [reward.name for reward in make_rewards(config.reward).rewards if _judge(reward) in reported]


def selecting(config: DictConfig) -> frozenset[str]:
    """Fingerprints of the rewards that a search selects by: metrics of the same features see what was selected."""
    return frozenset() if config.mode == "none" else optimised(reward_facts(make_rewards(config.reward)))


@dataclass
class Selector:
    """Scores candidates by rewards, gates and ensembles; an `align.sampling.search.Score`.

    A reward that applies to no image of a condition is left out there. An image that lacks one which applies to others of
    its condition is NaN, for its sum would have other terms than theirs. A closed gate makes its reward 0.

    rows: of the conditions that have more than themselves to tell.
    asked, answered: images seen so far, and those of them that a reward applied to.
    """

    rewards: RewardSet
    timeout: float | None
    rows: Mapping[Any, Row]
    asked: int = field(default=0, init=False)
    answered: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.rewards.refuse_distributions("a search has none")
        for reward in self.rewards.rewards:
            if reward.kind != "image":
                raise ValueError(
                    f"reward {reward.name!r} compares the images of one prompt; a search selects by rewards that score single images"
                )
        if unread := self.rewards.names(trained=False):
            raise ValueError(f"reward {unread[0]!r} has no weight, so that a search does not look at it; leave it out")
        if not self.rewards.rewards:
            raise ValueError(
                "a search selects by rewards, and there are none; name one: 'search.reward.rewards=[{name: NAME}]'"
            )

    def __call__(self, images: Tensor, raw_conditions: Sequence[Any]) -> Tensor:
        """float32 [N] for uint8 images [N, H, W, 3].

        Raises:
            RewardError: a reward failed.
        """
        rows = [self.rows.get(raw) or as_row(raw) for raw in raw_conditions]
        scores = score_rewards(self.rewards.rewards, images, rows, timeout=self.timeout).checked()
        combined = self.rewards.combine(scores.values_NR, scores.valid_NR, gated=0.0)
        totals, start = [], 0
        for _, alike in groupby(raw_conditions):
            end = start + len(list(alike))
            columns_GK = combined.columns_NK[start:end]
            totals.append(total_rewards(columns_GK, combined.weights, num_generations=end - start))
            start = end
        total_N = torch.cat(totals)
        self.asked += len(images)
        self.answered += int((~total_N.isnan()).sum())
        return total_N

    def refuse_if_idle(self) -> None:
        """Raises ValueError if nothing of all that was seen could be selected by."""
        if self.asked and not self.answered:
            raise ValueError(
                f"nothing was selected: {self.words} applies to none of {self.asked} images. Does it need more of a row than the prompt or "
                "the class? A prompt file (.jsonl) brings more columns"
            )

    @property
    def words(self) -> str:
        """`geneval`, or `geneval + 0.5 clip-score`."""
        weights = {part.name: part.weight for part in self.rewards.rewards if part.weight}
        weights |= {part.name: part.weight for part in self.rewards.ensembles if part.weight}
        return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items())


def _plan(config: DictConfig) -> SearchPlan:
    if config.mode == "best_of_n":
        return SearchPlan(config.n)
    steps: list[Any] = OmegaConf.to_container(config.steps)  # type: ignore[assignment]
    for step in steps:
        if not isinstance(step, dict) or step.keys() != {"after", "keep", "by"}:
            raise ValueError(f"search.steps holds {step!r}; each is {{after: BLOCKS, keep: CANDIDATES, by: diversity}}")
    return SearchPlan(config.n, tuple(Selection(**step) for step in steps), config.potential, config.lambda_)


def _words(plan: SearchPlan) -> str:
    if not plan.selections:
        return f"best of {plan.candidates}"
    how = {"diversity": "diverse", "potential": f"by {plan.potential} x{plan.lambda_:g}"}
    steps = [f"{step.keep} {how[step.by]} after {step.after}" for step in plan.selections]
    return f"guided search of {plan.candidates}, {', '.join(steps)},"


def _judge(reward: Reward) -> Any:
    """What a reward judges by: the fingerprint of a classifier, the name of a detector, or itself."""
    function: Any = reward.function
    if isinstance(function, GenEvalReward):
        return function.detector.name
    return reward_fingerprint(function) or function


def _reported(protocol: PromptProtocol) -> list[Any]:
    """What a protocol's figures come of, in the same terms; a held-out judge is not among them."""
    if isinstance(protocol, GenEvalProtocol):
        return [protocol.detector.name]
    rewards = getattr(protocol, "rewards", RewardSet(()))
    return [_judge(reward) for reward in rewards.rewards]


def _held_out(protocol: Protocol | PromptProtocol) -> list[Any]:
    pair = protocol.held_out if isinstance(protocol, GenEvalProtocol) else None
    return [pair[0].name] if pair else []
