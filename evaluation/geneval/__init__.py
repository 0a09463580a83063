"""GenEval: does an image show the objects, numbers, colours and places of its prompt? (Ghosh et al. 2023, 2310.11513)

scorer = GenEvalScorer(labels=detector.labels, colors=colors)
for image, detections, row in zip(images, detector(images), rows, strict=True):
    result = scorer.score(image, detections, row)
    result.correct, result.credit, result.reason
"""

from evaluation.geneval.coco import COCO_NAMES
from evaluation.geneval.detections import ColorClassifier, Detection, Detector, object_crop
from evaluation.geneval.prompts import make_prompts, training_prompts
from evaluation.geneval.requests import TAGS, Exclude, Include, Request, read_request
from evaluation.geneval.scorer import Demand, GenEvalResult, GenEvalScorer

__all__ = [
    "COCO_NAMES",
    "TAGS",
    "ColorClassifier",
    "Demand",
    "Detection",
    "Detector",
    "Exclude",
    "GenEvalResult",
    "GenEvalScorer",
    "Include",
    "Request",
    "make_prompts",
    "object_crop",
    "read_request",
    "training_prompts",
]
