"""Images in, numbers out: features, metrics with standard errors, protocols. Knows no generator and no reward.

extractor = load_classifier("classifier.safetensors")
protocol = Protocol("mnist-cnn", extractor, Reference.load("reference.npz"))
evaluator = Evaluator(protocol)
for images, labels in batches:                  # uint8 [B, H, W, 3], integers [B]
    evaluator.update(images, labels)
evaluator.compute().metrics                     # {"fid_mnist-cnn_2k": ..., "is_mnist-cnn_2k": ..., ...}
"""

from evaluation.classifier import ClassifierOutput, DigitClassifier, load_classifier, save_classifier
from evaluation.metrics import class_accuracy, frechet_distance, inception_score, precision_recall
from evaluation.moments import RunningMoments
from evaluation.protocol import (
    EvaluationResult,
    Evaluator,
    Extractor,
    Protocol,
    Reference,
    ReferenceMoments,
    count_suffix,
    make_reference,
    self_check,
)

__all__ = [
    "ClassifierOutput",
    "DigitClassifier",
    "EvaluationResult",
    "Evaluator",
    "Extractor",
    "Protocol",
    "Reference",
    "ReferenceMoments",
    "RunningMoments",
    "class_accuracy",
    "count_suffix",
    "frechet_distance",
    "inception_score",
    "load_classifier",
    "make_reference",
    "precision_recall",
    "save_classifier",
    "self_check",
]
