"""Loading by name: `load("organism")`."""

from __future__ import annotations

import hashlib
from typing import Any

from dit_lens.errors import PlanError
from dit_lens.lens import Lens

NAMES = ("organism",)


def load(name: str = "organism", *, device: str = "cpu", dtype: Any = None) -> Lens:
    """Load a model and put it under the microscope.

    Args:
        name: "organism", the small trained model that ships with the package.
        device: where to run.
        dtype: a torch dtype; the model's own unless given.

    Raises:
        PlanError: no model has this name.
        DitLensError: its weights are missing.
    """
    if name not in NAMES:
        raise PlanError(
            f"No model is called {name!r}, only {', '.join(NAMES)}; for your own pipeline: dl.Lens(pipe)."
        )
    from dit_lens.models import organism

    pipe = organism.pipeline(device=device, dtype=dtype)
    weights = hashlib.sha256(organism.WEIGHTS.read_bytes()).hexdigest()[:16]
    return Lens(pipe, family=organism.FAMILY, info={"name": name, "weights": weights})
