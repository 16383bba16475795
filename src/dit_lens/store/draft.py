"""A run that no store was asked for: in memory while it is small, on disk when somebody reads it.

Many such runs are never read, or only looked at for their video. Writing one takes about as long as twenty calls of a
small model.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from dit_lens.errors import StoreError
from dit_lens.store.arrays import Arrays
from dit_lens.store.bfloat16 import to_float16
from dit_lens.store.coordinates import Coordinate, CoordLike
from dit_lens.store.layout import Variable
from dit_lens.store.metadata import Recorded, array_json, recorded_json
from dit_lens.store.writer import RunWriter

MOST_BYTES = 8 << 20
"""Bytes of units that stay in memory; a run of more is written as it goes."""


class Draft:
    """Takes what a `RunWriter` takes, and hands it to one when the run has become large, or is read.

    Args:
        path: The run's folder while it is written; a number is added to its name.
        coords: Coordinates of the run; see `RunWriter`.

    Attributes:
        nbytes: Bytes of the units that were taken.
    """

    def __init__(self, path: Path, coords: Mapping[str, CoordLike]) -> None:
        self._path, self._coords = path, coords
        known = {name: Coordinate.of(name, values).to_json() for name, values in coords.items()}
        self._arrays = Arrays("this run", known)
        # Calls of the writer's methods, as long as there is none.
        self._calls: list[tuple[str, tuple[Any, ...]]] = []
        self._writer: RunWriter | None = None
        self._tries = count()
        self._variables: dict[str, Variable] = {}
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
        self._variables[variable.name] = variable
        self._call("declare", variable, recorded)

    def write(self, name: str, index: Mapping[str, int], values: np.ndarray) -> None:
        """See `RunWriter.write`."""
        if self._writer is None and self._variables[name].encoding == "float16":
            to_float16(values)  # refuses what does not fit: now, not when somebody reads
        self._call("write", name, index, values)
        self.nbytes += values.nbytes
        if self.nbytes > MOST_BYTES and self._writer is None:
            self._writer, self._calls = self._replayed(), []

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
        if path.exists():
            return  # an earlier try was interrupted when all was done
        writer = self._writer or self._replayed()
        try:
            writer.describe(manifest)
            writer.close()
            writer.path.rename(path)
        except OSError as error:
            raise StoreError(f"{writer.path} cannot be written: {error}") from error
        finally:
            writer.abort()

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

    def _replayed(self) -> RunWriter:
        """Return a writer that was told all that was told so far, in a folder that no earlier try has touched."""
        name = f"{self._path.name}-{next(self._tries)}"
        writer = RunWriter(self._path.parent, name, {}, self._coords, durable=False, exclusive=False)
        for method, arguments in self._calls:
            getattr(writer, method)(*arguments)
        return writer
