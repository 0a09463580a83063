"""The nouns that every room shares: what is generated from, how, and what came out.

Legend of the shape suffixes used all over the code: B batch, L token (position in the image), V vocabulary,
G group, R reward, N images, C/H/W channels, height, width. `tokens_BL` is an integer tensor [batch, tokens];
`logits_BLV[:, i]` scores `tokens_BL[:, i]`. Log-probabilities are natural logarithms (nats) in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

GUIDANCE_SCHEDULES = ("constant", "linear")


@dataclass(frozen=True)
class Condition:
    """What a batch of images is generated from, one row per image.

    `tensors` is whatever the generator family needs (LlamaGen class-conditional: {"label": int64 [B]}); every tensor
    has the batch as its first dimension. Only the generator that made a condition looks inside.

    Texts of several lengths stand right-aligned: [B, T, ...], padding first, which is zeros (False in a mask). Conditions
    of another T are compared and joined so, by more padding where it is shorter.
    """

    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | Tensor) -> Condition:
        return Condition({name: tensor[rows] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str) -> Condition:
        return Condition({name: tensor.to(device) for name, tensor in self.tensors.items()})

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        names = conditions[0].tensors
        return Condition({name: torch.cat(_right_aligned([c.tensors[name] for c in conditions])) for name in names})

    def where(self, mask_B: Tensor, other: Condition) -> Condition:
        """Rows of `other` where the mask is set, own rows elsewhere."""
        mixed = {}
        for name, tensor in self.tensors.items():
            own, new = _right_aligned([tensor, other.tensors[name]])
            mixed[name] = torch.where(mask_B.view(-1, *[1] * (own.dim() - 1)), new, own)
        return Condition(mixed)

    def equals(self, other: Condition) -> Tensor:
        """bool [B]: rows that are the same condition in both."""
        same = []
        for name, tensor in self.tensors.items():
            own, new = _right_aligned([tensor, other.tensors[name]])
            same.append((own == new).reshape(len(self), -1))
        return torch.cat(same, dim=1).all(dim=1)


def _right_aligned(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors [B, T, ...] of one T: the longest's, with zeros before what is shorter. [B] and equal ones stay."""
    lengths = {tensor.shape[1] for tensor in tensors if tensor.dim() > 1}
    if len(lengths) < 2:
        return tensors
    longest = max(lengths)
    padded = []
    for tensor in tensors:
        padding = tensor.new_zeros(len(tensor), longest - tensor.shape[1], *tensor.shape[2:])
        padded.append(torch.cat([padding, tensor], dim=1))
    return padded


@dataclass(frozen=True)
class SamplingConfig:
    """The distribution that a rollout is drawn from.

    Logits are guided, divided by the temperature, cut to the top k, then to the top p (LlamaGen's order).

    guidance_scale: s in null + s * (cond - null), at least 0; 1.0 is off and never computes the null branch.
        LlamaGen publishes the same number. VAR's published cfg is s - 1: its 1.5 is our 2.5, its 0 our 1.0.
    guidance_schedule: "constant": every block is guided by s. "linear": block k of K by 1 + (s - 1) k / (K - 1), from
        1.0 at the first to s at the last. VAR samples so: its guided = (1 + t) cond - t null with t = cfg k / (K - 1).
    guided_blocks: guidance acts on the first so many blocks only (a block is one token for raster generators);
        None is all of them, and it leaves a schedule's scales as they are. LlamaGen's `cfg_interval=k` is
        `guided_blocks=k + 2`.
    temperature: at least 0; 0 takes the most likely token (a point mass, whose log-prob is 0).
    top_k: tokens kept, ties at the boundary included; 0 is off.
    top_p: nucleus mass in (0, 1]; the token that crosses it is kept; 1.0 is off. VAR's filters keep the same tokens
        (its "off" is 0), so its published top_k=900, top_p=0.96 are top_k=900, top_p=0.96 here.
    seed: with a sample's index it fixes that sample's random numbers, whatever batch it is drawn in.
    """

    guidance_scale: float = 1.0
    guidance_schedule: str = "constant"
    guided_blocks: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        allowed = {
            "guidance_scale": (self.guidance_scale >= 0, "at least 0 (1.0 is off)"),
            "guidance_schedule": (
                self.guidance_schedule in GUIDANCE_SCHEDULES,
                f"one of {', '.join(GUIDANCE_SCHEDULES)}",
            ),
            "guided_blocks": (self.guided_blocks is None or self.guided_blocks >= 0, "None (all) or at least 0"),
            "temperature": (self.temperature >= 0, "at least 0 (0 takes the most likely token)"),
            "top_k": (self.top_k >= 0, "at least 0 (0 is off)"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1] (1.0 is off)"),
            "seed": (self.seed >= 0, "at least 0"),
        }
        for name, (valid, rule) in allowed.items():
            if not valid:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {rule}")


@dataclass(frozen=True)
class Rollout:
    """Images as tokens, with everything that is needed to train on them or to draw them again.

    tokens_BL: int64 [B, L].
    logprobs_BL: float32 [B, L], log-probability of each token under the very distribution it was drawn from
        (guidance, temperature and filters included).
    index_B: int64 [B], the sample indices that fixed the random numbers.
    forwards_per_image: network evaluations spent per image (guidance costs two per token).
    """

    tokens_BL: Tensor
    logprobs_BL: Tensor
    condition: Condition
    config: SamplingConfig
    index_B: Tensor
    forwards_per_image: float


@dataclass(frozen=True)
class Average:
    """A mean that merges exactly over micro-batches and ranks; with nothing counted it is NaN."""

    total: Tensor
    count: Tensor

    @staticmethod
    def of(values: Tensor, mask: Tensor | None = None) -> Average:
        """Mean over all elements of `values`, or over those where `mask` (same shape, bool) is set."""
        values = values.detach().float()
        if mask is None:
            mask = torch.ones_like(values, dtype=torch.bool)
        return Average(values.masked_fill(~mask, 0.0).sum(), mask.sum())


@dataclass(frozen=True)
class LossOutput:
    """What an objective returns: a scalar to differentiate, and averages to log."""

    loss: Tensor
    metrics: dict[str, Average] = field(default_factory=dict)
