"""Attributions as one dataset, with names for every dimension and words for what stands in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dit_lens.plan.places import grid_dim, head_dim
from dit_lens.tasks.pairs import label

if TYPE_CHECKING:
    from dit_lens.engine.adjoint import Passage
    from dit_lens.engine.attribution_check import DrawnPatches
    from dit_lens.engine.attribution_task import Attribution

TEXT = np.dtypes.StringDType()
LINEAR = "sum over channel of (h_clean - h_corrupt) * d metric / d h_corrupt"
INTEGRATED = (
    "sum over channel of (h_clean - h_corrupt) * mean of d metric / d h along the straight line from h_corrupt to h_clean, the "
    "state of all tokens of a place moved together"
)
GAP = 0.1
"""Share of the largest gain by which an integral may miss one without a warning."""
SOURCES = {
    LINEAR: "Nanda 2023, attribution patching; Syed et al. 2023, arXiv 2310.10348",
    INTEGRATED: "Sundararajan et al. 2017, arXiv 1703.01365; Hanna et al. 2024, arXiv 2403.17806",
}


def table_of(task: Attribution, options: Mapping[str, int], drawn: Mapping[str, DrawnPatches]) -> xr.Dataset:
    """Return attributions as a dataset; see `attribute`.

    Args:
        task: that was carried out.
        options: `integrate`, `check` and `seed`.
        drawn: what was checked, by name; empty where nothing was.
    """
    table = xr.Dataset(coords=_coordinates(task))
    for site in task.sites:
        table[site] = _of_site(task, site)
        table[site].attrs = {"long_name": f"attribution of {site}", "units": "units of the metric"}
        if task.patched:
            patched = _of_site(task, site, patched=True)
            table[f"{site}_patched"] = patched.assign_attrs(long_name=f"gain of patching all of {site}")
    for name, values in task.metrics.items():
        long_name = {"long_name": f"metric of the {name} row"}
        if task.until is None:
            found = [values[step] for step in task.steps]
            table[f"metric_{name}"] = xr.DataArray(found, dims="step", attrs=long_name)
        else:
            table[f"metric_{name}"] = xr.DataArray(values[task.until], attrs=long_name)
    for name, patches in drawn.items():
        end = "" if name == "token" else f"_{name}"
        table = table.assign(_checked(task, patches, end)).assign_coords(_places(patches, end))
    table.attrs = _attributes(task, options, drawn)
    return table


def _coordinates(task: Attribution) -> dict[str, Any]:
    batch, steps = task.batch, task.steps
    keys = [key for step in steps for key in task.keys[step]]
    layers = sorted({layer for _, _, layer, _ in keys if layer is not None})
    branches = [b for b in batch.layout.branches if any(branch == b for _, branch, _, _ in keys)]
    coords: dict[str, Any] = {
        "step": steps,
        "sigma": ("step", [batch.sigmas[step] for step in steps]),
        "timestep": ("step", [batch.timesteps[step] for step in steps]),
        "expert": ("step", np.array([batch.expert(step) for step in steps], TEXT)),
    }
    return coords | ({"branch": np.array(branches, TEXT), "layer": layers} if layers else {})


def _of_site(task: Attribution, site: str, patched: bool = False) -> xr.DataArray:
    """Return what came of a site on [step, branch, layer, head, frame, y, x], of these those that it has."""
    values: Mapping[Any, Any] = task.patched if patched else task.estimates
    keys = [key for key in task.keys[task.steps[0]] if key[0] == site]
    inside = np.shape(values[task.steps[0], keys[0]])
    stacked = np.array([[values[step, key] for key in keys] for step in task.steps], np.float64)
    dims = [grid_dim(dim, site, task.place.stream) or dim for dim in ("frame", "y", "x")] if inside else []
    if keys[0][2] is None:
        return xr.DataArray(stacked[:, 0], dims=["step", *dims])
    branches, layers, heads = (list(dict.fromkeys(key[n] for key in keys)) for n in (1, 2, 3))
    coords: dict[str, Any] = {"branch": np.array(branches, TEXT), "layer": layers}
    if heads != [None]:
        coords[head_dim(task.place.stream)] = heads
    folded = stacked.reshape(len(task.steps), *map(len, coords.values()), *inside)
    return xr.DataArray(folded, dims=["step", *coords, *dims], coords=coords)


def _checked(task: Attribution, drawn: DrawnPatches, end: str) -> dict[str, Any]:
    what = "all tokens" if end else "one token"
    until = "its own step" if task.until is None else f"step {task.until}"
    return {
        f"estimate{end}": (f"check{end}", drawn.estimates, {"long_name": f"attribution of {what}"}),
        f"exact{end}": (
            f"check{end}",
            drawn.exact,
            {"long_name": f"gain of patching {what}, read at {until}"},
        ),
    }


def _places(drawn: DrawnPatches, end: str) -> dict[str, Any]:
    """Return where each patch was made; -1, or no text, where a place has no such coordinate."""
    dim, patches = f"check{end}", drawn.patches
    coords: dict[str, Any] = {
        f"{dim}_site": (dim, np.array([patch.key[0] for patch in patches], TEXT)),
        f"{dim}_step": (dim, [patch.step for patch in patches]),
        f"{dim}_branch": (dim, np.array([patch.key[1] or "" for patch in patches], TEXT)),
        f"{dim}_layer": (dim, [-1 if patch.key[2] is None else patch.key[2] for patch in patches]),
    }
    inside = {"head": [-1 if patch.key[3] is None else patch.key[3] for patch in patches]}
    for n, name in enumerate(("frame", "y", "x")):
        inside[name] = [patch.index[n] if n < len(patch.index) else -1 for patch in patches]
    return coords | {f"{dim}_{name}": (dim, found) for name, found in inside.items() if max(found) >= 0}


def _attributes(
    task: Attribution, options: Mapping[str, int], drawn: Mapping[str, DrawnPatches]
) -> dict[str, Any]:
    definition = INTEGRATED if options["integrate"] else LINEAR
    metric, of = task.reading.metric, task.reading.of
    attrs: dict[str, Any] = {
        "definition": definition,
        "sources": SOURCES[definition],
        "metric": getattr(metric, "__name__", type(metric).__name__),
        "metric_reads": f"{of} of {'its own step' if task.until is None else f'step {task.until}'}, corrupt row",
        "clean": _named(task.clean),
        "corrupt": _named(task.corrupt),
        "place": str(task.place),
        "steps": task.batch.steps,
        "cfg_scale": float(task.batch.cfg_scale),
        "integrate": options["integrate"],
    }
    warnings = []
    if not any(values.any() for values in task.estimates.values()):
        warnings.append("All attributions are 0: the metric has no slope where the corrupt row is.")
    if task.patched:
        sums = [float(task.estimates[place].sum()) - task.patched[place] for place in task.patched]
        attrs["largest_gap"] = float(np.abs(sums).max())
        attrs["largest_patched"] = float(np.abs([*task.patched.values()]).max())
        warnings.append(_incomplete(attrs["largest_gap"], attrs["largest_patched"], options["integrate"]))
    if drawn:
        attrs |= {"check": options["check"], "check_seed": options["seed"]}
    for name, patches in drawn.items():
        end = "" if name == "token" else f"_{name}"
        attrs |= {f"spearman{end}": patches.spearman, f"slope{end}": patches.slope}
        warnings.append(patches.warning)
    return attrs | ({"warning": " ".join(filter(None, warnings))} if any(warnings) else {})


def _incomplete(gap: float, patched: float, nodes: int) -> str:
    """Say in a sentence that sums over tokens miss what patches of whole places do; empty where they meet."""
    if gap <= GAP * patched:
        return ""
    return (
        f"The integral over {nodes} nodes is not complete: at one place the sum over tokens misses the patch of all of them by "
        f"{gap:.2g}, where the largest patch gains {patched:.2g}: take more nodes."
    )


def _named(passage: Passage) -> str:
    sample, seed = passage.batch.pairs[passage.pair]
    placed = f", {len(passage.edits)} edits" if passage.edits else ""
    return f"row {passage.pair}: {label(sample)}, seed {seed}{placed}"


__all__ = ["table_of"]
