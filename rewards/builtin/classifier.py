"""How sure a classifier is that an image shows what it was drawn for."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.classifier import DigitClassifier, check_labels, load_classifier


def classifier_log_prob(images: Tensor, conditions: list[dict[str, Any]], *, weights: str | Path) -> Tensor:
    """float32 [B]: log-probability in nats of each row's "label" under a classifier; at most 0.

    Args:
        images: uint8 [B, 28, 28, 3], as `evaluation.classifier` reads them (grey is the mean of the channels).
        weights: a file written by `evaluation.save_classifier`. Choose another than the evaluator's: what is optimised
            must not judge itself.

    Raises:
        FileNotFoundError, ValueError, TypeError: no classifier there, images that it does not read, or rows without a
            label of one of its classes.
    """
    if missing := [index for index, row in enumerate(conditions) if "label" not in row]:
        raise ValueError(
            f"row {missing[0]} has no 'label', it has {sorted(conditions[missing[0]])}; this reward is for class-conditional images"
        )
    classifier = _load(str(weights), images.device)
    labels_B = torch.tensor([row["label"] for row in conditions])
    check_labels(labels_B, len(images), classifier.num_classes)
    logprobs_BK = classifier(images).logits_BK.log_softmax(dim=-1)
    return logprobs_BK.gather(-1, labels_B.to(images.device).unsqueeze(-1)).squeeze(-1)


@lru_cache(maxsize=4)
def _load(path: str, device: torch.device) -> DigitClassifier:
    """Read once for all batches; where the images are, so that they need not move."""
    return load_classifier(path).requires_grad_(False).to(device).eval()
