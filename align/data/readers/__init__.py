"""Readers of images with a class label or a caption: one interface over the layouts that image sets come in."""

from align.data.readers.base import Columns, ImageSource, Record, UnreadableRow
from align.data.readers.detect import KINDS, open_images

__all__ = ["KINDS", "Columns", "ImageSource", "Record", "UnreadableRow", "open_images"]
