"""Training data: token codes of real images with their conditions, and the order in which training sees them."""

from align.data.codes import Codes
from align.data.stream import TrainingStream

__all__ = ["Codes", "TrainingStream"]
