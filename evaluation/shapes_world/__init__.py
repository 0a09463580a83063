"""The shapes world: small images whose every shape, colour, number and place is known, for text-to-image that can be tried
on a CPU."""

from evaluation.shapes_world.detector import ShapeColors, ShapeDetector
from evaluation.shapes_world.layouts import lay_out
from evaluation.shapes_world.prompts import prompt_rows
from evaluation.shapes_world.scenes import COLORS, SHAPES, SIDE, Shape, render

__all__ = ["COLORS", "SHAPES", "SIDE", "Shape", "ShapeColors", "ShapeDetector", "lay_out", "prompt_rows", "render"]
