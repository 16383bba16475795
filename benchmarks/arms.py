"""The ways to capture that the benchmarks compare: what a user would otherwise do, and ours."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import quantile_test

import dit_lens as dl
from dit_lens.lens import Lens


class Arms:
    """Functions that generate one sample, each capturing in its way.

    Args:
        lens: the model.
        sample: what to generate.
        store: folder that stores are made in, on the disk where a user's would be.
        **options: of `lens.run`: steps, cfg_scale, ...
    """

    def __init__(self, lens: Lens, sample: dl.Sample, store: Path, **options: Any) -> None:
        self.lens, self.sample, self.store, self.options = lens, sample, store, options
        self.blocks = [block for dit in lens.dits.values() for block in lens.family.anatomy.block_list(dit)]

    def bare(self) -> Any:
        """The pipeline alone."""
        family, arguments = self.lens.family, dict(self.options)
        steps, cfg_scale = arguments.pop("steps"), arguments.pop("cfg_scale")
        keywords = family.call.arguments(self.sample, 0, steps, cfg_scale, arguments)
        undo = family.call.quiet(self.lens.pipe, keywords)
        try:
            return self.lens.pipe(**keywords)
        finally:
            undo()

    def hooked(self, keep: Callable[[Any], Any], branches: int = 1) -> list[Any]:
        """Plain hooks on every block, which keep something of each stream's output in memory, without labels.

        Args:
            keep: hidden state [row, token, channel] to the value that the hook keeps.
            branches: calls of a step. The first alone is kept, as in tools that drop the others.
        """
        values: list[Any] = []
        calls = [0] * len(self.blocks)
        carried = self.lens.family.anatomy.sites.values()
        sites = [sites["block"] for sites in carried if "block" in sites]

        def hook(n: int, output: Any) -> None:
            if calls[n] % branches == 0:
                values.extend(keep(site.of_output(output)) for site in sites)
            calls[n] += 1

        handles = [
            block.register_forward_hook(lambda _, __, output, n=n: hook(n, output))
            for n, block in enumerate(self.blocks)
        ]
        try:
            self.bare()
        finally:
            for handle in handles:
                handle.remove()
        return values

    def official(self, branches: int = 1) -> Any:
        """As released tools have them: every block's output off the device, as float32, in memory."""
        return self.hooked(lambda h: h.detach().cpu().float(), branches)

    def plain_energy(self) -> Any:
        """The energy of every block's tokens, in memory."""
        return self.hooked(lambda h: h.float().norm(dim=-1).cpu())

    def plain_files(self) -> Any:
        """Every block's output in a file of its own, without labels."""
        folder, number = Path(self._new_folder()), count()
        return self.hooked(lambda h: np.save(folder / f"{next(number)}.npy", h.detach().cpu().numpy()))

    def nnsight_cache(self) -> Any:
        """Nnsight's own cache of every block's output."""
        from dit_lens.engine.envoys import release, wrap

        root = self.lens.specimen.family.anatomy.root(self.lens.specimen.pipe)
        model = wrap(root)
        blocks = [model.dit.blocks[i] for i in range(self.lens.layers)]
        with model.trace(None, fn=lambda _: self.bare()) as tracer:
            cache = tracer.cache(modules=blocks)
        release(root)
        return cache

    def without_records(self) -> dl.Run:
        """A traced run that records nothing, without a store."""
        return self.lens.run(self.sample, 0, **self.options)

    def batch(self, seeds: int, steps: int) -> None:
        """Several seeds of the sample through the model together, without records."""
        options = self.options | {"steps": steps}
        batch = self.lens.batch([(self.sample, seed) for seed in range(seeds)], **options)
        latents = batch.noise
        for step in range(batch.steps):
            latents = batch.step(step, latents).latents

    def ours(self, record: list[Any]) -> dl.Run:
        """A traced run into a store."""
        run: dl.Run = self.lens.run(self.sample, 0, record=record, store=self._new_folder(), **self.options)
        return run

    def _new_folder(self) -> str:
        self.store.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(dir=self.store)


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return a median with its 95% interval, which takes nothing for granted of the distribution (order statistics)."""
    median = float(np.median(values))
    interval = quantile_test(values, q=median, p=0.5).confidence_interval(0.95)
    return median, float(interval.low), float(interval.high)


def growth(work: Callable[[], Any]) -> float:
    """Return by how much resident memory rises at most while something runs, in MB, sampled every 2 ms.

    Not the process's own maximum: importing the libraries takes more than a small run, and would hide it.
    """
    start, most, ended = resident(), [0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.002):
            most[0] = max(most[0], resident())

    watcher = threading.Thread(target=sample)
    watcher.start()
    values = work()
    most[0] = max(most[0], resident())
    ended.set()
    watcher.join()
    del values
    return (most[0] - start) / 1e6


def resident() -> int:
    """Return the resident memory of this process, in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def new_folder(folder: Path) -> None:
    """Refuse a folder that is there: it would be removed with all that is in it."""
    if folder.exists():
        raise SystemExit(
            f"--store {folder} is there, and would be removed in the end: give a folder that is not."
        )
