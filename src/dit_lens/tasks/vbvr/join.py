"""Scores joined to results, or to the runs of a store, by split, task and sample; what does not match is said."""

from __future__ import annotations

import json
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_lens.errors import TaskError

if TYPE_CHECKING:
    import xarray as xr


def join(results: xr.Dataset | xr.DataTree, scores: xr.Dataset, strict: bool = False) -> xr.Dataset:
    """Put scores beside results, or list runs with their scores, matched by split, task and sample.

    Args:
        results: a Dataset on `sample`, labelled `split/task/id` as the scripts in `analyses/` do; or the runs
            of a store, `dl.open_runs(...)`.
        scores: of `read_scores` or `score`.
        strict: what does not match is an error.

    Returns:
        The results with `vbvr_score`, `vbvr_error` and `vbvr_category` on `sample`; for runs a Dataset on `run`
        with these, `sample` and `seed`. Where there is no score for a sample, the score is NaN and the error
        says so. What did not match is in a warning, and in `attrs`: `without_score`, `without_result`.

    Raises:
        TaskError: nothing matches, results have no labels, or (`strict`) something does not match.
    """
    import xarray as xr

    data = _table_of_runs(results) if isinstance(results, xr.DataTree) else results
    if "sample" not in data.coords:
        raise TaskError(
            f"vbvr.join: the results have no coordinate `sample` (they have {', '.join(map(str, data.coords))}); "
            "label them split/task/id."
        )
    dims = data["sample"].dims
    labels = [str(label) for label in np.atleast_1d(data["sample"].values)]
    at = _matched(labels, [str(label) for label in scores["sample"].values])
    without_score = [label for label in dict.fromkeys(labels) if label not in at]
    without_result = [label for label in at if label not in set(labels)]
    _report(labels, without_score, without_result, list(at), strict)

    text = np.dtypes.StringDType()
    columns: dict[str, np.ndarray] = {
        "vbvr_score": np.array(
            [scores["score"].values[at[x]] if x in at else math.nan for x in labels], float
        ),
        "vbvr_error": np.array(
            [scores["error"].values[at[x]] if x in at else "no score" for x in labels], text
        ),
        "vbvr_category": np.array(
            [scores["category"].values[at[x]] if x in at else "" for x in labels], text
        ),
    }
    shape = data["sample"].shape
    joined = data.assign({name: (dims, values.reshape(shape)) for name, values in columns.items()})
    return joined.assign_attrs(
        vbvr_measure=scores.attrs.get("measure", "unknown"),
        without_score=without_score,
        without_result=without_result,
    )


def _matched(labels: list[str], scored: list[str]) -> dict[str, int]:
    """Return where the score of each label stands, and of each scored label that no result has.

    A folder `7` beside `00007` is another sample. Where only one of the two spellings occurs, they are one sample.
    """
    at = {label: i for i, label in enumerate(scored)}
    results = set(labels)
    by_number: dict[str, list[str]] = {}
    for label in at:
        by_number.setdefault(_numbered(label), []).append(label)
    wanted: dict[str, list[str]] = {}
    for label in results:
        wanted.setdefault(_numbered(label), []).append(label)
    for number, spellings in wanted.items():
        candidates = by_number.get(number, [])
        if len(spellings) == len(candidates) == 1 and spellings != candidates:
            at[spellings[0]] = at.pop(candidates[0])
    return at


def _numbered(label: str) -> str:
    """Return a label with the zeros before its number left out."""
    head, slash, name = label.rpartition("/")
    return f"{head}{slash}{int(name)}" if name.isascii() and name.isdigit() else label


def _report(
    labels: list[str], without_score: list[str], without_result: list[str], scored: list[str], strict: bool
) -> None:
    """Say what did not match; refuse where nothing did."""
    if len(without_score) == len(set(labels)):
        raise TaskError(
            f"vbvr.join: no sample matches. Results are labelled such as {labels[:1]}, scores {scored[:1]}; "
            "both must be split/task/id."
        )
    parts = [
        f"{len(which)} {what} (such as {which[0]})"
        for what, which in (
            ("results have no score", without_score),
            ("scores have no result", without_result),
        )
        if which
    ]
    if parts and strict:
        raise TaskError(f"vbvr.join: {'; '.join(parts)}. Score what is missing, or join with strict=False.")
    if parts:
        warnings.warn(f"vbvr.join: {'; '.join(parts)}", stacklevel=3)


def _identity(node: xr.DataTree) -> dict[str, Any]:
    """Return what names a run: of its manifest, which is JSON text in `dl.open_runs` and data in plain xarray."""
    manifest = node.attrs.get("manifest", node.attrs)
    if isinstance(manifest, str):
        manifest = json.loads(manifest)
    identity: dict[str, Any] = manifest.get("identity") or {}
    return identity


def _table_of_runs(runs: xr.DataTree) -> xr.Dataset:
    """List the runs of a store by the sample and the seed that their manifests name; runs of no sample are left out."""
    import xarray as xr

    rows = [
        (node.path.strip("/"), identity["sample"], identity["seed"])
        for node in runs.subtree
        if (identity := _identity(node)) and identity.get("sample")
    ]
    if not rows:
        raise TaskError("vbvr.join: the tree holds no runs. Give dl.open_runs(store).")
    text = np.dtypes.StringDType()
    return xr.Dataset(
        coords={
            "run": np.array([name for name, _, _ in rows], text),
            "sample": ("run", np.array([f"{s['task']}/{s['id']}" for _, s, _ in rows], text)),
            "seed": ("run", np.array([seed for _, _, seed in rows])),
        }
    )
