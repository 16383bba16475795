"""Pictures of one run, into a folder: what the model believed at every step, and what every layer held.

Shared by the scripts in `analyses/` and by the demo. Needs no model, except to decode latents (a function is
given).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dit_lens import analysis, plot
from dit_lens.errors import PlanError
from dit_lens.plan.places import positions
from dit_lens.plan.selectors import parse_selector
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    import xarray as xr

    from dit_lens.store.run import Run

SHEET_FRAMES = 7


def choose(text: str, count: int, name: str, auto: int = 5, first: int = 0) -> list[int]:
    """Read a selector of a command line.

    Args:
        text: "all", "0-19,45-49", or "auto" for a few, evenly spread.
        count: how many there are.
        name: of the option, without its dashes.
        auto: how many "auto" gives.
        first: the first that may be chosen.

    Raises:
        PlanError: the selector cannot be read, or selects nothing that exists; the error names the option.
    """
    if text == "auto":
        return sorted({int(i) for i in np.linspace(first, count - 1, min(auto, count - first)).round()})
    try:
        chosen = list(positions(name, parse_selector(name, text), count))
        if text == "all":
            return chosen[first:]
        if chosen[0] < first:
            raise PlanError(f"{name}={chosen[0]} is too small: give {first} to {count - 1}.")
        return chosen
    except PlanError as error:
        raise PlanError(f"--{name} {text}: {error}") from None


def believed(
    run: Run,
    decode: Callable[[xr.DataArray], np.ndarray],
    sample: Sample,
    out: Path,
    steps: Sequence[int] | None = None,
    fps: float | None = None,
) -> dict[str, list[Any]]:
    """Write what the model believed: x0 of each step as a video, a contact sheet, the noise schedule.

    Where the run has sound, the videos have it too: that of x0 where `x0` of stream audio is recorded.

    Args:
        run: with `x0` recorded.
        decode: latents [frame, latent_y, latent_x, latent_channel] to frames, those of sound to a waveform;
            `lens.decode`.
        sample: its scorer, if any, reads every decoded x0.
        out: folder to write into.
        steps: which steps. Default: all that were recorded.
        fps: of the videos. Default: the run's own, or 8 where it has none.

    Returns:
        Lists over the steps: `step`, and where there is a scorer `solved`, `score` and `answer`.
    """
    steps = [int(s) for s in run["x0"].step.values] if steps is None else list(steps)
    said: dict[str, list[Any]] = {"step": steps, "solved": [], "score": [], "answer": []}
    rows, marks, sound = [], [], run.sound
    fps = fps or float(run["video"].attrs.get("rate", 8))
    for step in tqdm(steps, desc="decoding x0", leave=False, disable=len(steps) < 5):
        frames = decode(run["x0"].sel(step=step))
        heard = None
        if sound is not None and "x0_audio" in run.names:
            heard = decode(run["x0_audio"].sel(step=step)), sound[1]
        plot.write_video(frames, out / "x0" / f"step_{step:03d}.mp4", fps, heard)
        # A sheet shows a few frames: no more are held.
        rows.append(frames[_spread(len(frames), SHEET_FRAMES)])
        if sample.scorer is not None:
            score = sample.score(frames)
            for key in ("solved", "score", "answer"):
                said[key].append(getattr(score, key))
            marks.append(score.solved)
    video = run.video
    plot.write_video(video, out / "video.mp4", fps, sound)
    shown = _spread(len(video), SHEET_FRAMES)
    sigma = {int(s): float(v) for s, v in zip(run["x0"].step.values, run["x0"].sigma.values, strict=True)}
    figure = plot.contact_sheet(
        rows,
        [f"step {s}  \u03c3 {sigma[s]:.2f}" for s in steps],
        [f"frame {i}" for i in shown],
        title=f"What the model believed: x0 at every step \u00b7 {sample.task} {sample.id}",
        row_notes=[shorten(a) for a in said["answer"]] if marks else None,
        row_solved=marks or None,
        most_columns=None,
    )
    plot.save(figure, out / "steps.png")
    latents = run["latents"]
    plot.save(
        plot.schedule(latents.sigma.values, latents.timestep.values, [str(e) for e in latents.expert.values]),
        out / "schedule.png",
    )
    return {k: v for k, v in said.items() if v}


def held(
    run: Run,
    out: Path,
    steps: Iterable[int],
    layers: Iterable[int],
    branch: str | None = None,
    hidden: str = "hidden",
) -> list[Path]:
    """Write what the layers held: per (step, layer), per step, and per run.

    One PCA basis is fitted for each layer over all its recorded steps, so its colours compare across steps
    and frames.

    Args:
        run: with `energy` of all layers, and `hidden` of the chosen layers and steps.
        out: folder to write into.
        steps: steps to draw.
        layers: layers to draw.
        branch: guidance branch. Default: the first.
        hidden: name of the full states.

    Returns:
        The pictures written.
    """
    energy, states = run["energy"], run[hidden]
    branch = branch or str(energy.branch.values[0])
    energy, states = energy.sel(branch=branch).load(), states.sel(branch=branch)
    steps, layers = list(steps), list(layers)
    written = []

    def save(figure: Any, name: str) -> None:
        written.append(plot.save(figure, out / f"{name}.png"))

    save(plot.energy_vs_step(energy.sel(layer=layers)), "energy_vs_step")
    for layer in tqdm(layers, desc="layers", leave=False):
        save(
            plot.temporal_heatmap(analysis.temporal_energy(energy.sel(layer=layer))),
            f"layer_{layer:02d}/temporal",
        )
        colours = analysis.to_rgb(analysis.pca_maps(states.sel(layer=layer))["maps"])
        for step in steps:
            state, name = states.sel(layer=layer, step=step).load(), f"layer_{layer:02d}/step_{step:03d}"
            save(plot.energy_frames(energy.sel(layer=layer, step=step)), f"{name}_energy")
            save(plot.pca_frames(colours.sel(step=step)), f"{name}_pca")
            spatial = analysis.temporal_energy(energy.sel(layer=layer, step=step))
            save(plot.temporal_energy(spatial), f"{name}_temporal_energy")
            importance = analysis.channel_importance(state)
            save(plot.channel_importance(importance), f"{name}_channels")
            save(
                plot.top_channels(analysis.top_channels(state, importance=importance)), f"{name}_top_channels"
            )
    for step in steps:
        save(plot.energy_across_layers(energy.sel(step=step)), f"step_{step:03d}_energy_across_layers")
        save(plot.layer_grid(energy.sel(step=step), relative=True), f"step_{step:03d}_layer_grid")
    return written


def shorten(answer: str, length: int = 26) -> str:
    """Cut an answer to what fits beside a picture."""
    return answer if len(answer) <= length else answer[: length - 1] + "\u2026"


def _spread(count: int, most: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(most, count)).round()})
