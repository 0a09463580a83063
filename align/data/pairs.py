"""Preference pairs: of two images for the same condition, which one is better; and how rollouts become pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from align.data.codes import Labels
from align.files import write_atomically

_TENSORS = ("chosen", "rejected", "chosen_reward", "rejected_reward")


@dataclass(frozen=True)
class PreferencePairs:
    """Pairs of images as tokens, the chosen one better than the rejected one, both drawn for the same class or prompt.

    chosen_NL, rejected_NL: int64 [N, L]; labels_N: class ids, int64 [N], or N prompts.
    chosen_reward_N, rejected_reward_N: float32 [N], in the reward's own unit; NaN where unknown.
    tokenizer: sha256 of the tokenizer's weights that the tokens belong to.
    policy: sha256 of the weights that drew the images, or "unknown".

    Raises:
        ValueError: no pairs, or tensors whose shapes do not match.
    """

    chosen_NL: Tensor
    rejected_NL: Tensor
    labels_N: Labels
    chosen_reward_N: Tensor
    rejected_reward_N: Tensor
    tokenizer: str
    policy: str = "unknown"

    def __post_init__(self) -> None:
        shape = list(self.chosen_NL.shape)
        if len(shape) != 2 or list(self.rejected_NL.shape) != shape:
            raise ValueError(
                f"chosen images have shape {shape} and rejected ones {list(self.rejected_NL.shape)}; both must be [N, L], tokens of N images"
            )
        if shape[0] == 0:
            raise ValueError("there are no preference pairs; check the path or the margin that they were kept by")
        columns = {
            **({"labels": self.labels_N} if isinstance(self.labels_N, Tensor) else {}),
            "chosen rewards": self.chosen_reward_N,
            "rejected rewards": self.rejected_reward_N,
        }
        for name, column in columns.items():
            if list(column.shape) != shape[:1]:
                raise ValueError(
                    f"{shape[0]} pairs but {name} of shape {list(column.shape)}; they must match row by row"
                )
        if len(self.labels_N) != shape[0]:
            raise ValueError(f"{shape[0]} pairs but {len(self.labels_N)} prompts; they must match row by row")

    def __len__(self) -> int:
        return len(self.chosen_NL)

    def save(self, path: Path) -> None:
        """Raises OSError when the file cannot be written; an earlier one is then untouched."""
        largest = max(self.chosen_NL.max(), self.rejected_NL.max())
        width = torch.uint8 if largest < 256 else torch.int32
        columns = {
            "chosen": self.chosen_NL.to(width),
            "rejected": self.rejected_NL.to(width),
            "chosen_reward": self.chosen_reward_N.float(),
            "rejected_reward": self.rejected_reward_N.float(),
            **_stored(self.labels_N),
        }
        # copies, for safetensors refuses columns that share memory, such as one column of NaN given for both rewards
        tensors = {name: column.cpu().clone(memory_format=torch.contiguous_format) for name, column in columns.items()}
        metadata = {"tokenizer": self.tokenizer, "policy": self.policy}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))

    @staticmethod
    def load(path: Path | str) -> PreferencePairs:
        """Raises FileNotFoundError or ValueError, naming the file and what it should be."""
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"no preference pairs at {path}; `align data pairs` makes them")
        try:
            with safe_open(path, framework="pt") as file:
                columns = {name: file.get_tensor(name) for name in _TENSORS}
                kind = "prompts" if "prompts" in file.keys() else "labels"  # noqa: SIM118, a safetensors file is no dict
                labels = _restored(kind, file.get_tensor(kind))
                metadata = file.metadata() or {}
                return PreferencePairs(
                    chosen_NL=columns["chosen"].long(),
                    rejected_NL=columns["rejected"].long(),
                    labels_N=labels,
                    chosen_reward_N=columns["chosen_reward"].float(),
                    rejected_reward_N=columns["rejected_reward"].float(),
                    tokenizer=metadata["tokenizer"],
                    policy=metadata["policy"],
                )
        except (SafetensorError, KeyError) as error:
            raise ValueError(
                f"{path} is not a file of preference pairs (safetensors with {', '.join(map(repr, _TENSORS))}, and 'labels' or 'prompts'): {error}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _stored(labels_N: Labels) -> dict[str, Tensor]:
    """As a column of a file: class ids, or the UTF-8 bytes of a JSON list of prompts."""
    if isinstance(labels_N, Tensor):
        return {"labels": labels_N.to(torch.int32)}
    return {"prompts": torch.frombuffer(bytearray(json.dumps(list(labels_N)).encode()), dtype=torch.uint8)}


def _restored(kind: str, column: Tensor) -> Labels:
    if kind == "labels":
        return column.long()
    prompts = json.loads(column.numpy().tobytes())
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("its prompts are not a list of texts")
    return prompts


def total_rewards(values_NR: Tensor, weights: Sequence[float], *, num_generations: int) -> Tensor:
    """float32 [N]: the weighted sum of several rewards, comparable within each group of `num_generations` rows.

    A reward that applies to no row of a group (all NaN) is left out for that group. A row that lacks a reward which
    applies to its siblings is NaN itself, for its sum would have other terms than theirs. Weight 0 is not counted.

    Raises:
        ValueError: N is no multiple of num_generations.
    """
    counted = [index for index, weight in enumerate(weights) if weight != 0]
    values_PGR = _groups(values_NR[:, counted].float(), num_generations)
    applies_P1R = ~values_PGR.isnan().all(dim=1, keepdim=True)
    weights_R = torch.tensor([weights[index] for index in counted], device=values_NR.device)
    total_PG = torch.where(applies_P1R, values_PGR * weights_R, 0.0).sum(dim=2)
    return total_PG.masked_fill(~applies_P1R.any(dim=2), torch.nan).flatten()


@dataclass(frozen=True)
class PickedPairs:
    """The best and the worst rollout of P kept groups, in the groups' order.

    chosen_PL, rejected_PL: int64 [P, L]; labels_P: int64 [P], or P prompts; chosen_reward_P, rejected_reward_P: float32 [P].
    spread_M: float32 [M], best less worst reward of each of all M groups; NaN with fewer than two applicable rewards.
    """

    chosen_PL: Tensor
    rejected_PL: Tensor
    labels_P: Labels
    chosen_reward_P: Tensor
    rejected_reward_P: Tensor
    spread_M: Tensor

    @property
    def kept(self) -> int:
        return len(self.labels_P)

    @property
    def dropped(self) -> int:
        return len(self.spread_M) - self.kept


def best_and_worst(
    tokens_NL: Tensor, rewards_N: Tensor, labels_N: Labels, *, num_generations: int, margin: float
) -> PickedPairs:
    """Make one pair of each consecutive group of `num_generations` rollouts of one condition: its best and its worst.

    Groups whose best and worst reward differ by less than `margin`, or not at all, give no pair; nor do those with
    fewer than two applicable rewards. NaN (not applicable) is never picked; of equal rewards the first one is.

    Args:
        tokens_NL: int64 [N, L]; rewards_N: float [N]; labels_N: int64 [N], or N prompts.
        num_generations: rollouts of a group, at least 2.
        margin: at least 0, in the reward's unit.

    Raises:
        ValueError: num_generations or margin out of range, counts that do not match, or a group of several labels.
    """
    if num_generations < 2:
        raise ValueError(f"num_generations is {num_generations}; a pair needs at least 2 rollouts of a condition")
    if not margin >= 0:
        raise ValueError(f"margin is {margin}; it is a difference of rewards, at least 0")
    if not len(tokens_NL) == len(rewards_N) == len(labels_N):
        raise ValueError(
            f"{len(tokens_NL)} rollouts but {len(rewards_N)} rewards and {len(labels_N)} labels; they must match row by row"
        )
    rewards_MG = _groups(rewards_N.float(), num_generations)
    labels = labels_N.tolist() if isinstance(labels_N, Tensor) else list(labels_N)
    if any(label != labels[row - row % num_generations] for row, label in enumerate(labels)):
        raise ValueError(
            f"rollouts of different labels within a group of num_generations={num_generations}; those of one condition must be consecutive"
        )
    unknown_MG = rewards_MG.isnan()
    best_M = rewards_MG.masked_fill(unknown_MG, -torch.inf).argmax(dim=1)
    worst_M = rewards_MG.masked_fill(unknown_MG, torch.inf).argmin(dim=1)
    first_M = torch.arange(len(rewards_MG), device=rewards_N.device) * num_generations
    spread_M = rewards_N[first_M + best_M].float() - rewards_N[first_M + worst_M].float()
    spread_M = spread_M.masked_fill((~unknown_MG).sum(dim=1) < 2, torch.nan)
    kept_M = (spread_M >= margin) & (spread_M > 0)  # both false for NaN
    best_P, worst_P = (first_M + best_M)[kept_M], (first_M + worst_M)[kept_M]
    return PickedPairs(
        tokens_NL[best_P],
        tokens_NL[worst_P],
        labels_N[best_P.cpu()] if isinstance(labels_N, Tensor) else [labels[row] for row in best_P.tolist()],
        rewards_N[best_P].float(),
        rewards_N[worst_P].float(),
        spread_M,
    )


def _groups(rows: Tensor, num_generations: int) -> Tensor:
    if len(rows) % num_generations:
        raise ValueError(
            f"{len(rows)} rollouts do not divide into groups of num_generations={num_generations}; draw a multiple of it"
        )
    return rows.unflatten(0, (-1, num_generations))
