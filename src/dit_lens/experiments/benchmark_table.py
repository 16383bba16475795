"""The paired table of a benchmark: every arm against one of them, of all samples, of each split and of each category.

Tasks are what is drawn, not samples: a sample counts within its task's mean, and intervals are over tasks. A video that the
evaluator gives no score is named, and left out of both arms of a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from dit_lens import analysis, plot
from dit_lens.experiments.benchmark_scores import scores
from dit_lens.experiments.options import ScoredOptions
from dit_lens.experiments.outcomes import headline

Row = dict[str, Any]
TEXT = np.dtypes.StringDType()


@dataclass(frozen=True)
class Report:
    """What a study says of a benchmark.

    Attributes:
        unscored: videos without a score, by arm and sample, with the reason.
        summary: what the summary says, the table and the unscored among it.
    """

    unscored: dict[str, dict[str, str]]
    summary: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """1 where a video has no score, else 0."""
        return int(bool(self.unscored))


def conclude(
    options: ScoredOptions,
    written: xr.DataArray,
    baseline: str,
    means: Mapping[str, Sequence[str]] | None = None,
    contrasts: Sequence[tuple[str, str]] = (),
    curves: Mapping[str, Mapping[str, Any]] | None = None,
) -> Report:
    """Let the official evaluator judge every arm; write the paired table as `vbvr.csv`, and draw it.

    Args:
        options: of the script.
        written: of `videos_of`, for all blocks, [sample, arm, seed].
        baseline: the arm that the others are compared with.
        means: arms that are averaged, by the name of their mean, which is one more arm of the table.
        contrasts: more comparisons, as (arm, against).
        curves: arms to draw, by the dimension along x, with the position of each. Default: all arms by their names.
    """
    judged = scores(options, written)
    arms = averaged(judged, means or {})
    rows = table(arms, baseline)
    for arm, against in contrasts:
        rows += [row for row in table(arms.sel(arm=[arm, against]), against) if row["arm"] == arm]
    _write(options, rows)
    for dim, places in (curves or {"arm": {arm: arm for arm in judged.arm.values.tolist()}}).items():
        _draw(options, rows, baseline, dim, places)
    reasons = {arm: _reasons(judged.error.sel(arm=arm)) for arm in judged.arm.values.tolist()}
    unscored = {arm: said for arm, said in reasons.items() if said}
    without = judged.sample.values[judged.category.values == ""].tolist()
    summary = {
        "judged by": {name: judged.attrs[name] for name in ("benchmark", "evaluator", "opencv")},
        "measure": judged.attrs["measure"],
        f"scores, against {baseline}": rows,
        "videos without a score": unscored,
        "samples without a category": without,
    }
    return Report(unscored, summary)


def averaged(judged: xr.Dataset, means: Mapping[str, Sequence[str]]) -> xr.Dataset:
    """Add means of arms as arms of their own; where one arm of a mean has no score, neither has the mean."""
    data = judged[["score", "frames"]]
    parts = [
        data.sel(arm=list(arms)).mean("arm", skipna=False).expand_dims(arm=np.array([name], TEXT))
        for name, arms in means.items()
    ]
    return xr.concat([data, *parts], "arm", data_vars="all", coords="minimal", compat="override")


def table(judged: xr.Dataset, baseline: str) -> list[Row]:
    """Compare every arm with one of them, paired by sample and seed.

    Args:
        judged: `score` [arm, seed, sample], and where it is known `frames`, with `split`, `task` and `category` on sample.
        baseline: the arm that the others are compared with.

    Returns:
        A row for each group and arm, as plain data. `samples` have a pair of scores at least; `without a score` counts the videos
        of the arm that are left out, as they or their partner have none. An interval takes two tasks; the baseline has none.
    """
    groups = {"all": np.ones(judged.sizes["sample"], bool)}
    for kind in ("split", "category"):
        values = judged[kind].values
        groups |= {f"{kind} {name}": values == name for name in dict.fromkeys(values.tolist()) if name}
    return [
        {"group": group, "arm": arm, "against": baseline, **_row(part, arm, baseline)}
        for group, inside in groups.items()
        for part in [judged.isel(sample=np.flatnonzero(inside))]
        for arm in judged.arm.values.tolist()
    ]


def _row(part: xr.Dataset, arm: str, baseline: str) -> Row:
    """Compare two arms by the videos of which both have a score."""
    values, base = (part.score.sel(arm=name, drop=True) for name in (arm, baseline))
    both = values.notnull() & base.notnull()
    has_pair = both.any("seed").values
    row: Row = {"samples": int(has_pair.sum()), "without a score": int((~both).sum())}
    if not row["samples"]:
        return row
    frames = part.frames.sel(arm=arm).where(both) if "frames" in part else None
    if frames is not None and bool(frames.notnull().any()):
        row["frames read"] = float(frames.mean())
    values, base = (
        _by_task(v.where(both).mean("seed").isel(sample=np.flatnonzero(has_pair))) for v in (values, base)
    )
    return row | _compared(values, base, is_baseline=arm == baseline)


def _by_task(values: xr.DataArray) -> xr.DataArray:
    """Return the mean of each task's samples; tasks of two splits are two."""
    names = [f"{s}/{t}" for s, t in zip(values.split.values, values.task.values, strict=True)]
    means = values.reset_coords(drop=True).assign_coords(sample=np.array(names, object))
    return means.groupby("sample").mean()


def _compared(values: xr.DataArray, base: xr.DataArray, is_baseline: bool) -> Row:
    row: Row = {
        "tasks": values.sizes["sample"],
        "score": float(values.mean()),
        "baseline": float(base.mean()),
        "difference": float((values - base).mean()),
    }
    if values.sizes["sample"] > 1 and not is_baseline:
        effect = headline(analysis.effect(values, base, bounds=(0, 1)))
        row |= {"low": effect["low"], "high": effect["high"]}
    return row


def _reasons(errors: xr.DataArray) -> dict[str, str]:
    """Return why videos of an arm have no score: by sample, of several seeds the first that has none."""
    return {
        str(label): next(str(error) for error in column if str(error))
        for label, column in zip(errors.sample.values, errors.transpose("sample", "seed").values, strict=True)
        if any(str(error) for error in column)
    }


def _write(options: ScoredOptions, rows: Sequence[Row]) -> None:
    import pandas as pd

    pd.DataFrame(list(rows)).to_csv(options.out / "vbvr.csv", index=False)


def _draw(
    options: ScoredOptions, rows: Sequence[Row], baseline: str, dim: str, places: Mapping[str, Any]
) -> None:
    """Draw how far the arms are from the baseline, over all samples; nothing where no arm has an interval."""
    shown = [
        row
        for row in rows
        if (row["group"], row["against"]) == ("all", baseline) and "low" in row and row["arm"] in places
    ]
    if not shown:
        return
    columns = {"effect": "difference", "low": "low", "high": "high"}
    positions = [places[row["arm"]] for row in shown]
    labels = np.array(positions, TEXT if isinstance(positions[0], str) else None)
    summary = xr.Dataset(
        {name: (dim, [row[column] for row in shown]) for name, column in columns.items()},
        {dim: labels},
        {"n_samples": min(row["tasks"] for row in shown), "n_seeds": 1, "level": 0.95},
    )
    title = f"Scores of the benchmark, n counts tasks · {options.source}"
    figure = plot.curves(summary, dim, value_label=f"score, minus {baseline}", title=title, marks=True)
    name = "vbvr_difference.png" if dim == "arm" else f"vbvr_difference_by_{dim}.png"
    plot.save(figure, options.out / name)


__all__ = ["Report", "averaged", "conclude", "table"]
