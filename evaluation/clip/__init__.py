"""CLIP models out of local files or the hub, in the formats of transformers and open_clip."""

from evaluation.clip.models import ClipModel, load_clip

__all__ = ["ClipModel", "load_clip"]
