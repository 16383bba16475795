"""Pictures of attention: maps of heads and layers over all samples, and the views of one run over its video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dit_lens import plot
from dit_lens.attention_records import attention
from dit_lens.errors import TaskError
from dit_lens.experiments.looks import Looks, tokens_of
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.prompted import ON_IT, REGIONS
from dit_lens.plan.selectors import at

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch
    from dit_lens.lens import Lens


def few(labels: Sequence[int]) -> list[int]:
    """Return a few of some labels, evenly spread."""
    return [int(labels[n]) for n in choose("auto", len(labels), "layers")]


def frame_matrices(maps: xr.DataArray, title: str) -> Figure:
    """Draw attention from frame to frame, a matrix for each layer and step.

    Args:
        maps: [step, layer, frame, key_frame].
        title: of the figure.
    """
    steps, layers = (few(maps[dim].values.tolist()) for dim in ("step", "layer"))
    names = [f"layer {layer}, step {step}" for layer in layers for step in steps]
    panels = [maps.sel(step=step, layer=layer, drop=True) for layer in layers for step in steps]
    stacked = xr.concat(panels, xr.Variable("place", np.array(names, np.dtypes.StringDType())))
    return plot.heatmap(stacked, value_label="attention", title=title, annotate=False, columns=len(steps))


def view_run(
    lens: Lens,
    batch: Batch,
    looks: Looks,
    where: Mapping[str, Sequence[int]],
    word: str | None = None,
    token: str | None = None,
) -> xr.Dataset:
    """Run the first pair of a batch once more, and keep the map of a word, the view of a token, and the video.

    Args:
        lens: the model.
        batch: the pairs, and how they are run.
        looks: what is read of the first pair.
        where: `step` and `layer` that are kept, and `head`, of which the mean is taken.
        word: of the prompt. Default: the object's, or the last one.
        token: FRAME,Y,X. Default: a moving object in the middle, or the middle of the video.

    Returns:
        `token_map`, and where the prompt's tokens are known `word_map`, [step, layer, frame, y, x], means over these heads;
        `video`; attributes `word`, `token`, and `frame`, where most of the named object is seen.
    """
    sample, seed = batch.pairs[0]
    tokens = tokens_of(batch, 0) if "cross_attention" in lens.attentions["video"] else None
    if tokens is not None and word is None:
        word = looks.named.word if looks.named else str(sample.prompt).split()[-1]
    place = token_of(token, looks)
    step, layer, head = (list(where[dim]) for dim in ("step", "layer", "head"))
    at_place = partial(at, step=step, layer=layer, head=head, branch=batch.layout.branches[0])
    record: list[Any] = [(attention(from_=[place]), at_place())]
    if tokens is not None:
        record.append((attention(to="text"), at_place(text_token=word)))
    run = lens.run(
        sample, seed, steps=batch.steps, cfg_scale=batch.cfg_scale, record=record, **batch.arguments
    )
    data = {"token_map": _picked(run["attention_from"].isel(query=0), where)}
    if tokens is not None:
        data["word_map"] = _picked(run["attention_to_text"].sum("text_token"), where)
    video = xr.DataArray(np.asarray(run.video), dims=("time", "height", "width", "rgb"))
    sizes = looks.regions[REGIONS.index(ON_IT)].sum((1, 2))
    frame = int(sizes.argmax()) if sizes.any() else looks.grid[0] // 2
    return xr.Dataset(
        {**data, "video": video}, attrs={"word": word or "", "token": list(place), "frame": frame}
    )


def _picked(maps: xr.DataArray, where: Mapping[str, Sequence[int]]) -> xr.DataArray:
    """Return the maps at some steps and layers, [step, layer, frame, y, x], without other labels."""
    labels = {dim: list(where[dim]) for dim in ("step", "layer")}
    picked = maps.isel(branch=0).sel(labels).load()
    return picked.drop_vars(list(picked.coords)).assign_coords(labels)


def token_of(text: str | None, looks: Looks) -> tuple[int, int, int]:
    """Return the token whose view is drawn.

    Raises:
        TaskError: the text is not FRAME,Y,X of the grid.
    """
    if text is None:
        tracked = sorted(looks.tracks.places)
        frame, y, x = looks.grid
        return tracked[len(tracked) // 2] if tracked else (frame // 2, y // 2, x // 2)
    try:
        frame, y, x = (int(part) for part in text.split(","))
        inside = all(0 <= n < size for n, size in zip((frame, y, x), looks.grid, strict=True))
    except ValueError:
        inside = False
    if not inside:
        raise TaskError(f"--token {text}: give FRAME,Y,X on the grid of {looks.grid} tokens, such as 1,2,3.")
    return frame, y, x


def word_sheet(view: xr.Dataset, title: str) -> Figure:
    """Draw a word's map over the frame that shows most of its object, steps down, layers across, relative to each map's mean."""
    frame = int(view.attrs["frame"])
    maps = (view.word_map / view.word_map.mean(("frame", "y", "x"))).isel(frame=frame)
    limit = float(np.nan_to_num(np.nanquantile(maps, 0.99))) or 1.0
    picture, in_order = frame_of(view, frame), maps.transpose("step", "layer", "y", "x")
    cells = [[plot.overlay(picture, cell, limit) for cell in row] for row in in_order.values]
    rows, columns = ([f"{dim} {n}" for n in view[dim].values.tolist()] for dim in ("step", "layer"))
    title = f"{title} · latent frame {frame} · full colour: {limit:.2g} times the mean of a map"
    return plot.contact_sheet(cells, rows, columns, title)


def token_sheet(view: xr.Dataset, title: str) -> Figure:
    """Draw where a token looks at the step in the middle: layers down, latent frames across; the token has an edge."""
    maps = view.token_map.isel(step=view.sizes["step"] // 2)
    own, *cell = view.attrs["token"]
    limit = float(np.nanquantile(maps, 0.99)) or 1.0
    rows = [
        [
            plot.overlay(
                frame_of(view, f), maps.isel(layer=n, frame=f), limit, tuple(cell) if f == own else None
            )
            for f in range(maps.sizes["frame"])
        ]
        for n in range(maps.sizes["layer"])
    ]
    labels = [f"layer {n}" for n in view.layer.values.tolist()]
    columns = [f"latent frame {n}" for n in range(maps.sizes["frame"])]
    return plot.contact_sheet(rows, labels, columns, title)


def frame_of(view: xr.Dataset, latent_frame: int) -> NDArray[np.uint8]:
    """Return the video frame that a latent frame ends with, in proportion."""
    latents = view.token_map.sizes["frame"]
    share = latent_frame / max(latents - 1, 1)
    picture: NDArray[np.uint8] = view.video.values[round(share * (view.sizes["time"] - 1))]
    return picture


__all__ = ["few", "frame_matrices", "frame_of", "token_of", "token_sheet", "view_run", "word_sheet"]
