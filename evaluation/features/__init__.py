"""Extractors: Inception, DINOv2, CLIP, and classifiers of a domain."""
