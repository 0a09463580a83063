"""Training data: token codes of real images and preference pairs, with the order in which training sees them."""

from align.data.codes import Codes
from align.data.pair_stream import PairStream
from align.data.pairs import PreferencePairs
from align.data.prompts import PromptStream
from align.data.stream import Stream, TrainingStream

__all__ = ["Codes", "PairStream", "PreferencePairs", "PromptStream", "Stream", "TrainingStream"]
