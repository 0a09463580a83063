"""Image tokenizers: pixels to discrete codes and back, in the published file formats."""

from align.tokenizers.vq import VQConfig, VQTokenizer

__all__ = ["VQConfig", "VQTokenizer"]
