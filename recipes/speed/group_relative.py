"""A GRPO step, from prompts to updated weights: AlignTrainer's and trl.GRPOTrainer's, on the same language model."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback

from align.data import PromptStream
from align.generators import Janus
from align.objectives import policy_gradient
from align.training.checkpoints import METRICS_FILE
from align.training.rollouts import Rollouts, RolloutSettings
from align.training.trainer import AlignTrainer
from recipes.parts import use_bf16
from recipes.speed.causal_lm import NumberPrompts, causal_lm, number_tokenizer
from recipes.speed.contrastive import gradient_difference, refuse_difference
from recipes.speed.models import conditions
from recipes.speed.turns import EndStep, Watched
from recipes.train import training_arguments
from rewards.base import Reward
from rewards.combine import RewardSet

PROMPTS = 64
EPSILON = 0.2
SHARED = (
    *("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "optim"),
    *("adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm", "lr_scheduler_type", "logging_steps"),
    *("save_strategy", "report_to", "seed", "gradient_checkpointing"),
)
PHASES = ("generate", "score", "update")


@dataclass(frozen=True)
class Task:
    """make: a Janus with its image tokenizer, anew at each call; trainer: the `trainer` section of a configuration."""

    make: Callable[[], Janus]
    trainer: Mapping[str, Any]
    num_generations: int

    def policy(self) -> Janus:
        policy = self.make()
        policy.attach_prompts(NumberPrompts())  # type: ignore[arg-type]
        return policy

    def prompts(self, policy: Janus) -> list[str]:
        ids = conditions(policy, PROMPTS).tensors["ids"]
        return [" ".join(map(str, row)) for row in ids.tolist()]

    @property
    def rows(self) -> int:
        """Of a step."""
        return int(self.trainer["per_device_train_batch_size"] * self.trainer["gradient_accumulation_steps"])


def brightness(images_BHWC: Tensor, rows: Any) -> Tensor:
    """The reward of both: cheap, so that it is the trainers that are compared."""
    return images_BHWC.float().mean(dim=(1, 2, 3)) / 255


def make_ours(task: Task, folder: Path) -> AlignTrainer:
    policy, section = task.policy(), task.trainer
    stream = PromptStream(
        task.prompts(policy),
        length=task.rows * section["max_steps"],
        seed=0,
        num_generations=task.num_generations,
        rows_per_step=task.rows,
        micro_batch=section["per_device_train_batch_size"],
    )
    settings = RolloutSettings(num_generations=task.num_generations, batch_size=task.rows)
    source = Rollouts(settings, RewardSet((Reward("brightness", brightness),)))
    policy.gradient_checkpointing = section["gradient_checkpointing"]
    objective = partial(policy_gradient, loss_type="grpo", epsilon=EPSILON)
    return AlignTrainer(policy, objective, stream, training_arguments(section, folder), source=source)


def make_theirs(task: Task, folder: Path, policy: Janus) -> Any:
    """TRL's trainer as it is, but for a watch on its phases. Its rewards decode tokens as ours are decoded."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # which its constructor would send
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class Timed(GRPOTrainer):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            self.phases: dict[str, float] = {}
            super().__init__(*arguments, **keywords)

        def _generate(self, prompts: list[Any]) -> Any:
            with _counted(self.phases, "generate"):
                return super()._generate(prompts)

        def _calculate_rewards(self, *arguments: Any, **keywords: Any) -> Any:
            with _counted(self.phases, "score"):
                return super()._calculate_rewards(*arguments, **keywords)

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return brightness(policy.decode(torch.tensor(completion_ids, device=policy.device)), None).tolist()

    section = task.trainer
    args = GRPOConfig(
        output_dir=str(folder), num_generations=task.num_generations, max_completion_length=policy.layout.length,
        beta=0.0, loss_type="grpo", epsilon=EPSILON, bf16=use_bf16(section["precision"]), disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(), **{name: section[name] for name in SHARED},
    )  # fmt: skip
    trainer = Timed(
        causal_lm(policy),
        [reward],
        args,
        train_dataset=Dataset.from_dict({"prompt": task.prompts(policy)}),
        processing_class=number_tokenizer(policy),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def train_ours(task: Task, folder: Path, phases: list[dict[str, float]], end_step: EndStep) -> None:
    """Ours writes down itself what it spends its time on."""
    trainer = make_ours(task, folder)
    trainer.add_callback(Watched(end_step))
    trainer.train()
    for line in (folder / METRICS_FILE).read_text().splitlines():
        record = json.loads(line)
        exposed = record["seconds_scoring_exposed"]
        phases.append({"generate": record["seconds_collecting"] - exposed, "score": exposed})


def train_theirs(task: Task, folder: Path, phases: list[dict[str, float]], end_step: EndStep) -> None:
    trainer = make_theirs(task, folder, task.policy())

    def note() -> None:
        phases.append(dict(trainer.phases))
        trainer.phases.clear()
        end_step()

    trainer.add_callback(Watched(note))
    trainer.train()


VARIANTS: dict[str, Callable[[Task, Path, list[dict[str, float]], EndStep], None]] = {
    "ours": train_ours,
    "trl": train_theirs,
}


def check(task: Task, folder: Path) -> dict[str, dict[str, float]]:
    """Relative differences of the loss and the gradient of one step, on our rollouts and advantages and in float32.

    Raises:
        ValueError: above what is allowed.
    """
    task = replace(task, trainer={**task.trainer, "precision": "fp32"})
    ours = make_ours(task, folder / "ours")
    policy = ours.generator
    assert isinstance(policy, Janus)
    theirs = make_theirs(task, folder / "trl", policy)
    batches = list(itertools.islice(ours.get_train_dataloader(), task.trainer["gradient_accumulation_steps"]))
    prepared = ours.prepare(batches, 0)
    losses, runs = [], (partial(ours.compute_loss, policy), partial(_their_loss, theirs, task, policy))
    for run in runs:
        policy.train()
        policy.zero_grad()
        total = 0.0
        for batch in prepared:
            part: Tensor = run(batch)
            part.backward()
            total += part.item()
        losses.append((total, [p.grad for p in policy.parameters()]))
    (loss, gradient), (expected, expected_gradient) = losses
    # with one update a rollout the loss is minus the mean advantage, which is 0: what counts is its scale, the rows' terms
    scale = sum(batch["advantages"].abs().mean(dim=1).sum().item() for batch in prepared) / task.rows
    found = {"loss": abs(loss - expected) / scale, "gradient": gradient_difference(gradient, expected_gradient)}
    refuse_difference("ours", found)
    return {"ours": found}


def _their_loss(trainer: Any, task: Task, policy: Janus, batch: Mapping[str, Any]) -> Tensor:
    trainer.current_gradient_accumulation_steps = task.trainer["gradient_accumulation_steps"]
    prompts = policy.encode_condition(batch["label"]).tensors["ids"] + policy.sizes.vocab_size
    tokens = batch["rollout"]
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": tokens,
        "completion_mask": torch.ones_like(tokens),
        "advantages": batch["advantages"][:, 0],
        "num_items_in_batch": torch.tensor(task.rows * tokens.shape[1]),
    }
    return trainer.compute_loss(trainer.model, inputs)


@contextmanager
def _counted(phases: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    phases[name] = phases.get(name, 0.0) + time.perf_counter() - start
