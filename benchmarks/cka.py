"""What does CKA cost? Ours against the n x n kernels that a user would write, interleaved in one run.

    python benchmarks/cka.py [--tokens 1560] [--channels 1024] [--rounds 5] [--out cka.json]
    python benchmarks/cka.py --tokens 32760 --channels 5120 --rounds 1    # one 14B state: minutes

Two synthetic float32 states that share some directions, with massive channels. Every arm of every round is a
process of its own, in a shuffled order; time and growth of memory are of the comparison alone, not of its
two inputs. Arms that would need more than `--most-gb` are not run. Set OMP_NUM_THREADS for the number of
threads; all arms use the same BLAS.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import xarray as xr

from arms import growth
from dit_lens.analysis.cka import cka, cka_pairs

BASE = "numpy n x n: debiased"
"""The arm that the others are divided by; ours, where it does not fit."""

OURS = "ours: cka, debiased"


@dataclass
class Options:
    """Options of the benchmark."""

    tokens: int = 1560
    channels: int = 1024
    rounds: int = 5
    most_gb: float = 4.0
    """Arms whose kernels alone take more than this are reported, not run."""
    arm: str | None = None
    """Run one arm once, and print its figures as JSON (used by the benchmark itself)."""
    out: Path | None = None


def numpy_debiased(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased HSIC from its definition, as it stands in most notebooks."""
    n = len(x)
    k, l = (v.astype(np.float64) for v in (x, y))  # noqa: E741
    k, l = k - k.mean(0), l - l.mean(0)  # noqa: E741
    k, l = k @ k.T, l @ l.T  # noqa: E741
    np.fill_diagonal(k, 0)
    np.fill_diagonal(l, 0)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        sums = a.sum() * b.sum() / ((n - 1) * (n - 2))
        return (a * b).sum() + sums - 2 / (n - 2) * (a.sum(0) @ b.sum(0))

    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def sklearn_biased(x: np.ndarray, y: np.ndarray) -> float:
    """Centred kernels by scikit-learn."""
    from sklearn.preprocessing import KernelCenterer

    k, l = (KernelCenterer().fit_transform(v @ v.T) for v in (x.astype(float), y.astype(float)))  # noqa: E741
    return (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())


def ours(x: np.ndarray, y: np.ndarray, debiased: bool = True) -> float:
    """As a user calls it, on a pair of states."""
    dims = ["frame", "y", "x", "channel"]
    x_state, y_state = (xr.DataArray(v[None, None], dims=dims) for v in (x, y))
    return float(cka(x_state, y_state, debiased=debiased))


ARMS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    BASE: numpy_debiased,
    "sklearn n x n: biased": sklearn_biased,
    OURS: ours,
    "ours: cka, biased": lambda x, y: ours(x, y, debiased=False),
    "ours: cka_pairs, debiased": lambda x, y: float(cka_pairs(x[None], y[None])[0]),
}


def states(tokens: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 states [token, channel] with 8 directions in common, and channels with massive means."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((tokens, 8), np.float32)
    pair = []
    for _ in range(2):
        state = rng.standard_normal((tokens, channels), np.float32)
        mixing = rng.standard_normal((8, channels), np.float32)
        for start in range(0, tokens, 1024):  # no second copy of a large state
            state[start : start + 1024] += common[start : start + 1024] @ mixing
        state[:, :: channels // 4] += 3000
        pair.append(state)
    return pair[0], pair[1]


def run_arm(options: Options) -> dict[str, float]:
    """Run one arm once; return its seconds, growth of memory in MB, and value."""
    work = ARMS[str(options.arm)]
    work(*states(64, 8))  # imports and threads are not counted
    x, y = states(options.tokens, options.channels)
    figures: dict[str, float] = {}

    def timed() -> None:
        start = time.perf_counter()
        figures["value"] = work(x, y)
        figures["seconds"] = time.perf_counter() - start

    figures["growth_MB"] = growth(timed)
    return figures


def measure(options: Options) -> dict[str, list[dict[str, float]]]:
    """Run the arms that fit, interleaved in a shuffled order, round after round."""
    fits = kernels_gb(options) <= options.most_gb
    # Where kernels do not fit the states are large, and ours runs as a user would run it: once.
    arms = list(ARMS) if fits else [OURS]
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for _ in range(options.rounds):
        for name in random.sample(arms, len(arms)):
            size = ["--tokens", str(options.tokens), "--channels", str(options.channels)]
            command = [sys.executable, __file__, "--arm", name, *size]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            figures[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    return figures


def kernels_gb(options: Options) -> float:
    """Return what two float64 kernels take; centring them takes copies, too."""
    return 2 * 8 * options.tokens**2 / 1e9


def rows(figures: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Summarise the rounds of every arm, as ratios within a round."""
    base = figures.get(BASE, figures[OURS])
    out = {}
    for name, rounds in figures.items():
        ratios = sorted(r["seconds"] / b["seconds"] for r, b in zip(rounds, base, strict=True))
        out[name] = {
            "median_s": statistics.median(r["seconds"] for r in rounds),
            "ratio_median": statistics.median(ratios),
            "ratio_min": ratios[0],
            "ratio_max": ratios[-1],
            "growth_MB": statistics.median(r["growth_MB"] for r in rounds),
            "value": rounds[0]["value"],
        }
    return out


def report(options: Options, table: dict[str, dict[str, float]]) -> None:
    """Print the table, and write it as JSON."""
    print(f"{options.tokens} tokens x {options.channels} channels; ratios of time to the first arm")
    print("| arm | median s | ratio | min | max | memory MB | CKA |\n|---|---|---|---|---|---|---|")
    for name in ARMS:
        if name in table:
            r = table[name]
            ratios = f"{r['ratio_median']:.3f} | {r['ratio_min']:.3f} | {r['ratio_max']:.3f}"
            print(f"| {name} | {r['median_s']:.3f} | {ratios} | {r['growth_MB']:.0f} | {r['value']:.12f} |")
        elif name != "ours: cka, biased":
            print(f"| {name} | | | | | needs {kernels_gb(options):.1f} GB for its kernels | |")
    if options.out:
        about: dict[str, Any] = {"command": " ".join(["python", *sys.argv])}
        about |= {"tokens": options.tokens, "channels": options.channels, "rounds": options.rounds}
        about |= {"threads": os.environ.get("OMP_NUM_THREADS"), "kernels_GB": kernels_gb(options)}
        options.out.write_text(json.dumps({**about, "arms": table}, indent=1) + "\n")


def main(options: Options) -> None:
    """Compare all arms; print a table; write JSON."""
    if options.arm:
        print(json.dumps(run_arm(options)))
        return
    report(options, rows(measure(options)))


if __name__ == "__main__":
    main(tyro.cli(Options))
