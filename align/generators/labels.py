"""Class labels as conditions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from align.generators.published import PublishedGenerator, Tokenizer
from align.types import Condition


class ClassConditional(PublishedGenerator[Tokenizer]):
    """A generator of `num_classes` classes, which leaves out the null class; that class's id is the number itself.

    Its conditions hold {"label": int64 [B]}.
    """

    num_classes: int

    def encode_condition(self, raw: Sequence[int] | Tensor) -> Condition:
        try:
            labels = torch.as_tensor(raw)
        except (TypeError, ValueError) as error:
            raise ValueError(f"class labels must be a list of integers, got {raw!r:.80}") from error
        if labels.dim() != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"class labels must be a list of integers, got {raw!r:.80}")
        if labels.numel() and (labels.min() < 0 or labels.max() >= self.num_classes):
            bad = labels[(labels < 0) | (labels >= self.num_classes)][0].item()
            raise ValueError(f"class label {bad} is out of range; this generator knows 0 to {self.num_classes - 1}")
        return Condition({"label": labels.long().to(self.device)} | self.beta_tensors(len(labels)))

    def null_condition(self, like: Condition) -> Condition:
        null = {"label": torch.full_like(like.tensors["label"], self.num_classes)}
        return Condition(
            null | {name: torch.ones_like(tensor) for name, tensor in like.tensors.items() if name == "beta"}
        )
