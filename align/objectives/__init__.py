"""Objectives: pure functions from log-probabilities to a loss and the averages to log."""

from align.objectives.cca import cca
from align.objectives.logprobs import token_entropy, token_logprobs
from align.objectives.sft import sft
from align.objectives.unpaired import unpaired_logistic

__all__ = ["cca", "sft", "token_entropy", "token_logprobs", "unpaired_logistic"]
