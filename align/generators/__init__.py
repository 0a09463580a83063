"""Generators: architecture and published checkpoint format of each family, behind one contract."""

from align.generators.base import Generator, TokenLayout, evaluating
from align.generators.beta import PREFIX as BETA_PREFIX
from align.generators.infinity import Infinity
from align.generators.infinity_sizes import InfinityConfig
from align.generators.janus import Janus
from align.generators.janus_config import JanusConfig
from align.generators.llamagen import LlamaGen, LlamaGenConfig
from align.generators.llamagen_t2i import LlamaGenT2I
from align.generators.published import PublishedGenerator
from align.generators.var import VAR, VARConfig

__all__ = [
    "BETA_PREFIX",
    "VAR",
    "Generator",
    "Infinity",
    "InfinityConfig",
    "Janus",
    "JanusConfig",
    "LlamaGen",
    "LlamaGenConfig",
    "LlamaGenT2I",
    "PublishedGenerator",
    "TokenLayout",
    "VARConfig",
    "evaluating",
]
