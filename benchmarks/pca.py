"""Which streamed PCA? Our covariance against scikit-learn's IncrementalPCA, randomised and full PCA.

    OMP_NUM_THREADS=1 python benchmarks/pca.py [--states 4] [--tokens 20000] [--channels 512] [--out pca.json]

Synthetic float32 states with a spectrum that falls off slowly after the 3 directions that are planted, and massive
channels. The streamed arms read a store one state at a time; full and randomised PCA hold all states. Every arm of
every round is a process of its own, in a shuffled order. The error is the largest principal angle between an arm's 3
directions and those of the full PCA in float64.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
import xarray as xr
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA, IncrementalPCA

from capture_overhead import growth
from dit_lens.analysis import pca_basis

WANTED = 3


@dataclass
class Options:
    """Options of the benchmark."""

    states: int = 4
    tokens: int = 20_000
    channels: int = 512
    batch: int = 2_000
    """Tokens in a batch of IncrementalPCA."""
    rounds: int = 3
    arm: str | None = None
    """Run one arm once, and print its figures as JSON (used by the benchmark itself)."""
    store: Path | None = None
    """Where the states are, for --arm."""
    out: Path | None = None


def write_states(options: Options, store: Path) -> None:
    """Write the states [step, frame, y, x, channel], a chunk each: the same directions in all, other tokens."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((options.channels, options.channels)))[0].astype(np.float32)
    spread = 4 / np.sqrt(1 + np.arange(options.channels, dtype=np.float32))
    spread[:WANTED] = 8, 6, 4.5
    for number in range(options.states):
        state = (rng.standard_normal((options.tokens, options.channels), np.float32) * spread) @ basis.T
        state[:, :: options.channels // 4] += 300
        data = xr.Dataset({"hidden": (DIMS, state[None, None, None])})
        data.to_zarr(store, **({"append_dim": "step"} if number else {"mode": "w"}), consolidated=False)


DIMS = ("step", "frame", "y", "x", "channel")


def ours(hidden: xr.DataArray, batch: int) -> np.ndarray:
    """Stream through `pca_basis`, a state at a time."""
    return pca_basis(hidden, WANTED)["components"].to_numpy()


def incremental(hidden: xr.DataArray, batch: int, components: int = WANTED) -> np.ndarray:
    """Stream through `IncrementalPCA`, a batch of tokens at a time."""
    pca = IncrementalPCA(components)
    for step in range(hidden.sizes["step"]):
        tokens = hidden.isel(step=step).to_numpy().reshape(-1, hidden.sizes["channel"])
        for start in range(0, len(tokens), batch):
            pca.partial_fit(tokens[start : start + batch])
    return pca.components_[:WANTED]


def whole(hidden: xr.DataArray, solver: str, kind: str) -> np.ndarray:
    """Hold all states, and fit once."""
    tokens = hidden.to_numpy().reshape(-1, hidden.sizes["channel"]).astype(kind)
    return PCA(WANTED, svd_solver=solver, random_state=0).fit(tokens).components_


FULL = "scikit-learn: PCA, full, float64"
OURS = "ours: covariance, streamed"
ARMS: dict[str, Callable[[xr.DataArray, int], np.ndarray]] = {
    FULL: lambda hidden, batch: whole(hidden, "full", "float64"),
    "scikit-learn: PCA, randomised, float32": lambda hidden, batch: whole(hidden, "randomized", "float32"),
    "scikit-learn: IncrementalPCA(3), streamed": incremental,
    "scikit-learn: IncrementalPCA(30), streamed": lambda hidden, batch: incremental(hidden, batch, 30),
    OURS: ours,
}


def run_arm(options: Options, name: str, store: Path) -> dict[str, object]:
    """Run one arm once; return its seconds, growth of memory in MB, and directions."""
    hidden = xr.open_zarr(store, consolidated=False, chunks=None).hidden
    small = hidden.isel(x=slice(64), channel=slice(40)).load()
    ARMS[name](small, 32)  # imports and threads are not counted
    figures: dict[str, object] = {}

    def timed() -> None:
        start = time.perf_counter()
        figures["directions"] = ARMS[name](hidden, options.batch).tolist()
        figures["seconds"] = time.perf_counter() - start

    figures["growth_MB"] = growth(timed)
    return figures


def main(options: Options) -> None:
    """Compare all arms; print a table; write JSON."""
    if options.arm:
        assert options.store is not None
        print(json.dumps(run_arm(options, options.arm, options.store)))
        return
    figures: dict[str, list[dict[str, object]]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "states.zarr"
        write_states(options, store)
        for _ in range(options.rounds):
            for name in random.sample(list(ARMS), len(ARMS)):
                command = [sys.executable, __file__, "--arm", name, "--store", str(store)]
                done = subprocess.run(
                    [*command, "--batch", str(options.batch)], stdout=subprocess.PIPE, text=True, check=True
                )
                figures[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
    true = np.array(figures[FULL][0]["directions"])
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{options.states} states of {options.tokens} x {options.channels}, float32; {threads} thread(s)")
    print("| arm | error, degrees | median s | memory, MB |\n|---|---|---|---|")
    table = {}
    for name, rounds in figures.items():
        angle = np.degrees(subspace_angles(true.T, np.array(rounds[0]["directions"]).T)).max()
        seconds, memory = (statistics.median(float(r[k]) for r in rounds) for k in ("seconds", "growth_MB"))
        table[name] = {"error_degrees": float(angle), "median_s": seconds, "growth_MB": memory}
        print(f"| {name} | {angle:.2g} | {seconds:.2f} | {memory:.0f} |")
    if options.out:
        about = {"command": " ".join(["python", *sys.argv]), "threads": threads, "rounds": options.rounds}
        sizes = {k: getattr(options, k) for k in ("states", "tokens", "channels", "batch")}
        options.out.write_text(json.dumps({**about, **sizes, "arms": table}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
