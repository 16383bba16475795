"""A run as it lies on disk: its metadata, its journal, and what is not as it was written. No unit is read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dit_lens.errors import StoreError
from dit_lens.store import checksums, files, journal
from dit_lens.store.coordinates import chunk_name
from dit_lens.store.layout import Variable
from dit_lens.store.metadata import FILE, units_asked, variable_of

_REWRITTEN = f"is not what the run's {FILE} says of it"


@dataclass(frozen=True)
class Stored:
    """A run's metadata and journal, as they lie on disk.

    Attributes:
        path: The run's folder.
        variables: By name.
        arrays: `zarr.json` of every array, coordinates included.
        attrs: The group's attributes, its checksums aside.
        checksums: By file, those of which it has one; none in a run of an early version.
        ledger: What the journal says.
        damage: What is wrong with the journal of a complete run; "" where it is whole, or the run is not complete.
    """

    path: str
    variables: dict[str, Variable]
    arrays: dict[str, Any]
    attrs: dict[str, Any]
    checksums: dict[str, list[str]]
    ledger: journal.Ledger
    damage: str

    @classmethod
    def of(cls, path: str | os.PathLike[str], group: Mapping[str, Any]) -> Stored:
        """Return a run of which the `zarr.json` was read and checked.

        Raises:
            StoreError: A line of its journal is damaged.
        """
        arrays, attrs = group["consolidated_metadata"]["metadata"], dict(group["attributes"])
        sums = {name: text.split() for name, text in attrs.pop(checksums.ATTR, {}).items()}
        variables = {
            name: variable for name, array in arrays.items() if (variable := variable_of(name, array))
        }
        data = journal.read_bytes(path)
        ledger = journal.parse(data or b"", os.path.join(path, journal.NAME))
        damage = _damage(variables, arrays, attrs, data, ledger) if attrs["status"] == "complete" else ""
        return cls(os.fspath(path), variables, arrays, attrs, sums, ledger, damage)

    @property
    def is_complete(self) -> bool:
        """Whether the run says that it is over."""
        return bool(self.attrs["status"] == "complete")

    def flaw(self) -> str:
        """Say what first is not as it was written, the values in its units aside; "" where all is.

        Raises:
            StoreError: Something cannot be read.
        """
        return self.damage or self.label_flaw() or next(self._unit_flaws(), "")

    def label_flaw(self) -> str:
        """Say the same of the files that xarray reads: those of the coordinates, and each array's own metadata."""
        for name in self.arrays.keys() - self.variables.keys():
            file = self.coordinate_file(name)
            data = self._read(file)
            if data is None:
                return f"{file} is missing, so {name} has no labels"
            known = self.checksums.get(file)
            if known is not None and checksums.crc32c(data) not in known:
                return (
                    f"{file} has crc32c {checksums.crc32c(data)}, its {FILE} says {' or '.join(known)}: the labels of {name} "
                    "were changed or cut"
                )
        return next((f"{file} {why}" for file, why in self._metadata_flaws()), "")

    def refuse_rewritten(self) -> None:
        """Raise StoreError where another program wrote into an array's metadata: to make the run again would lose that."""
        for file, why in self._metadata_flaws():
            if why == _REWRITTEN:
                raise StoreError(checksums.rewritten(os.path.join(self.path, file)))

    def _metadata_flaws(self) -> Iterator[tuple[str, str]]:
        """Go through the arrays whose own metadata is not what the group says of them, each with what is wrong."""
        # The end of a run writes them before the group says that it is over, and never after.
        if not (self.is_complete and self.checksums):
            return
        for name, array in self.arrays.items():
            file = f"{name}/{FILE}"
            data = self._read(file)
            try:
                if data is None or json.loads(data) != array:
                    yield file, "is missing" if data is None else _REWRITTEN
            except (ValueError, RecursionError):
                yield file, "is not JSON"

    def _read(self, file: str) -> bytes | None:
        try:
            return files.read_if_there(os.path.join(self.path, file))
        except OSError as error:
            raise StoreError(f"{os.path.join(self.path, file)} cannot be read ({error.strerror})") from error

    def _unit_flaws(self) -> Iterator[str]:
        """Go through the committed units whose file is missing, or has another size."""
        sizes: dict[str, dict[str, int]] = {}
        for (name, key), entry in self.ledger.units.items():
            if name not in self.variables:
                yield f"its {journal.NAME} has units of {name}, which its {FILE} does not have"
                return
            if name not in sizes:
                sizes[name] = files.sizes(os.path.join(self.path, name))
            if len(key) != len(self.variables[name].unit_dims):
                yield f"its {journal.NAME} has a unit {key} of {name}, which has the dimensions {self.variables[name].unit_dims}"
                return
            chunk = self.variables[name].chunk_name(key)
            if (size := sizes[name].get(chunk)) is None:
                yield f"{name}/{chunk} is committed in the journal but missing"
            elif size != entry.bytes:
                yield f"{name}/{chunk} has {size} bytes, the journal says {entry.bytes}"

    def coordinate_file(self, name: str) -> str:
        """Return the one file of a coordinate's values, relative to the run's folder."""
        return f"{name}/{chunk_name(len(self.arrays[name]['shape']))}"

    def coordinate_checksums(self) -> dict[str, list[str]]:
        """Return the checksums of all coordinates, that of the file which lies there last."""
        sums: dict[str, list[str]] = {}
        for name in self.arrays.keys() - self.variables.keys():
            file = self.coordinate_file(name)
            now = checksums.crc32c(files.read_file(os.path.join(self.path, file)))
            sums[file] = [*(s for s in self.checksums.get(file, ()) if s != now), now]
        return sums


def _damage(
    variables: Mapping[str, Variable],
    arrays: Mapping[str, Any],
    attrs: Mapping[str, Any],
    data: bytes | None,
    ledger: journal.Ledger,
) -> str:
    """Say what is wrong with the journal of a complete run, which never changes again; "" if nothing is."""
    if data is None:
        return f"its {journal.NAME} is gone" if variables else ""
    if (sealed := attrs.get("journal")) is not None:
        return "" if journal.seal(data) == sealed else f"its {journal.NAME} was cut or changed"
    # Written before runs had a seal. Their recorder wrote everything that it declared.
    for name, variable in variables.items():
        recorded = units_asked(variable, arrays[name]["attributes"]["recorded"])
        if lacking := sum((name, unit) not in ledger.units for unit in recorded):
            return f"its {journal.NAME} lacks {lacking} of the {len(recorded)} units of {name}: it was cut"
    return ""
