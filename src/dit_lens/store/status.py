"""What a run holds, what it lacks, and whether its bytes are still those that were written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from dit_lens.errors import StoreError
from dit_lens.store.bfloat16 import narrow, survey
from dit_lens.store.layout import Variable
from dit_lens.store.reader import load_run
from dit_lens.store.units import load_unit


@dataclass(frozen=True)
class RunStatus:
    """What stands in a run's journal, against what its plan asked for.

    Attributes:
        complete: Whether the run was closed as complete and nothing that was asked for is missing.
        status: The run's own word: `complete`, `incomplete`, or what `close` was given.
        committed_steps: The committed steps, sorted.
        missing: Per variable, the positions of units that were asked for and are not committed.
        nan: Per variable, how many NaN its committed units hold.
        inf: The same for infinities.
        bytes: Per variable, the size of its committed files.
    """

    complete: bool
    status: str
    committed_steps: tuple[int, ...]
    missing: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    nan: dict[str, int] = field(default_factory=dict)
    inf: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)


def status(path: Path | str) -> RunStatus:
    """Say what a run holds and what it lacks, from its metadata and journal alone.

    Raises:
        StoreError: If `path` holds no run of a known layout.
    """
    variables, group, ledger = load_run(path)
    arrays = group["consolidated_metadata"]["metadata"]
    missing: dict[str, list[dict[str, int]]] = {}
    for name, variable in variables.items():
        asked = _asked(variable, arrays[name]["attributes"]["recorded"])
        if lacking := [unit for unit in asked if (name, unit) not in ledger.units]:
            missing[name] = [dict(zip(variable.unit_dims, unit, strict=True)) for unit in lacking]
    said = group["attributes"]["status"]
    return RunStatus(
        complete=said == "complete" and not missing,
        status=said,
        committed_steps=tuple(sorted(ledger.steps)),
        missing=missing,
        nan=ledger.totals("nan"),
        inf=ledger.totals("inf"),
        bytes=ledger.totals("bytes"),
    )


def _asked(variable: Variable, recorded: Any) -> list[tuple[int, ...]]:
    parts = recorded if isinstance(recorded, list) else [recorded]
    return sorted({unit for part in parts for unit in product(*(part[dim] for dim in variable.unit_dims))})


def verify(path: Path | str) -> Iterator[str]:
    """Read every committed unit and yield a line for each that is not, bit for bit, what was written.

    Raises:
        StoreError: If `path` holds no run of a known layout.
    """
    variables, _, ledger = load_run(path)
    for (name, unit), entry in sorted(ledger.units.items()):
        variable = variables[name]
        out = np.empty(variable.chunk_shape, variable.stored_dtype)
        folder = os.path.join(path, name)
        try:
            load_unit(folder, variable, unit, entry, (slice(None),) * out.ndim, out)
        except StoreError as error:
            yield str(error)
            continue
        values = narrow(out) if variable.compressed else out
        codes = variable.dtype == "bfloat16" and values.dtype == np.uint16
        if (found := survey(values, codes)[0]) != entry.crc32c:
            file = os.path.join(folder, variable.chunk_name(unit))
            yield f"{file} has crc32c {found:08x}, the journal says {entry.crc32c:08x}; trace this run again"
