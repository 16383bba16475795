"""Write what `evaluate.py` measured as tables of the card.

Usage:
    python training/card.py runs/evaluation/*.json --card docs/organism.md
    python training/card.py --seeds docs/organism/evaluation/full.json docs/organism/seeds/*.json --card docs/organism.md

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

RESULTS, SEEDS = ("<!-- results -->", "<!-- end -->"), ("<!-- seeds -->", "<!-- end of seeds -->")
"""Between what a table stands on the card."""


@dataclass
class Args:
    """What is written where."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Files of `evaluate.py`, one for each organism."""
    card: Path | None = None
    """Page whose tables, between marks such as `<!-- results -->` and `<!-- end -->`, are replaced. Default: printed."""
    seeds: tuple[Path, ...] = ()
    """Files of `evaluate.py` for seeds of training of one organism, seed 0 first: a table with a column for each."""


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


def seeds_table(results: list[dict[str, Any]]) -> str:
    """Return how often each seed of training answered right, as a table in markdown: rates with their intervals.

    Raises:
        ValueError: they were not asked the same.
    """
    if len({one["n"] for one in results}) > 1:
        raise ValueError(
            f"The seeds were asked {[one['n'] for one in results]} scenes a row: ask each the same."
        )
    heads = [f"seed {n}" for n in range(len(results))]
    lines = [
        f"n = {results[0]['n']} scenes a row and seed, the same ones\n",
        f"| scenes | run | {' | '.join(heads)} |",
        "|---|---|" + "---|" * len(heads),
    ]
    for name in [name for name in results[0]["sets"] if all(name in one["sets"] for one in results)]:
        for label in ("1 step", "20 steps"):
            shares = [rate(one["sets"][name][label]["answered"]) for one in results]
            cells = [
                f"{s['rate']:.2f} [{s['interval_95'][0]:.2f}, {s['interval_95'][1]:.2f}]" for s in shares
            ]
            lines.append(f"| {name} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _share(outcomes: list[int]) -> str:
    """Return a rate and its interval, as two cells."""
    share = rate(outcomes)
    low, high = share["interval_95"]
    return f"{share['rate']:.3f} | {low:.3f} to {high:.3f}"


def main(args: Args) -> None:
    """Make the tables."""
    texts = {}
    if args.results:
        texts[RESULTS] = "\n\n".join(table(json.loads(path.read_text())) for path in args.results)
    if args.seeds:
        texts[SEEDS] = seeds_table([json.loads(path.read_text()) for path in args.seeds])
    for (begin, end), text in texts.items():
        if args.card is None:
            print(text)
            continue
        before, _, rest = args.card.read_text().partition(begin)
        args.card.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main(tyro.cli(Args))
