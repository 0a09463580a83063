"""Tiny models in the published formats, for tests and for `align doctor`: the real loading code, a thousandth of the size."""
