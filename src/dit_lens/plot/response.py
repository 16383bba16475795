"""What comes of a treatment against how much of it there was: a curve for each kind of treatment."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from dit_lens.errors import DitLensError
from dit_lens.plot.inputs import axis_label, centre_of, counted, labels_of, select
from dit_lens.plot.lines import MARKERS, line_colours, name_lines, reference_line
from dit_lens.plot.style import FAINT, MUTED, new_figure, styled

DECADE = 10.0
"""Ratio of the largest amount to the smallest one from which on amounts stand on a scale of their logarithms."""


@styled
def response(
    outcomes: xr.Dataset,
    amounts: xr.DataArray,
    along: str,
    *,
    value_label: str,
    amount_label: str,
    title: str,
    reference: float | xr.Dataset | None = None,
    reference_label: str = "clean",
) -> Figure:
    """Draw outcomes with their intervals against amounts, which may be others in every curve.

    A curve follows its treatment along `along`: from less of it to more, whatever that amounts to.

    Args:
        outcomes: [curve, along], what `analysis.mean` or `analysis.effect` returns.
        amounts: [curve, along], what each treatment amounts to; not below 0.
        along: the dimension of growing treatment.
        value_label: what the outcomes are, with their unit.
        amount_label: what the amounts are, with their unit.
        title: of the figure.
        reference: a value to compare with, or a summary without dimensions: a dashed line, with its interval.
        reference_label: what the reference is.

    Raises:
        DitLensError: a variable or attribute is missing, there are other dimensions, or the labels of both differ.
    """
    centre = centre_of(outcomes, "response")
    dim = next((str(d) for d in outcomes[centre].dims if d != along), None)
    if dim is None:
        raise DitLensError(f"response: the outcomes have no curves beside {along}; keep one dimension more.")
    middle, low, high = (select(outcomes[n], [dim, along], "response") for n in (centre, "low", "high"))
    x = select(amounts, [dim, along], "response").to_numpy()
    if any(labels_of(amounts, d) != labels_of(outcomes, d) for d in (dim, along)):
        raise DitLensError(f"response: outcomes and amounts have other labels of {dim} or {along}; select.")
    labels = labels_of(outcomes, dim)
    figure = new_figure(7.2, 4.0, title)
    ax = figure.subplots()
    for i, colour in enumerate(line_colours(labels)):
        ax.vlines(x[i], low[i], high[i], color=colour, linewidth=1.6, alpha=0.5)
        ax.plot(
            x[i], middle[i], color=colour, marker=MARKERS[i % len(MARKERS)], label=labels[i], markersize=4
        )
    if reference is not None:
        reference_line(ax, reference, reference_label, True, "response")
    ax.set(xlabel=amount_label, ylabel=value_label)
    if x.min() > 0 and x.max() >= DECADE * x.min():
        ax.set_xscale("log")
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    n = counted(outcomes.attrs["n_samples"], outcomes.attrs["n_seeds"])
    ax.set_title(f"{n}, {100 * outcomes.attrs['level']:g}% CI", loc="right", fontsize=8, color=MUTED)
    name_lines(figure, ax, axis_label(outcomes, dim), labels)
    return figure


__all__ = ["response"]
