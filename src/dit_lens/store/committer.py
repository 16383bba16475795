"""The background half of a writer: turn units into files, and files into commits, in one thread, in order."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from dit_lens.errors import StoreError
from dit_lens.store import files
from dit_lens.store.bfloat16 import survey, to_float16
from dit_lens.store.journal import Entry, Journal, UnitKey, unit_line
from dit_lens.store.layout import Variable
from dit_lens.store.shard import compressed_buffers, raw_buffers

_TOGETHER = 0.5
"""Seconds that a commit may be put off, so that a wait for the disk serves the steps of a fast model together."""


class _Written(NamedTuple):
    """A file that lies there as `*.partial`. Its step is None if it goes with whatever commit is next."""

    path: str
    step: int | None
    variable: Variable | None = None
    key: tuple[int, ...] = ()
    entry: Entry | None = None


class Committer:
    """Writes units to `*.partial` files, and at a commit makes them durable, names them and journals them.

    Args:
        folder: The run's folder.
        journal: Its journal, locked; the ledger in it is kept up to date.
        durable: Whether a commit waits for the disk.
        rests_on: Files and folders without which nobody finds the run; durable with the first commit.
    """

    def __init__(self, folder: str, journal: Journal, durable: bool, rests_on: Iterable[str] = ()) -> None:
        self._folder, self._journal, self._durable = folder, journal, durable
        self._pending: list[_Written] = []
        self._asked: dict[int, dict[str, Any]] = {}  # steps to commit, in order
        self._unsynced = set(rests_on) if durable else set()  # metadata that is not durable yet
        self._since: float | None = None  # when the first of them was asked for
        self._settling = False  # stays where a commit failed

    def write_unit(self, variable: Variable, key: tuple[int, ...], values: np.ndarray) -> None:
        """Write one unit's file, counting NaN and Inf and taking the crc32c of its values on the way."""
        values = np.ascontiguousarray(values)
        codes = variable.dtype == "bfloat16"
        if codes and variable.encoding == "float16":
            values, codes = to_float16(values), False
        crc, nan, inf = survey(values, codes)
        path = os.path.join(self._folder, variable.name, variable.chunk_name(key))
        size = math.prod(variable.inner_shape)
        if variable.compressed:
            nbytes = files.write_partial(path, compressed_buffers(values, size, variable.sharded))
        else:
            nbytes = files.write_partial(path, raw_buffers(values, size * values.itemsize, variable.sharded))
        entry = Entry(nbytes, crc, nan, inf)
        self._pending.append(_Written(path, key[0] if key else None, variable, key, entry))

    def write_plain(self, path: str, data: bytes) -> None:
        """Write a file that needs no line in the journal; it goes with the next commit."""
        files.write_partial(path, [data])
        self._pending.append(_Written(path, None))

    def write_metadata(self, changed: list[tuple[str, bytes]]) -> None:
        """Write metadata files, which units rest on: the next commit makes them durable."""
        for path, data in changed:
            folder = os.path.dirname(path)
            with suppress(FileExistsError):
                os.mkdir(folder)
            files.write_file(path, data, durable=False)
            if self._durable:
                self._unsynced |= {path, folder}

    def write_last(self, changed: list[tuple[str, bytes]]) -> None:
        """Write metadata files, in order, each durable before the next: the last of them says that the run is over."""
        for path, data in changed:
            files.write_file(path, data, self._durable)

    def commit(self, step: int, info: dict[str, Any], at: float) -> None:
        """Ask for a step to exist. `settle` does it, for several steps at once where they come fast.

        Args:
            step: The step.
            info: What else its journal line says.
            at: When that was asked for, on the monotonic clock.
        """
        self._asked[step] = info
        self._since = at if self._since is None else self._since

    def drop(self, step: int) -> None:
        """Remove the units of a step that is not asked for."""
        for unit in self._pending:
            if unit.step == step:
                files.remove_partial(unit.path)
        self._pending = [unit for unit in self._pending if unit.step != step]

    def due(self) -> float | None:
        """Return in how many seconds `settle` is to be called; None where no commit was asked for."""
        return None if self._since is None else max(0.0, self._since + _TOGETHER - time.monotonic())

    def settle(self) -> None:
        """Make the units of the steps asked for exist, and those of no step.

        Where this fails, it is never tried again: half of it may be done, and a disk that failed to write says so
        only once.

        Raises:
            StoreError: If it failed before, or the run's folder was removed.
            OSError: If the disk refuses.
        """
        if self._settling:
            raise StoreError(f"an earlier commit of {self._folder} failed")
        self._settling = True
        files.sync_files(sorted(self._unsynced))
        ready = [w for w in self._pending if w.step is None or w.step in self._asked]
        files.publish(list(dict.fromkeys(written.path for written in ready)), self._durable)
        self._pending = [w for w in self._pending if not (w.step is None or w.step in self._asked)]
        lines: list[dict[str, Any]] = []
        units: dict[UnitKey, Entry] = {}
        for step in (None, *self._asked):
            for written in ready:
                if written.step == step and (variable := written.variable) and written.entry:
                    at = dict(zip(variable.unit_dims, written.key, strict=True))
                    lines.append(unit_line(variable.name, at, written.entry))
                    units[variable.name, written.key] = written.entry
            if step is not None:
                lines.append({"step": step, **self._asked[step]})
        if lines:
            self._journal.append(lines)
        self._journal.ledger.units.update(units)
        self._journal.ledger.steps.update(self._asked)
        self._asked, self._unsynced, self._since = {}, set(), None
        self._settling = False

    def end(self) -> None:
        """Remove what was written and not committed, and let go of the run."""
        for written in self._pending:
            files.remove_partial(written.path)
        self._pending = []
        self._journal.close()
