"""What a run holds, what it lacks, and whether its bytes are still those that were written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dit_lens.errors import StoreError
from dit_lens.store.metadata import units_asked
from dit_lens.store.names import absolute
from dit_lens.store.reader import load_run
from dit_lens.store.stored import Stored
from dit_lens.store.units import load_unit


@dataclass(frozen=True)
class RunStatus:
    """What stands in a run's journal, against what its plan records.

    Attributes:
        complete: Whether the run was closed as complete, its journal is whole, and nothing that the plan records is
            missing.
        status: The run's own word: `complete`, `incomplete`, or the argument of `close`.
        committed_steps: The committed steps, sorted.
        missing: Per variable, the positions of units that the plan records and that are not committed.
        nan: Per variable, how many NaN its committed units hold.
        inf: The same for infinities.
        bytes: Per variable, the size of its committed files.
        damage: What is wrong with the journal of a complete run; "" where nothing is.
        identity_sha256: Of the identity in the run's manifest.
    """

    complete: bool
    status: str
    committed_steps: tuple[int, ...]
    missing: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    nan: dict[str, int] = field(default_factory=dict)
    inf: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    damage: str = ""
    identity_sha256: str = ""


def status(path: Path | str) -> RunStatus:
    """Say what a run holds and what it lacks, from its metadata and journal alone.

    Raises:
        StoreError: If `path` holds no run of a known layout.
    """
    return status_of(load_run(path))


def status_of(stored: Stored) -> RunStatus:
    """Say the same of a run whose metadata and journal are read."""
    ledger = stored.ledger
    missing: dict[str, list[dict[str, int]]] = {}
    for name, variable in stored.variables.items():
        recorded = units_asked(variable, stored.arrays[name]["attributes"]["recorded"])
        if lacking := sorted(unit for unit in recorded if (name, unit) not in ledger.units):
            missing[name] = [dict(zip(variable.unit_dims, unit, strict=True)) for unit in lacking]
    said = stored.attrs["status"]
    return RunStatus(
        complete=said == "complete" and not missing and not stored.damage,
        status=said,
        committed_steps=tuple(sorted(ledger.steps)),
        missing=missing,
        nan=ledger.totals("nan"),
        inf=ledger.totals("inf"),
        bytes=ledger.totals("bytes"),
        damage=stored.damage,
        identity_sha256=stored.attrs["identity_sha256"],
    )


def verify(path: Path | str) -> Iterator[str]:
    """Read every committed unit, and the labels; yield a line for each that is not, bit for bit, what was written.

    Raises:
        StoreError: If `path` holds no run of a known layout.
    """
    path = absolute(path)
    stored = load_run(path)
    if stored.damage:
        yield f"{path} says that it is complete, but {stored.damage}"
    if flaw := stored.label_flaw():
        yield f"{path}: {flaw}"
    for (name, unit), entry in sorted(stored.ledger.units.items()):
        variable = stored.variables[name]
        out = np.empty(variable.chunk_shape, variable.stored_dtype)
        folder = os.path.join(path, name)
        try:
            load_unit(folder, variable, unit, entry, (slice(None),) * out.ndim, out)
        except StoreError as error:
            yield str(error)
