"""The arrays of one run: a name is declared once, and a dimension has one size."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dit_lens.errors import StoreError
from dit_lens.store import metadata


class Arrays(dict[str, dict[str, Any]]):
    """`zarr.json` of every array of a run, by name.

    Args:
        run: What the run is called in an error.
        arrays: Those that it has already.
    """

    def __init__(self, run: str, arrays: Mapping[str, dict[str, Any]] | None = None) -> None:
        super().__init__(arrays or {})
        self._run = run

    def check(self, name: str, array: dict[str, Any]) -> None:
        """Refuse an array that differs from the one of this name, or from the sizes of the run.

        Raises:
            StoreError: If it does.
        """
        if known := self.get(name):
            array = json.loads(metadata.array_bytes(array))
            if json.loads(metadata.array_bytes(known)) != array:
                raise StoreError(
                    f"{name} of {self._run} is declared already, and differs in {_difference(known, array)}; "
                    "give the second record another name"
                )
            return
        sizes = dict(zip(array["dimension_names"], array["shape"], strict=True))
        for other, known in self.items():
            for dim, size in zip(known["dimension_names"], known["shape"], strict=True):
                if sizes.get(dim, size) != size:
                    raise StoreError(
                        f"{name} has size {sizes[dim]} along {dim!r}, but {other} of {self._run} has {size}: "
                        "one size per dimension and run; give the full size, or the dimension another name"
                    )

    def size(self, dim: str) -> int:
        """Return the run's size along a dimension, 0 if no array has it."""
        for array in self.values():
            if dim in array["dimension_names"]:
                return int(array["shape"][array["dimension_names"].index(dim)])
        return 0


def _difference(known: Mapping[str, Any], array: Mapping[str, Any]) -> str:
    both = [known | known["attributes"], array | array["attributes"]]
    keys = [key for key in both[1] if key != "attributes" and both[0].get(key) != both[1][key]]
    return ", ".join(f"{key} ({both[0].get(key)} there, {both[1][key]} now)" for key in keys)
