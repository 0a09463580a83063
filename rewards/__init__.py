"""Reward functions: uint8 images and dataset rows in, one float an image out."""
