"""The errors of `dit_lens`: one base class, a few kinds, each message with what to do.

A message names what was asked for, where (coordinate, module path, file), what was found, and the remedy.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class DitLensError(Exception):
    """Base of every error that `dit_lens` raises on purpose."""


class PlanError(DitLensError):
    """A plan, place or argument that cannot be carried out on this model."""


class CaptureError(DitLensError):
    """What was captured in a run is not what its plan asked for."""


class StoreError(DitLensError):
    """A store that cannot be read, written or resumed."""


REMEDY = "copy the run again, or remove its folder and make it again"
"""What to do with a run that is damaged, in words."""


class DamageError(StoreError):
    """A run whose files are not what was written: copied again or made again, it is right again."""


class TaskError(DitLensError):
    """A sample or task that cannot be made, read or scored."""


class ModelError(DitLensError):
    """A model, checkpoint or LoRA that cannot be loaded."""


class MissingPackageError(DitLensError, ImportError):
    """A package that the base install does not bring; the message is the command that installs it."""


EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "diffsynth", "nnsight", "safetensors", "einops"), "trace"),
    "diffusers": "diffusers",
}
"""Packages by the extra of `dit-lens` that brings them."""


@contextmanager
def needing(what: str) -> Iterator[None]:
    """Turn the import error of a package that an extra brings into the command that installs it.

    Args:
        what: what is asked for, such as "dl.load".

    Raises:
        MissingPackageError: (where the body imports it) the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        raise MissingPackageError(
            f'{what} needs {package}, which this Python does not have: pip install "dit-lens[{EXTRAS[package]}]"'
        ) from error
