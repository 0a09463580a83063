"""Images in, numbers out: features, metrics with standard errors, protocols. Knows no generator and no reward.

extractor = make_extractor({"name": "inception", "path": "weights-inception-2015-12-05-6726825d.pth"})
reference = Reference.load("VIRTUAL_imagenet256_labeled.npz")  # or make_reference(extractor, images, name="mine")
protocol = Protocol("mine", (Representation(extractor, reference, ("fid", "is")),))
evaluator = Evaluator(protocol)
for images in batches:                          # uint8 [B, H, W, 3]
    evaluator.update(images)
evaluator.compute().metrics                     # {"fid_mine_50k": ..., "is_mine_50k": ...}
"""

from evaluation.classifier import DigitClassifier, load_classifier, save_classifier
from evaluation.evaluator import Evaluator
from evaluation.features.base import Extractor, ExtractorOutput
from evaluation.features.make import make_extractor
from evaluation.metrics import class_accuracy, frechet_distance, inception_score, precision_recall
from evaluation.moments import RunningMoments
from evaluation.protocol import EvaluationResult, Protocol, Representation, count_suffix
from evaluation.reference import Reference, make_reference, self_check

__all__ = [
    "DigitClassifier",
    "EvaluationResult",
    "Evaluator",
    "Extractor",
    "ExtractorOutput",
    "Protocol",
    "Reference",
    "Representation",
    "RunningMoments",
    "class_accuracy",
    "count_suffix",
    "frechet_distance",
    "inception_score",
    "load_classifier",
    "make_extractor",
    "make_reference",
    "precision_recall",
    "save_classifier",
    "self_check",
]
