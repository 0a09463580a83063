"""Image tokenizers: pixels to discrete codes and back, in the published file formats."""

from align.tokenizers.bsq import BSQConfig, BSQTokenizer
from align.tokenizers.multiscale_vq import MultiscaleVQConfig, MultiscaleVQTokenizer
from align.tokenizers.signs import SIGNS
from align.tokenizers.vq import VQConfig, VQTokenizer

__all__ = [
    "SIGNS",
    "BSQConfig",
    "BSQTokenizer",
    "MultiscaleVQConfig",
    "MultiscaleVQTokenizer",
    "VQConfig",
    "VQTokenizer",
]
