"""Pipelines of DiffSynth-Studio."""
