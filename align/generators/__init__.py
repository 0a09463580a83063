"""Generators: architecture and published checkpoint format of each family, behind one contract."""

from align.generators.base import Generator, TokenLayout, evaluating
from align.generators.llamagen import LlamaGen, LlamaGenConfig

__all__ = ["Generator", "LlamaGen", "LlamaGenConfig", "TokenLayout", "evaluating"]
