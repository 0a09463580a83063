"""Prompt suites: rows to draw images for, the questions that judge them, and how answers become a score.

rows = read_suite("geneval2", "geneval2_data.jsonl")
questions = read_questions(rows[0])
SCORES["soft-tifa-gm"].combine([0.9, 0.4, 1.0], questions)
"""

from evaluation.suites.questions import Question, read_questions
from evaluation.suites.read import SUITES, read_suite
from evaluation.suites.scores import SCORES, Score, kinds_of, scored_together

__all__ = ["SCORES", "SUITES", "Question", "Score", "kinds_of", "read_questions", "read_suite", "scored_together"]
