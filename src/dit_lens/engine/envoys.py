"""A pipeline as nnsight sees it, and how all of nnsight is taken off it again."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from dit_lens.families.specimen import Specimen

_WRAPPED_HERE: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
"""Modules that were wrapped here, also where the trace never came to run; others are the user's own."""

_ENVOYS: weakref.WeakKeyDictionary[Specimen, tuple[Any, set[torch.nn.Module]]] = weakref.WeakKeyDictionary()
"""By specimen, nnsight's view of it, and the modules that an nnsight model of the user's own had wrapped before."""


def envoys_of(specimen: Specimen) -> Any:
    """Return the pipeline as nnsight sees it."""
    if specimen not in _ENVOYS:
        from nnsight import NNsight

        root = specimen.family.anatomy.root(specimen.pipe)
        before = {m for m in root.modules() if "__nnsight__" in vars(m) and m not in _WRAPPED_HERE}
        _WRAPPED_HERE.update(set(root.modules()) - before)
        _ENVOYS[specimen] = NNsight(root), before
    return _ENVOYS[specimen][0]


def release(specimen: Specimen) -> None:
    """Take nnsight's controllers off the modules: after a trace the model is what it was."""
    _, before = _ENVOYS.pop(specimen, (None, set()))
    for module in set(specimen.family.anatomy.root(specimen.pipe).modules()) - before:
        if type(module.__dict__.get("forward")).__name__ == "Controller":
            del module.__dict__["forward"]
        module.__dict__.pop("__nnsight__", None)
