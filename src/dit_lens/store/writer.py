"""Write one run: units go to a background thread, a step exists once committed, a run can be resumed."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dit_lens.errors import StoreError
from dit_lens.store.closing import Closing
from dit_lens.store.committer import Committer
from dit_lens.store.coordinates import Coordinate, CoordLike
from dit_lens.store.folder import RunFolder
from dit_lens.store.journal import UnitKey
from dit_lens.store.layout import Variable
from dit_lens.store.manifest import plain
from dit_lens.store.metadata import Recorded, array_json, recorded_json
from dit_lens.store.names import NAME_BYTES, absolute
from dit_lens.store.tenure import Tenure
from dit_lens.store.worker import Worker

_QUEUE_BYTES = 256 << 20


class RunWriter(Closing):
    """Writes one run of a store, or goes on with one that was interrupted.

    `write` and `commit_step` check their arguments and return; one background thread writes, in that order,
    and what goes wrong there is raised by the next call. Leaving the `with` block closes the run as complete,
    or, if the block raised, leaves it incomplete, with its committed steps readable. Not for use from two
    threads.

    Args:
        root: The store's folder; becomes a zarr group if it is none.
        name: The run's name; see `run_name`.
        manifest: Plain data: what made the run. Its `identity` (or all of it) must be the same on resume.
        coords: Coordinates by name: values, `(dims, values)` or `(dims, values, attrs)`; labels are strings.
        durable: Whether a commit waits (in the background) until the disk has it. Without, a power cut may
            spoil committed steps; a killed process does not.
        exclusive: Whether the run is locked. A folder that nobody else can know of needs no lock.
        lease: A lock that the caller holds, by `with lease:`, around all that it does with the writer. A run
            whose lease is let go is freed for the next try, even where an interrupt kept `close` and `abort` from
            being called. Default: the run is freed when the writer is closed, or no longer referenced.
        anew: Whether the steps that an interrupted writer has committed are given up, and the run begins again.

    Raises:
        DamageError: If a run stands there of which something is lost or changed, so that it can be neither read nor gone
            on with.
        StoreError: If the name is taken by a complete run, by one of another manifest or layout, or by one
            that another process is writing; if the folder cannot be written.

    Example:
        >>> coords = {"step": range(2), "sigma": ("step", [1.0, 0.5])}
        >>> with RunWriter(folder, "maze-1", {"seed": 1}, coords) as writer:
        ...     writer.declare(Variable("energy", ("step", "y", "x"), (2, 4, 4)))
        ...     for step in range(2):
        ...         writer.write("energy", {"step": step}, np.ones((4, 4), "float32"))
        ...         writer.commit_step(step)
    """

    def __init__(
        self,
        root: Path | str,
        name: str,
        manifest: Mapping[str, Any],
        coords: Mapping[str, CoordLike],
        *,
        durable: bool = True,
        exclusive: bool = True,
        lease: threading.Lock | None = None,
        anew: bool = False,
    ) -> None:
        self._closed = True  # until it is open
        parsed = {key: Coordinate.of(key, values) for key, values in coords.items()}
        path = _run_folder(root, name)
        self._tenure = Tenure(path, lease)
        try:
            self._folder = RunFolder(path, manifest, parsed, durable, self._tenure, exclusive, anew)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be opened for writing ({type(error).__name__}: {error}); mend that, or give another store"
            ) from error
        journal = self._folder.journal
        self._ledger = journal.ledger
        # Used by the thread alone, which frees the run when it ends, however it ends.
        self._committer = Committer(path, journal, durable, self._folder.rests_on)
        self._worker = Worker(
            _QUEUE_BYTES,
            self._committer.settle,
            self._committer.due,
            self._committer.end,
            partial(getattr, self._tenure, "wanted"),
        )
        self._tenure.worker = self._worker
        weakref.finalize(self, self._tenure.give_up).atexit = False
        self._variables: dict[str, Variable] = {}
        self._open: set[UnitKey] = set()  # units given since the last commit
        self._given = set(self._ledger.steps)  # steps whose commit was asked for
        self._save()
        self._closed = self._tenure.changing = False

    @property
    def path(self) -> Path:
        """The run's folder."""
        return Path(self._folder.path)

    def describe(self, manifest: Mapping[str, Any]) -> None:
        """Say anew what made the run, where that is known only in the end; `close` writes it."""
        self._check_open()
        self._folder.describe(manifest)

    @property
    def committed_steps(self) -> set[int]:
        """The steps that are on disk and stand in the journal; after resuming, those to leave out."""
        return set(self._ledger.steps)

    @property
    def words(self) -> dict[int, dict[str, Any]]:
        """What the journal says of each committed step: the `info` that it was committed with, and the writer's own."""
        return {step: dict(words) for step, words in self._ledger.steps.items()}

    def declare(self, variable: Variable, recorded: Recorded | None = None) -> None:
        """Add an array to the run; the same one again is fine.

        Args:
            variable: The array, on the run's full `step`, `branch` and `layer`.
            recorded: The positions that the plan asks for, e.g. {"step": [0, 1], "layer": [5]}; all of a
                dimension that it leaves out. A list of such dicts means their union. `status` says what is
                missing.

        Raises:
            StoreError: If it is declared otherwise already, or does not fit the run's coordinates.
        """
        self._check_open()
        array = array_json(variable, recorded_json(variable, recorded))
        self._folder.arrays.check(variable.name, array)
        self._tenure.changing = True
        self._folder.add(variable.name, array)
        self._variables[variable.name] = variable
        self._tenure.changing = False

    def write(self, name: str, index: Mapping[str, int], values: np.ndarray) -> None:
        """Give one unit to the background thread. The values are not copied: leave them alone from here on.

        Args:
            name: A declared variable.
            index: Positions on the variable's `unit_dims`: step, branch and layer; step; or nothing.
            values: Shape `unit_shape`; number type of the variable, for bfloat16 its codes as uint16.

        Raises:
            StoreError: If the unit, shape or number type is wrong, the unit was given before, its step is
                committed, or something given earlier could not be written.
        """
        self._check_open()
        if (variable := self._variables.get(name)) is None:
            raise StoreError(f"{name!r} is not declared in {self.path}; declared: {sorted(self._variables)}")
        key = variable.key(index)
        label = f"{name} at {dict(index)}"
        if values.shape != variable.unit_shape or values.dtype != variable.value_dtype:
            of = " (the codes of bfloat16)" if variable.dtype == "bfloat16" else ""
            raise StoreError(
                f"{label}: the values are {values.dtype} of shape {values.shape}; a unit of it is "
                f"{variable.value_dtype}{of} of shape {variable.unit_shape}"
            )
        if (name, key) in self._open or (key and key[0] in self._given):
            raise StoreError(
                f"{label} was written before; a unit is written once, before its step is committed"
            )
        task = partial(self._committer.write_unit, variable, key, values)
        self._tenure.changing = True
        self._save()
        self._worker.submit(task, values.nbytes, label)
        self._open.add((name, key))
        self._tenure.changing = False

    def drop_step(self, step: int) -> None:
        """Forget the units that were given of a step whose commit was not asked for: they are given anew.

        Raises:
            StoreError: If something given earlier could not be written.
        """
        self._check_open()
        units = {unit for unit in self._open if unit[1] and unit[1][0] == step}
        if not units:
            return
        self._tenure.changing = True
        self._worker.submit(partial(self._committer.drop, step), 0, f"dropping step {step}")
        self._open -= units
        self._tenure.changing = False

    def set_coord(self, name: str, values: Any) -> None:
        """Replace a coordinate's values, e.g. the `expert` of each step, with the next commit or `close`.

        Raises:
            StoreError: If the run has no such coordinate of this shape and kind.
        """
        self._check_open()
        known = self._folder.arrays.get(name)
        if known is None or name in self._variables:
            raise StoreError(f"{self.path} has no coordinate {name!r}; give it when the writer is made")
        coord = Coordinate.of(name, (known["dimension_names"], values))
        now = coord.to_json()
        if any(now[field] != known[field] for field in ("shape", "data_type")):
            raise StoreError(
                f"coordinate {name} of {self.path} is {known['data_type']} of shape {known['shape']}, "
                f"its new values are {now['data_type']} of shape {now['shape']}; give as many of that kind"
            )
        self._tenure.changing = True
        path, data = self._folder.set_coord(coord)
        task = partial(self._committer.write_plain, path, data)
        self._save()
        self._worker.submit(task, len(data), f"coordinate {name}")
        self._tenure.changing = False

    def set_recorded(self, name: str, recorded: Recorded) -> None:
        """Replace the recorded positions of a variable, where they are known only at the end; `close` writes them.

        Args:
            name: A variable of the run.
            recorded: As in `declare`.

        Raises:
            StoreError: If the run has no such variable, or has not those positions.
        """
        self._check_open()
        if "commit_unit" not in self._folder.arrays.get(name, {}).get("attributes", {}):
            raise StoreError(f"{self.path} has no variable {name!r}; declare it first")
        self._folder.set_recorded(name, recorded)

    def commit_step(self, step: int, info: Mapping[str, Any] | None = None) -> None:
        """Make a step exist: once all of it is on disk, its lines go into the journal. Returns before that.

        The disk is asked for it half a second later at the latest, or when the writer is flushed or closed.

        Args:
            step: Position on the step dimension.
            info: Plain data to stand in the step's journal line, e.g. sigma, timestep, expert.

        Raises:
            StoreError: If the step is committed already, or something given earlier could not be written.
        """
        self._check_open()
        steps = self._folder.arrays.size("step")
        if not 0 <= step < steps:
            raise StoreError(f"step {step} is not in 0..{steps - 1}, the steps of {self.path}")
        if step in self._given:
            raise StoreError(
                f"step {step} of {self.path} is committed already; on resume, skip committed_steps"
            )
        words = plain(dict(info or {}), "info")
        task = partial(self._committer.commit, int(step), words, time.monotonic())
        self._tenure.changing = True
        self._save()
        self._worker.submit(task, 0, f"commit of step {step}")
        self._given.add(int(step))
        self._open = {unit for unit in self._open if unit[1] and unit[1][0] != step}
        self._tenure.changing = False

    def flush(self) -> None:
        """Return when all that was given so far is written, and committed where that was asked for.

        Raises:
            StoreError: If some of it could not be written.
        """
        self._check_open()
        self._tenure.changing = True
        self._save()
        self._worker.submit(self._committer.settle, 0, "commit")
        self._worker.join()
        self._tenure.changing = False

    def _save(self) -> None:
        if not self._folder.is_saved:
            changed = self._folder.take_files()
            self._worker.submit(partial(self._committer.write_metadata, changed), 0, "metadata")

    def close(self, status: str = "complete") -> None:
        """Write what waits, then the status, the time and the totals. Closing again does nothing.

        Raises:
            StoreError: If something could not be written, or units were written whose step was not committed;
                the run then stays incomplete.
        """
        if self._closed:
            return
        try:
            self._check_open()
            if lost := sorted({key[0] for _, key in self._open if key}):
                self._worker.join()  # what went wrong there comes first
                raise StoreError(
                    f"{self.path}: units of steps {lost} were written; call commit_step for them"
                )
            self._tenure.changing = True
            self._save()
            self._worker.submit(partial(self._end, status), 0, "end of the run")
            self._worker.stop()
            self._worker.join()  # raises what went wrong
        finally:
            self.abort()

    def _end(self, status: str) -> None:
        """Make the run say that it is over, in the thread: after all data, and after the journal."""
        self._committer.settle()
        self._committer.write_last(self._folder.final_files(status))

    def abort(self) -> None:
        """Stop, and leave the run incomplete: commits that were asked for are done, the rest is removed."""
        if self._closed:
            return
        self._tenure.changing = True
        self._worker.stop()
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(
                f"the writer of {self.path} is closed; make a new RunWriter to go on with the run"
            )
        if self._tenure.changing:
            self._worker.check()
            raise StoreError(
                f"a call of the writer of {self.path} was interrupted, so nobody knows what it has written: abort it, and "
                "make a new RunWriter to go on with the run"
            )


def _run_folder(root: Path | str, name: str) -> str:
    """Return the folder of a run, the same for every way in which the store can be named.

    Raises:
        StoreError: If the name is no folder's name.
    """
    if not name or name != os.path.basename(name) or name.startswith(".") or "\0" in name:
        raise StoreError(
            f"run name {name!r} is a folder's name: give one without '/' that does not begin with '.'"
        )
    if len(os.fsencode(name)) > NAME_BYTES:
        raise StoreError(
            f"run name {name[:40]!r}... has over {NAME_BYTES} bytes: make it with run_name, which cuts it"
        )
    return os.path.join(os.path.realpath(absolute(root)), name)
