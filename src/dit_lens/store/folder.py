"""A run's folder while it is written: lock, attributes, metadata of its arrays. Made new or taken up."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dit_lens.errors import StoreError
from dit_lens.store import files, metadata
from dit_lens.store.coordinates import Coordinate
from dit_lens.store.journal import Journal
from dit_lens.store.layout import LAYOUT_VERSION
from dit_lens.store.manifest import identity_hash, plain
from dit_lens.store.metadata import Recorded


class RunFolder:
    """Holds a run's folder for one writer; arguments are those of `RunWriter`.

    Attributes:
        path: The folder.
        attrs: The group's attributes; `save` writes them.
        arrays: `zarr.json` of every array, by name.
        journal: The run's journal, locked.
    """

    def __init__(
        self,
        root: Path | str,
        name: str,
        manifest: Mapping[str, Any],
        coords: Mapping[str, Coordinate],
        durable: bool,
    ) -> None:
        if not name or name != os.path.basename(name) or name.startswith("."):
            raise StoreError(
                f"run name {name!r} is a folder's name: give one without '/' that does not begin with '.'"
            )
        self.path = str(Path(root) / name)
        self.attrs = _new_attrs(manifest, coords)
        self.arrays: dict[str, dict[str, Any]] = {}
        self._saved = False
        self._final: dict[str, dict[str, Any]] = {}  # arrays whose metadata changes when the run ends
        self._files: list[tuple[str, bytes]] = []  # to be written
        os.makedirs(self.path, exist_ok=True)
        if metadata.load_group(root) is None:
            _make_store(str(root))
        self.journal = Journal(self.path, durable)
        try:
            self._resume()
            self.journal.begin()
            for coord in coords.values():
                self._add_coord(coord)
        except BaseException:
            self.journal.close()
            raise

    def _resume(self) -> None:
        group = metadata.load_group(self.path)
        if group is None:
            return
        metadata.check_version(group, self.path)
        found, ours = group["attributes"], self.attrs["identity_sha256"]
        if (theirs := found["identity_sha256"]) != ours:
            raise StoreError(
                f"{self.path} holds a run of another manifest (sha256 {theirs[:10]}, this one {ours[:10]}); "
                "name runs with run_name(identity, prefix), so that two that differ never share a name"
            )
        if found["status"] == "complete":
            raise StoreError(
                f"{self.path} is complete: read it with open_run, or remove the folder to make it again"
            )
        for folder, _, names in os.walk(self.path):
            for leftover in (name for name in names if name.endswith(files.PARTIAL)):
                os.unlink(os.path.join(folder, leftover))
        self.attrs = found
        self.arrays = group["consolidated_metadata"]["metadata"]

    def _add_coord(self, coord: Coordinate) -> None:
        known = self.arrays.get(coord.name)
        self.declare(coord.name, coord.to_json())
        if known is None:
            chunk, data = coord.chunk()
            self._files.append((os.path.join(self.path, coord.name, chunk), data))

    def declare(self, name: str, array: dict[str, Any]) -> None:
        """Add an array; one that is there already must be the same.

        Raises:
            StoreError: If it differs, or its size along a dimension is not that of the run's other arrays.
        """
        if known := self.arrays.get(name):
            array = json.loads(metadata.array_bytes(array))
            if json.loads(metadata.array_bytes(known)) != array:
                raise StoreError(
                    f"{name} of {self.path} is declared already, and differs in {_difference(known, array)}; "
                    "give the second record another name"
                )
            return
        self._check_sizes(name, array)
        self._files.append((os.path.join(self.path, name, "zarr.json"), metadata.array_bytes(array)))
        self.arrays[name] = array
        self._saved = False

    def _check_sizes(self, name: str, array: Mapping[str, Any]) -> None:
        sizes = dict(zip(array["dimension_names"], array["shape"], strict=True))
        for other, known in self.arrays.items():
            for dim, size in zip(known["dimension_names"], known["shape"], strict=True):
                if sizes.get(dim, size) != size:
                    raise StoreError(
                        f"{name} has size {sizes[dim]} along {dim!r}, but {other} of {self.path} has {size}: "
                        "one size per dimension and run; give the full size, or the dimension another name"
                    )

    def size(self, dim: str) -> int:
        """Return the run's size along a dimension, 0 if no array has it."""
        for array in self.arrays.values():
            if dim in array["dimension_names"]:
                return array["shape"][array["dimension_names"].index(dim)]
        return 0

    def take_files(self) -> list[tuple[str, bytes]]:
        """Return the metadata files that are to be written before anything else, once: path and bytes."""
        if not self._saved:
            data = metadata.group_bytes(self.attrs, self.arrays)
            self._files.append((os.path.join(self.path, "zarr.json"), data))
            self._saved = True
        taken, self._files = self._files, []
        return taken

    def set_recorded(self, name: str, recorded: Recorded) -> None:
        """Say anew what was asked of an array; `finish` writes it.

        Until then the first word stands, so that an interrupted run is taken up with the same declaration.
        """
        array = self.arrays[name]
        variable = metadata.variable_of(name, array)
        assert variable is not None
        asked = {"recorded": metadata.recorded_json(variable, recorded)}
        self._final[name] = array | {"attributes": array["attributes"] | asked}

    def finish(self, status: str, nan: Mapping[str, int], inf: Mapping[str, int]) -> None:
        """Write the final attributes. Not waiting for the disk: all that they speak of is there."""
        for name, array in self._final.items():
            files.write_file(os.path.join(self.path, name, "zarr.json"), metadata.array_bytes(array), False)
            self.arrays[name] = array
        self.attrs |= {"status": status, "ended": _now(), "nan": dict(nan), "inf": dict(inf)}
        data = metadata.group_bytes(self.attrs, self.arrays)
        files.write_file(os.path.join(self.path, "zarr.json"), data, durable=False)


def _make_store(root: str) -> None:
    # Several writers may do this at once, so each has a file of its own to rename.
    mine, data = os.path.join(root, f"zarr.json.{uuid.uuid4().hex}"), metadata.group_bytes({}, None)
    files.write_file(mine, data, durable=False)
    os.replace(mine, os.path.join(root, "zarr.json"))


def _new_attrs(manifest: Mapping[str, Any], coords: Mapping[str, Coordinate]) -> dict[str, Any]:
    # CF's way to say which variables are coordinates though no dimension has their name.
    auxiliary = {name: coord for name, coord in coords.items() if coord.dims != (name,)}
    return {
        metadata.LAYOUT_ATTR: LAYOUT_VERSION,
        "status": "incomplete",
        "identity_sha256": identity_hash(manifest),
        "manifest": plain(manifest),
        "created": _now(),
    } | ({"coordinates": " ".join(auxiliary)} if auxiliary else {})


def _difference(known: Mapping[str, Any], array: Mapping[str, Any]) -> str:
    both = [known | known["attributes"], array | array["attributes"]]
    keys = [key for key in both[1] if key != "attributes" and both[0].get(key) != both[1][key]]
    return ", ".join(f"{key} ({both[0].get(key)} there, {both[1][key]} now)" for key in keys)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
