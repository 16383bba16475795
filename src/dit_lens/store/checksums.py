"""Checksums of what the journal does not speak of: the `zarr.json` of a run, and the files of its coordinates.

They are the group's attribute `checksums`: by file, relative to the run's folder, the crc32c of its bytes in eight hex
digits. Where a coordinate is being replaced, several stand there, with spaces between: its file has one of them. That of
`zarr.json` is of its own content, without that entry: JSON with sorted keys, no spaces, and ASCII escapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c

from dit_lens.errors import REMEDY

ATTR = "checksums"
OWN = "zarr.json"


def crc32c(data: bytes) -> str:
    """Return the crc32c of bytes, in hex."""
    return f"{google_crc32c.value(data):08x}"


def signed(group: Mapping[str, Any], files: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return a group's `zarr.json` with the checksums of some files, and that of its own content.

    Args:
        group: The `zarr.json`.
        files: By file, the checksums of which it has one.
    """
    sums = {name: " ".join(of_file) for name, of_file in files.items()}
    attrs = {**group["attributes"], ATTR: sums}
    # As a reader will have it: a tuple is a list there, and every key a string.
    content = json.loads(json.dumps({**group, "attributes": attrs}, allow_nan=False))
    content["attributes"][ATTR][OWN] = _of_content(content)
    return dict(content)


def is_as_signed(group: Mapping[str, Any]) -> bool:
    """Return whether a group's `zarr.json` has the content that it was signed with; one without checksums was not signed."""
    if ATTR not in group["attributes"]:
        return True
    sums = group["attributes"][ATTR]
    if not isinstance(sums, dict) or OWN not in sums:
        return False
    others = {name: of_file for name, of_file in sums.items() if name != OWN}
    content = {**group, "attributes": {**group["attributes"], ATTR: others}}
    return bool(sums[OWN] == _of_content(content))


def rewritten(file: str) -> str:
    """Say that a file of metadata is not what was written, and what to do."""
    return (
        f"{file} is not what was written: a bit flipped, or another program wrote into the run, so its labels or values may be "
        "wrong. Save elsewhere what was added (plain xarray.open_zarr reads it, unchecked), then "
        f"{REMEDY}; notes belong beside a run"
    )


def _of_content(content: Mapping[str, Any]) -> str:
    return crc32c(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
