"""The errors of `dit_lens`: one base class, a few kinds, each message with what to do.

A message names what was asked for, where (coordinate, module path, file), what was found, and the remedy.
"""


class DitLensError(Exception):
    """Base of every error that `dit_lens` raises on purpose."""


class PlanError(DitLensError):
    """A plan, place or argument that cannot be carried out on this model."""


class CaptureError(DitLensError):
    """What was captured in a run is not what its plan asked for."""


class StoreError(DitLensError):
    """A store that cannot be read, written or resumed."""


class TaskError(DitLensError):
    """A sample or task that cannot be made, read or scored."""


class ModelError(DitLensError):
    """A model, checkpoint or LoRA that cannot be loaded."""
