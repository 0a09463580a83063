"""ar-align: post-training alignment for autoregressive image generators.

The front door: `load_generator`, `sample`, `SamplingConfig`, and the nouns in `align.types`.
Names load on first use, so that `import align` stays quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.checkpoints import load_generator
    from align.sampling.engine import sample
    from align.sampling.loop import score
    from align.types import Condition, LossOutput, Rollout, SamplingConfig

__version__ = "0.1.0"

_HOMES = {
    "load_generator": "align.checkpoints",
    "sample": "align.sampling.engine",
    "score": "align.sampling.loop",
    "Condition": "align.types",
    "LossOutput": "align.types",
    "Rollout": "align.types",
    "SamplingConfig": "align.types",
}
__all__ = ["Condition", "LossOutput", "Rollout", "SamplingConfig", "load_generator", "sample", "score"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'align' has no attribute {name!r}")
