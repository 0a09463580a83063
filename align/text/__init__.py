"""Captions to features: cleaned, encoded by T5, and kept on disk."""

from align.text.clean import clean_caption
from align.text.features import CaptionFeatures, EncoderFacts
from align.text.store import CachedTextEncoder, FeatureStore, load_text_encoder
from align.text.t5 import T5TextEncoder

__all__ = [
    "CachedTextEncoder",
    "CaptionFeatures",
    "EncoderFacts",
    "FeatureStore",
    "T5TextEncoder",
    "clean_caption",
    "load_text_encoder",
]
