"""A run's folder while it is written: lock, attributes, metadata of its arrays. Made new or taken up."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from dit_lens.errors import REMEDY, DamageError, StoreError
from dit_lens.store import checksums, files, metadata
from dit_lens.store.arrays import Arrays
from dit_lens.store.coordinates import Coordinate
from dit_lens.store.journal import Journal
from dit_lens.store.layout import LAYOUT_VERSION
from dit_lens.store.manifest import plain, plain_hash
from dit_lens.store.metadata import Recorded
from dit_lens.store.stored import Stored
from dit_lens.store.tenure import Tenure


class RunFolder:
    """Holds a run's folder for one writer; arguments are those of `RunWriter`.

    Attributes:
        path: The folder.
        attrs: The group's attributes.
        arrays: `zarr.json` of every array, by name.
        journal: The run's journal, locked.
        rests_on: Files and folders without which nobody finds the run.
    """

    def __init__(
        self,
        path: str,
        manifest: Mapping[str, Any],
        coords: Mapping[str, Coordinate],
        durable: bool,
        tenure: Tenure,
        exclusive: bool,
        anew: bool = False,
    ) -> None:
        self.path = path
        self.attrs = _new_attrs(manifest, coords)
        self.arrays = Arrays(path)
        self._saved = False
        self._final: dict[str, dict[str, Any]] = {}  # arrays whose metadata changes when the run ends
        self._files: list[tuple[str, bytes]] = []  # to be written
        self._written: set[str] = set()  # coordinates that lie there, durable
        self._sums: dict[str, list[str]] = {}  # of the coordinates' files, what each is to be in the end last
        root = os.path.dirname(path)
        self.rests_on = {path, root, os.path.join(root, metadata.FILE), *_parents_of_new(path)}
        os.makedirs(path, exist_ok=True)
        _ensure_store(root)
        self.journal = Journal(path, durable, tenure, exclusive)
        try:
            self._resume(anew)
            self.journal.begin()
            for coord in coords.values():
                self._add_coord(coord)
        except BaseException:
            self.journal.close()
            raise

    def _resume(self, anew: bool) -> None:
        """Take up what another writer left, if that is this run. Where nothing of it is committed, nothing of it counts."""
        ledger = self.journal.ledger
        committed = bool(ledger.steps or ledger.units)
        if not committed and _is_torn(os.path.join(self.path, metadata.FILE)):
            return
        group = metadata.load_run_group(self.path)
        if group is None:
            if committed:
                raise DamageError(
                    f"{self.path} has lost its {metadata.FILE}, which says what its arrays are; {REMEDY}"
                )
            return
        stored = Stored.of(self.path, group)
        self._check_taken(stored)
        if anew or not committed:
            self.journal.forget()
            self._clear()
            return
        self._check_whole(stored)
        for folder, _, names in os.walk(self.path):
            for leftover in (name for name in names if name.endswith(files.PARTIAL)):
                os.unlink(os.path.join(folder, leftover))
        self.attrs = stored.attrs
        self.arrays = Arrays(self.path, stored.arrays)
        self._written = set(self.arrays)
        # All of them once more: one may be lost.
        self._files = [self._array_file(name, array) for name, array in self.arrays.items()]
        self._sums = stored.coordinate_checksums()

    def _check_taken(self, stored: Stored) -> None:
        """Refuse a folder that holds another run, or this one complete."""
        there, asked_for = stored.attrs["identity_sha256"], self.attrs["identity_sha256"]
        if there != asked_for:
            raise StoreError(
                f"{self.path} holds a run of another manifest (sha256 {there[:10]}, this one {asked_for[:10]}); "
                "name runs with run_name(identity, prefix), so that two that differ never share a name"
            )
        if stored.is_complete:
            self._check_whole(stored)
            raise StoreError(
                f"{self.path} is complete: read it with open_run, or remove the folder to make it again"
            )

    def _check_whole(self, stored: Stored) -> None:
        stored.refuse_rewritten()
        if flaw := stored.flaw():
            raise DamageError(f"{self.path} is damaged: {flaw}; {REMEDY}")

    def _clear(self) -> None:
        """Remove the arrays of a run of which nothing is committed."""
        with os.scandir(self.path) as entries:
            folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        for folder in folders:
            shutil.rmtree(folder)

    def _add_coord(self, coord: Coordinate) -> None:
        array = coord.to_json()
        self.arrays.check(coord.name, array)
        self.add(coord.name, array)
        if coord.name not in self._written:
            chunk, data = coord.chunk()
            self._files.append((os.path.join(self.path, coord.name, chunk), data))
            self._sums[f"{coord.name}/{chunk}"] = [checksums.crc32c(data)]

    def set_coord(self, coord: Coordinate) -> tuple[str, bytes]:
        """Return the file of a coordinate's new values, and its bytes: to be written after `take_files`.

        Until the run ends, its metadata has the checksums of all values that the coordinate had: no moment at which a process may
        be killed has values without theirs.
        """
        chunk, data = coord.chunk()
        sums, now = self._sums[f"{coord.name}/{chunk}"], checksums.crc32c(data)
        if now in sums:
            sums.remove(now)
        else:
            self._saved = False
        sums.append(now)
        return os.path.join(self.path, coord.name, chunk), data

    def add(self, name: str, array: dict[str, Any]) -> None:
        """Add an array that was checked, unless it is there."""
        if name not in self.arrays:
            self._files.append(self._array_file(name, array))
            self.arrays[name] = array
            self._saved = False

    def _array_file(self, name: str, array: Mapping[str, Any]) -> tuple[str, bytes]:
        return os.path.join(self.path, name, metadata.FILE), metadata.array_bytes(array)

    def describe(self, manifest: Mapping[str, Any]) -> None:
        """Say anew what made the run; the last files say it."""
        self.attrs |= _described(manifest)

    @property
    def is_saved(self) -> bool:
        """Whether no metadata is to be written."""
        return self._saved and not self._files

    def take_files(self) -> list[tuple[str, bytes]]:
        """Return the metadata files that are to be written before anything else, once: path and bytes."""
        if not self._saved:
            data = metadata.run_bytes(self.attrs, self.arrays, self._sums)
            self._files.append((os.path.join(self.path, metadata.FILE), data))
            self._saved = True
        taken, self._files = self._files, []
        return taken

    def set_recorded(self, name: str, recorded: Recorded) -> None:
        """Say anew what was asked of an array; `final_files` has it.

        Until then the first word stands, so that an interrupted run is taken up with the same declaration.
        """
        array = self.arrays[name]
        variable = metadata.variable_of(name, array)
        assert variable is not None
        attributes = {"recorded": metadata.recorded_json(variable, recorded)}
        self._final[name] = array | {"attributes": array["attributes"] | attributes}

    def final_files(self, status: str) -> list[tuple[str, bytes]]:
        """Return the metadata files that end the run, path and bytes, the one that says so last.

        All that they speak of has to be on disk before they are.
        """
        ledger, changed = self.journal.ledger, []
        for name, array in self._final.items():
            self.arrays[name] = array
            changed.append(self._array_file(name, array))
        self.attrs |= {
            "status": status,
            "ended": _now(),
            "nan": ledger.totals("nan"),
            "inf": ledger.totals("inf"),
            "journal": self.journal.seal(),
        }
        data = metadata.run_bytes(self.attrs, self.arrays, {f: sums[-1:] for f, sums in self._sums.items()})
        return [*changed, (os.path.join(self.path, metadata.FILE), data)]


def _parents_of_new(path: str) -> list[str]:
    """Return the folders that get a new name in them when a folder is made with its parents."""
    parents = []
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
        parents.append(path)
    return parents


def _ensure_store(root: str) -> None:
    """Make a folder a zarr group, unless it is one.

    Raises:
        StoreError: If it is a run, an array or something else that is not to be written over.
    """
    file = os.path.join(root, metadata.FILE)
    group = None if _is_torn(file) else metadata.load_any(root)
    if group is not None and group["node_type"] == "array":
        raise StoreError(f"{root} is a zarr array, not a folder of runs; give another folder as the store")
    if group is None:
        # Several writers may do this at once, so each has a file of its own to rename.
        aside, data = f"{file}.{uuid.uuid4().hex}", metadata.store_bytes()
        files.write_file(aside, data, durable=False)
        try:
            os.replace(aside, file)
        except BaseException:
            with suppress(OSError):
                os.unlink(aside)
            raise
    elif metadata.LAYOUT_ATTR in group["attributes"]:
        raise StoreError(f"{root} is a run; give the folder that holds it as the store")


def _is_torn(file: str) -> bool:
    """Return whether a file is what a power cut leaves of one that was not durable: there is nothing in it to lose."""
    return os.path.isfile(file) and not files.read_file(file).strip(b"\0")


def _described(manifest: Mapping[str, Any]) -> dict[str, Any]:
    data = plain(manifest)
    return {"identity_sha256": plain_hash(data), "manifest": data}


def _new_attrs(manifest: Mapping[str, Any], coords: Mapping[str, Coordinate]) -> dict[str, Any]:
    # CF's way to say which variables are coordinates though no dimension has their name.
    auxiliary = {name: coord for name, coord in coords.items() if coord.dims != (name,)}
    return {
        metadata.LAYOUT_ATTR: LAYOUT_VERSION,
        "status": "incomplete",
        **_described(manifest),
        "created": _now(),
    } | ({"coordinates": " ".join(auxiliary)} if auxiliary else {})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
