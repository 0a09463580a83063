"""Training data: token codes of real images, the images themselves and preference pairs, with the order in which training
sees them."""

from align.data.code_files import open_codes
from align.data.codes import Codes, LazyCodes
from align.data.image_stream import ImageStream
from align.data.pair_stream import PairStream
from align.data.pairs import PreferencePairs
from align.data.prompts import PromptStream
from align.data.stream import Stream, TrainingStream

__all__ = [
    "Codes",
    "ImageStream",
    "LazyCodes",
    "PairStream",
    "PreferencePairs",
    "PromptStream",
    "Stream",
    "TrainingStream",
    "open_codes",
]
