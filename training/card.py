"""Write what `evaluate.py` measured as tables of the card.

Usage: python training/card.py runs/evaluation/*.json --card docs/organism.md

Rates come with Wilson's 95% interval, graded scores with the bootstrap's over scenes (`dit_lens.analysis.statistics`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
import xarray as xr

from dit_lens.analysis.statistics import mean
from dit_lens.experiments.summary import rate

MARKS = "<!-- results -->", "<!-- end -->"


@dataclass
class Args:
    """What is written where."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files of `evaluate.py`."""
    card: Path | None = None
    """Page whose tables, between the marks `<!-- results -->` and `<!-- end -->`, are replaced. Default: printed."""


def table(results: dict[str, Any]) -> str:
    """Return the results of one organism as a table in markdown."""
    lines = [
        f"### `{results['organism']}`, n = {results['n']} scenes a row\n",
        "| scenes | run | answer right | 95% interval | solved | 95% interval | graded score | 95% interval |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, labels in results["sets"].items():
        for label, outcome in labels.items():
            graded = mean(xr.DataArray(outcome["score"], dims="sample"), bounds=(0.0, 1.0))
            middle, low, high = (float(graded[part]) for part in ("mean", "low", "high"))
            shares = f"{_share(outcome['answered'])} | {_share(outcome['solved'])}"
            lines.append(f"| {name} | {label} | {shares} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def _share(outcomes: list[int]) -> str:
    """Return a rate and its interval, as two cells."""
    share = rate(outcomes)
    low, high = share["interval_95"]
    return f"{share['rate']:.3f} | {low:.3f} to {high:.3f}"


def main(args: Args) -> None:
    """Make the tables."""
    text = "\n\n".join(table(json.loads(path.read_text())) for path in args.results)
    if args.card is None:
        print(text)
        return
    before, _, rest = args.card.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    args.card.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


if __name__ == "__main__":
    main(tyro.cli(Args))
