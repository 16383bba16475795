"""A microscope for diffusion transformers: trace, edit and cache what every block holds at every step.

    import dit_lens as dl

    lens = dl.load("organism")
    run = lens.run(dl.tasks.maze(seed=1_000_007), record=[dl.energy, dl.x0])
    run["energy"].sel(layer=6, branch="cond")

Nothing heavy is imported until it is used: opening and plotting stores needs no torch.
"""

# ruff: noqa: F401 (what TYPE_CHECKING imports is the face that type checkers see; `__all__` is made from
# `_FROM`)
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dit_lens.errors import needing

__version__ = "0.1.0"

_FROM = {
    "dit_lens.plan.places": ("At", "Spot"),
    "dit_lens.plan.selectors": ("at",),
    "dit_lens.errors": ("CaptureError", "DitLensError", "ModelError", "PlanError", "StoreError", "TaskError"),
    "dit_lens.records": (
        *("channel_mean", "channel_variance", "energy", "hidden", "keeps", "latents", "velocity", "x0"),
    ),
    "dit_lens.attention_records": ("attention",),
    "dit_lens.edits": (
        "ablate",
        "add_noise",
        "mean_over_seeds",
        "medoid_over_seeds",
        "noise",
        "patch",
        "renoise",
        "replace",
        "scale",
        "steer",
        "zero",
    ),
    "dit_lens.plan.functions": ("options",),
    "dit_lens.analysis": ("cka", "commitment", "effect", "pca_maps", "trajectory_distance"),
    "dit_lens.plan.plan": ("Plan",),
    "dit_lens.families.site": ("Site",),
    "dit_lens.lens": ("Lens", "blocks"),
    "dit_lens.store.run": ("Run",),
    "dit_lens.models": ("load",),
    "dit_lens.store": ("open_run", "open_runs"),
    "dit_lens.tasks.sample": ("Sample", "Score"),
}
_HOME = {name: module for module, names in _FROM.items() for name in names}
_ROOMS = ("analysis", "controls", "plot", "store", "tasks")

__all__ = sorted([*_HOME, *_ROOMS])

if TYPE_CHECKING:
    from dit_lens import analysis, controls, plot, store, tasks
    from dit_lens.analysis import cka, commitment, effect, pca_maps, trajectory_distance
    from dit_lens.attention_records import attention
    from dit_lens.edits import (
        ablate,
        add_noise,
        mean_over_seeds,
        medoid_over_seeds,
        noise,
        patch,
        renoise,
        replace,
        scale,
        steer,
        zero,
    )
    from dit_lens.errors import CaptureError, DitLensError, ModelError, PlanError, StoreError, TaskError
    from dit_lens.families.site import Site
    from dit_lens.lens import Lens, blocks
    from dit_lens.models import load
    from dit_lens.plan.functions import options
    from dit_lens.plan.places import At, Spot
    from dit_lens.plan.plan import Plan
    from dit_lens.plan.selectors import at
    from dit_lens.records import channel_mean, channel_variance, energy, hidden, keeps, latents, velocity, x0
    from dit_lens.store import open_run, open_runs
    from dit_lens.store.run import Run
    from dit_lens.tasks.sample import Sample, Score


def __getattr__(name: str) -> Any:
    """Import a name of the public face when it is first used."""
    if name in _ROOMS:
        with needing(f"dl.{name}"):
            return importlib.import_module(f"dit_lens.{name}")
    if name in _HOME:
        with needing(f"dl.{name}"):
            value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return value
    raise AttributeError(f"module 'dit_lens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
