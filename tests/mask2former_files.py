"""A tiny Mask2Former in transformers' published format, whose classes are COCO's."""

from __future__ import annotations

from pathlib import Path

import torch

from evaluation.geneval.coco import COCO_NAMES


def save_mask2former(folder: Path) -> None:
    """Write config.json and model.safetensors of a random model of 93,000 parameters that is sure of what it sees."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = {"depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4, "embed_dim": 8, "image_size": 32}
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(**stages, out_features=["stage1", "stage2", "stage3", "stage4"]),
        **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim", "dim_feedforward"), 32),
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=7,
        id2label=dict(enumerate(COCO_NAMES)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mask2FormerForUniversalSegmentation(config)
        torch.nn.init.normal_(model.class_predictor.weight, std=3.0)
    model.save_pretrained(folder)
