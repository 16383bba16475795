"""What a script leaves beside its results: `summary.json`, `manifest.json`, and what it says of failures."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from dit_lens.errors import DitLensError
from dit_lens.experiments.cache import save_json
from dit_lens.experiments.options import Options
from dit_lens.store import versions


def write_summary(
    options: Options,
    summary: Mapping[str, Any],
    left_out: Mapping[str, str],
    bootstrap: Mapping[str, Any] | None = None,
) -> None:
    """Write `summary.json` (headline numbers and the command) and `manifest.json` (settings and versions).

    Args:
        options: of the script; results go to `options.out`.
        summary: the headline numbers, as plain data.
        left_out: samples that were not measured, with the reason.
        bootstrap: how the intervals were made: the attributes of what `analysis.mean` or `analysis.effect` returned.
    """
    command = shlex.join(["python", *sys.argv])
    counted: dict[str, Any] = {"command": command, "samples left out": len(left_out)}
    if left_out:
        counted["left out"] = dict(left_out)
    settings = options.as_data | ({} if bootstrap is None else {"bootstrap": dict(bootstrap)})
    if not options.draws_scenes:
        settings["task"] = options.source
    manifest = {"command": command, "settings": settings, "versions": versions()}
    for name, data in (("summary", {**counted, **summary}), ("manifest", manifest)):
        save_json(data, options.out / f"{name}.json")


def report_failure(what: str, error: Exception) -> str:
    """Say on stderr that something failed, with the traceback where it is a bug; return the reason in one line."""
    ours = isinstance(error, DitLensError)
    reason = str(error) if ours else f"{type(error).__name__}: {error}"
    shown = reason if ours else "\n" + "".join(traceback.format_exception(error))
    tqdm.write(f"{what} failed: {shown}", file=sys.stderr)
    return reason


def rate(hits: Sequence[bool]) -> dict[str, Any]:
    """Return a rate with n and its Wilson 95% interval (Wilson 1927, by scipy)."""
    from scipy.stats import binomtest

    n, k = len(hits), int(sum(hits))
    if n == 0:
        return {"n": 0}
    interval = binomtest(k, n).proportion_ci(method="wilson")
    return {"n": n, "rate": k / n, "interval_95": [float(interval.low), float(interval.high)]}
