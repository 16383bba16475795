"""The background half of a writer: turn units into files, and files into commits, in one thread, in order."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from dit_lens.store import files
from dit_lens.store.bfloat16 import survey, to_float16
from dit_lens.store.journal import Entry, Journal, UnitKey, unit_line
from dit_lens.store.layout import Variable
from dit_lens.store.shard import compressed_buffers, raw_buffers


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
    """

    def __init__(self, folder: str, journal: Journal, durable: bool) -> None:
        self._folder, self._journal, self._durable = folder, journal, durable
        self._pending: list[_Written] = []

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

    def commit(self, step: int | None, info: dict[str, Any], unsynced: list[str]) -> None:
        """Make the units of a step exist, and those of no step; only the latter if `step` is None.

        Args:
            step: The step.
            info: What else its journal line says.
            unsynced: Files and folders on which the units rest, and which are not durable yet.
        """
        files.sync_files(unsynced)
        ready = [written for written in self._pending if written.step in (None, step)]
        files.publish(list(dict.fromkeys(written.path for written in ready)), self._durable)
        self._pending = [written for written in self._pending if written.step not in (None, step)]
        lines = [] if step is None else [{"step": step, **info}]
        units: dict[UnitKey, Entry] = {}
        for written in ready:
            if (variable := written.variable) and written.entry:
                at = dict(zip(variable.unit_dims, written.key, strict=True))
                lines.insert(len(units), unit_line(variable.name, at, written.entry))
                units[variable.name, written.key] = written.entry
        if lines:
            self._journal.append(lines)
        self._journal.ledger.units.update(units)
        if step is not None:
            self._journal.ledger.steps[step] = info

    def discard(self) -> None:
        """Remove what was written and not committed."""
        for written in self._pending:
            with suppress(FileNotFoundError):
                os.unlink(written.path + files.PARTIAL)
        self._pending = []
