"""A run that no store was asked for: in memory while it is small, on disk when somebody reads it.

Many such runs are never read, or only looked at for their video. Writing one takes about as long as twenty calls of a
small model.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dit_lens.store.arrays import Arrays
from dit_lens.store.coordinates import Coordinate, CoordLike
from dit_lens.store.layout import Variable
from dit_lens.store.metadata import Recorded, array_json, recorded_json
from dit_lens.store.writer import RunWriter

MOST_BYTES = 8 << 20
"""Bytes of units that stay in memory; a run of more is written as it goes."""


class Draft:
    """Takes what a `RunWriter` takes, and hands it to one when the run has become large, or is read.

    Args:
        path: The run's folder while it is written.
        coords: Coordinates of the run; see `RunWriter`.

    Attributes:
        nbytes: Bytes of the units that were taken.
    """

    def __init__(self, path: Path, coords: Mapping[str, CoordLike]) -> None:
        self._path, self._coords = path, coords
        known = {name: Coordinate.of(name, values).to_json() for name, values in coords.items()}
        self._arrays = Arrays("this run", known)
        self._calls: list[
            tuple[str, tuple[Any, ...]]
        ] = []  # of the writer's methods, as long as there is none
        self._writer: RunWriter | None = None
        self.nbytes = 0

    @property
    def is_written(self) -> bool:
        """Whether the run is written as it goes."""
        return self._writer is not None

    def declare(self, variable: Variable, recorded: Recorded | None = None) -> None:
        """See `RunWriter.declare`."""
        array = array_json(variable, recorded_json(variable, recorded))
        self._arrays.check(variable.name, array)
        self._arrays.setdefault(variable.name, array)
        self._call("declare", variable, recorded)

    def write(self, name: str, index: Mapping[str, int], values: np.ndarray) -> None:
        """See `RunWriter.write`."""
        self._call("write", name, index, values)
        self.nbytes += values.nbytes
        if self.nbytes > MOST_BYTES and self._writer is None:
            self._open()

    def set_coord(self, name: str, values: Any) -> None:
        """See `RunWriter.set_coord`."""
        self._call("set_coord", name, list(values))

    def set_recorded(self, name: str, recorded: Recorded) -> None:
        """See `RunWriter.set_recorded`."""
        self._call("set_recorded", name, recorded)

    def commit_step(self, step: int, info: Mapping[str, Any] | None = None) -> None:
        """See `RunWriter.commit_step`."""
        self._call("commit_step", step, info)

    def finish(self, manifest: Mapping[str, Any], path: Path) -> None:
        """Write the run, complete. Where that fails it can be tried again, unless the run was written as it went.

        Args:
            manifest: What made the run.
            path: Its folder from then on.

        Raises:
            StoreError: The run cannot be written.
        """
        was_written = self.is_written
        writer = self._writer or self._open()
        try:
            writer.describe(manifest)
            writer.close()
            self._path.rename(path)
        except BaseException:
            writer.abort()
            if not was_written:
                self._writer = None
            raise
        self._calls = []

    def abort(self) -> None:
        """Let go of the run."""
        self._calls = []
        if self._writer is not None:
            self._writer.abort()

    def _call(self, method: str, *arguments: Any) -> None:
        if self._writer is None:
            self._calls.append((method, arguments))
        else:
            getattr(self._writer, method)(*arguments)

    def _open(self) -> RunWriter:
        shutil.rmtree(self._path, ignore_errors=True)  # what an earlier try has left
        parent, name = self._path.parent, self._path.name
        writer = RunWriter(parent, name, {}, self._coords, durable=False, exclusive=False)
        for method, arguments in self._calls:
            getattr(writer, method)(*arguments)
        self._writer = writer
        return writer
