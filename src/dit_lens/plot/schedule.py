"""The noise schedule: how much noise is left at every denoising step, and how much each step removes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from dit_lens.errors import DitLensError
from dit_lens.plot.inputs import one_row
from dit_lens.plot.lines import curve_axes
from dit_lens.plot.style import BLUE, OKABE_ITO, SKY, new_figure, styled


@styled
def schedule(
    sigmas: ArrayLike,
    timesteps: ArrayLike | None = None,
    experts: Sequence[str] | None = None,
    final_sigma: float = 0.0,
    title: str = "Noise schedule",
) -> Figure:
    """Draw a noise schedule: σ, the timestep that the model is told, and the noise removed, by step.

    Args:
        sigmas: [step], noise levels in [0, 1], falling, such as `run["x0"].sigma`.
        timesteps: [step], in the model's unit (1000 σ for Wan). Default: not drawn.
        experts: which expert served each step, to colour the steps by.
        final_sigma: noise level after the last step.
        title: of the figure.

    Raises:
        DitLensError: there are other dimensions, the lengths differ, or a noise level is not finite.
    """
    sigma = one_row(sigmas, "sigmas", "schedule")
    time = None if timesteps is None else one_row(timesteps, "timesteps", "schedule")
    for name, values in (("timesteps", time), ("experts", experts)):
        if values is not None and len(values) != len(sigma):
            raise DitLensError(f"schedule: there are {len(sigma)} sigmas but {len(values)} {name}.")
    if len(sigma) == 0 or not np.isfinite(sigma).all():
        raise DitLensError("schedule: sigmas must be finite numbers, one per step; was the run recorded?")
    steps = np.arange(len(sigma))
    served = [str(name) for name in experts] if experts is not None else [""] * len(sigma)
    removed = sigma - np.append(sigma[1:], final_sigma)
    panels = [(sigma, "noise level σ (fraction of noise)")]
    panels += [] if time is None else [(time, "timestep (as the model is told)")]

    figure = new_figure(3.4 * (len(panels) + 1), 3.3, title)
    axes = figure.subplots(1, len(panels) + 1)
    for ax, (values, label) in zip(axes, panels, strict=False):
        ax.plot(steps, values, color=SKY, linewidth=1, zorder=1)
        for expert, colour in zip(dict.fromkeys(served), OKABE_ITO, strict=False):
            mine = np.array([s == expert for s in served])
            ax.plot(steps[mine], values[mine], "o", color=colour, markersize=3.5, label=expert or None)
        curve_axes(ax, "step", label)
        ax.set_ylim(bottom=0)
    if experts is not None:
        axes[0].legend(title="expert", alignment="left")
    axes[-1].bar(steps, removed, color=BLUE, width=0.8)
    curve_axes(axes[-1], "step", "noise removed by the step (drop of σ)")
    return figure
