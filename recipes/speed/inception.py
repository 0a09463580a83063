"""Weights for Inception under the published file's names, of random numbers: its cost and its arithmetic need no others."""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


class _Fresh(FeatureExtractorInceptionV3):
    """Keeps the numbers that its layers are made with."""

    def load_state_dict(self, *_: object, **__: object) -> None:
        return None


def random_inception() -> dict[str, Tensor]:
    """Random numbers, of which none vanishes on the way through the network; always the same."""
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = _Fresh("random", ["2048"], feature_extractor_weights_path=nothing)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.bias, std=0.3)
                nn.init.uniform_(module.weight, 0.8, 1.2)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.8, 1.2)
    return network.state_dict()
