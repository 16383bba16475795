"""A run's place while it is written: its own folder, or, where what stands there is not to be gone on with, one beside it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from dit_lens.errors import DamageError
from dit_lens.store.aside import Aside
from dit_lens.store.closing import Closing
from dit_lens.store.writer import RunWriter


class RunPlace(Closing):
    """Where a run is written. A damaged run stands until the new one is complete, which then takes its place.

    Args:
        path: The run's folder.
        make: Makes a writer of a folder; takes its parent, its name, and `anew` (see `RunWriter`).
        beside: Whether the run is made again, whatever stands in the folder.

    Attributes:
        path: The run's folder.
    """

    def __init__(self, path: Path, make: Callable[..., RunWriter], beside: bool = False) -> None:
        self.path, self._make, self._beside = path, make, beside
        self._aside: Aside | None = None
        self._writer: RunWriter | None = None

    @property
    def writer(self) -> RunWriter:
        """Writes the run; there once the place is open."""
        assert self._writer is not None
        return self._writer

    def open(self, anew: bool = False) -> RunWriter:
        """Return a writer of the run. Opening again lets go of the one before.

        Args:
            anew: Whether the steps that an interrupted writer has committed are given up.

        Raises:
            StoreError: The run cannot be written, or stands there complete.
        """
        if self._writer is not None:
            self._writer.abort()
        if not self._beside:
            try:
                self._writer = self._make(self.path.parent, self.path.name, anew=anew)
                return self._writer
            except DamageError as error:
                warnings.warn(f"a damaged run is made again: {error}", stacklevel=2)
                self._beside = True
        self._aside = self._aside or Aside(self.path)
        folder = self._aside.folder
        self._writer = self._make(folder.parent, folder.name, anew=anew)
        return self._writer

    def close(self) -> Path:
        """Complete the run; return where it stands. Closing again does nothing."""
        self.writer.close()
        return self.path if self._aside is None else self._aside.take_place()

    def abort(self) -> None:
        """Let go of the run; it stays incomplete where it is not closed."""
        if self._writer is not None:
            self._writer.abort()
        if self._aside is not None:
            self._aside.give_up()
