"""GenEval: does an image show the objects, numbers, colours and places of its prompt? (Ghosh et al. 2023, 2310.11513)

scorer = GenEvalScorer(labels=detector.labels, colors=colors)
for image, detections, row in zip(images, detector(images), rows, strict=True):
    result = scorer.score(image, detections, row)
    result.correct, result.credit, result.reason
"""

from evaluation.geneval.coco import COCO_NAMES
from evaluation.geneval.detections import ColorClassifier, Detection, Detector, object_crop
from evaluation.geneval.folder import read_folder, read_rows, write_folder
from evaluation.geneval.prompts import make_prompts, training_prompts
from evaluation.geneval.protocol import GenEvalProtocol
from evaluation.geneval.recorded import RecordedColors, RecordedDetector, Recording, rescore
from evaluation.geneval.requests import TAGS, Exclude, Include, Request, read_request
from evaluation.geneval.scorer import Demand, GenEvalResult, GenEvalScorer
from evaluation.geneval.summary import summarize_verdicts
from evaluation.geneval.verdicts import Verdict, read_verdicts, write_verdicts

__all__ = [
    "COCO_NAMES",
    "TAGS",
    "ColorClassifier",
    "Demand",
    "Detection",
    "Detector",
    "Exclude",
    "GenEvalProtocol",
    "GenEvalResult",
    "GenEvalScorer",
    "Include",
    "RecordedColors",
    "RecordedDetector",
    "Recording",
    "Request",
    "Verdict",
    "make_prompts",
    "object_crop",
    "read_folder",
    "read_request",
    "read_rows",
    "read_verdicts",
    "rescore",
    "summarize_verdicts",
    "training_prompts",
    "write_folder",
    "write_verdicts",
]
