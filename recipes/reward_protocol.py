"""Evaluation by rewards: any of them, on any prompts, also on suites whose questions a VQA judge answers.

Shapes: B batch, P prompts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from evaluation.metric_names import METRICS
from evaluation.suites import read_questions, read_suite
from recipes.reward_evaluator import RewardEvaluator
from recipes.reward_settings import make_rewards
from rewards.base import Reward
from rewards.builtin.vqa import VqaJudge
from rewards.combine import RewardSet

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RewardProtocol:
    """Means of single rewards over prompts, under the keys `<reward>_<name>_<n>`; an evaluation.prompted.PromptProtocol.

    A `vqa` judge in this process gives all scores that its answers allow under their own names besides, such as
    `soft-tifa-gm` and `soft-tifa-am`, and those of single kinds of question. Weights, gates and ensembles of the rewards
    play no part.

    Args:
        name: of lower-case letters, digits and '-', for the metric keys.
        rows: dataset rows with a `prompt`; with `tag`, means by tag are given too.
        rewards: that score single images.

    Raises:
        ValueError: another name, no rows, no rewards, two vqa judges, one without questions, or a reward that compares
            images.
    """

    name: str
    rows: Sequence[Row]
    rewards: RewardSet
    images_per_prompt: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9-]+", self.name):
            raise ValueError(f"protocol name {self.name!r} must be lower-case letters, digits and '-'")
        if not self.rows or not self.rewards.rewards or self.images_per_prompt < 1:
            raise ValueError(
                f"protocol {self.name} has {len(self.rows)} prompts, {len(self.rewards.rewards)} rewards and {self.images_per_prompt} "
                "images of each prompt; it needs one of each at least"
            )
        self.rewards.refuse_distributions("an evaluation has none")
        names = [reward.name for reward in self.rewards.rewards]
        for name in names:
            for other in {metric.name for metric in METRICS} | {*names}:
                if name.startswith(f"{other}_"):  # keys are NAME_PROTOCOL_N, and found by how they begin
                    raise ValueError(
                        f"reward {name!r} would be taken for the metric {other!r}; give it another label, such as {name.replace('_', '-')!r}"
                    )
        for reward in self.rewards.rewards:
            if reward.kind != "image":
                raise ValueError(
                    f"reward {reward.name!r} compares the images of one prompt, so that its mean says nothing of the model; "
                    "evaluate by one that scores single images"
                )
        judges = [reward.name for reward in self.rewards.rewards if isinstance(reward.function, VqaJudge)]
        if len(judges) > 1:
            raise ValueError(
                f"{' and '.join(judges)} both are judges that answer questions; evaluate by one after the other. Both means "
                "of Soft-TIFA come of one"
            )
        questions = [self._questions(index) for index in range(len(self.rows))]
        if judges and not any(questions):
            raise ValueError(
                f"reward {judges[0]!r} answers questions, and no row has any; name the suite, or give rows 'questions'"
            )

    def _questions(self, index: int) -> int:
        try:
            return len(read_questions(self.rows[index]))
        except ValueError as error:
            raise ValueError(f"row {index}: {error}") from error

    @property
    def judge(self) -> Reward | None:
        """The reward that answers questions."""
        return next((one for one in self.rewards.rewards if isinstance(one.function, VqaJudge)), None)

    @property
    def fingerprint(self) -> str:
        """Of the rows and the rewards; of the latter by name, where they do not tell what they hold."""
        rewards = [[reward.name, getattr(reward.function, "fingerprint", None)] for reward in self.rewards.rewards]
        told = json.dumps([[dict(row) for row in self.rows], rewards], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def evaluator(self) -> RewardEvaluator:
        """An empty one."""
        judge = self.judge
        return RewardEvaluator(
            name=self.name,
            rows=self.rows,
            images_per_prompt=self.images_per_prompt,
            rewards=[reward for reward in self.rewards.rewards if reward is not judge],
            judge=judge,
            fingerprint=self.fingerprint,
        )


def make_reward_protocol(
    prompts: str | Path | Sequence[str],
    rewards: Any,
    images_per_prompt: int,
    suite: str | None = None,
) -> RewardProtocol:
    """The protocol of some prompts and some rewards.

    Its name is the suite's, or `prompts-<file>`, or `prompts` for a list; with the judge's model behind it where there is a
    vqa judge, since numbers of different judges do not compare.

    Args:
        prompts: a suite's file or folder, a .txt or .jsonl of one's own, or a list of prompts.
        rewards: a `reward:` section, or the list in it; of an entry without settings the name is enough.
        suite: what `evaluation.suites.read_suite` knows; None: a list of one's own.

    Raises:
        FileNotFoundError, ValueError: prompts that cannot be read, or what `make_rewards` and `RewardProtocol` refuse.
    """
    if isinstance(prompts, str | Path):
        rows = read_suite(suite or "prompts", prompts)
        name = suite if suite not in (None, "prompts") else f"prompts-{_slug(Path(prompts).stem)}".rstrip("-")
    else:
        if suite is not None:
            raise ValueError(f"suite {suite!r} is read from a file, and a list of prompts was given")
        rows = [{"id": f"{index:05d}", "prompt": prompt} for index, prompt in enumerate(prompts)]
        name = "prompts"
    made = make_rewards(_section(rewards))
    models = [reward.function.model for reward in made.rewards if isinstance(reward.function, VqaJudge)]
    return RewardProtocol("-".join([str(name), *map(_slug, models[:1])]), rows, made, images_per_prompt)


def _section(rewards: Any) -> DictConfig:
    """A section with a list of entries {name: ...} from what users may write."""
    plain = OmegaConf.to_container(rewards) if isinstance(rewards, DictConfig | ListConfig) else rewards
    listed = plain.get("rewards") if isinstance(plain, Mapping) else plain
    if not isinstance(listed, list | tuple):
        raise ValueError(f"rewards is {rewards!r:.80}; a list is needed, such as [{{name: clip-score}}]")
    entries = [{"name": entry} if isinstance(entry, str) else entry for entry in listed]
    return OmegaConf.create({**(plain if isinstance(plain, Mapping) else {}), "rewards": entries})


def _slug(text: str) -> str:
    """The last part of a path or of a model's name, for a protocol's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.rpartition("/")[2].lower()).strip("-")
