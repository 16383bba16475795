"""Coordinates: the names of the dimensions, and how a place is selected by meaning."""

DIMS = ("sample", "seed", "step", "branch", "layer", "frame", "y", "x", "channel")
