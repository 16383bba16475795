"""The manifest: a plain dict that says all that made a run, and whose hash names it.

A manifest may hold the key `identity`: the part that is hashed; the rest (host, times, notes) may then differ
between two attempts at the same run. Without that key the whole manifest is the identity.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np

from dit_lens.errors import StoreError
from dit_lens.store.names import NAME_BYTES, cut

PACKAGES = (
    *("dit-lens", "numpy", "xarray", "zarr", "numcodecs", "torch", "diffsynth", "diffusers"),
    *("transformers", "peft", "nnsight", "safetensors"),
)
"""Packages whose versions may change what a run holds."""

_PLAIN = {str, bool, int}


def plain(value: Any, where: str = "manifest") -> Any:
    """Return `value` as what JSON can hold: tuples become lists, numpy scalars numbers, and arrays lists.

    Infinities and NaN, which JSON does not hold, become the texts "Infinity", "-Infinity" and "NaN".

    Raises:
        StoreError: If something in it has no exact JSON form; the message says where it stands.
    """
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return value
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{n}]") for n, item in enumerate(value)]
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise StoreError(
                f"{where} has the key {bad[0]!r}; keys must be strings, so that they sort in one way"
            )
        return {key: plain(item, f"{where}.{key}") for key, item in value.items()}
    raise StoreError(
        f"{where} is a {type(value).__name__}, not plain data; pass its name, its str() or its hash"
    )


def canonical_json(value: Any) -> str:
    """Return the one JSON text of plain data: keys sorted, no spaces, UTF-8 as it is."""
    return _canonical(plain(value))


def _canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def identity_hash(manifest: Mapping[str, Any]) -> str:
    """Return the sha256, in hex, of a manifest's identity."""
    return plain_hash(plain(manifest))


def plain_hash(manifest: Mapping[str, Any]) -> str:
    """Return the same of a manifest that `plain` has made."""
    return _sha256(manifest.get("identity", manifest))


def run_name(identity: Mapping[str, Any], prefix: str) -> str:
    """Return the name of a run: `prefix` and ten hex digits of its identity's sha256.

    A prefix that makes the name longer than a file system takes is cut; the digits stay.

    Example:
        >>> run_name({"seed": 7, "steps": 20}, "maze")
        'maze-ff3eb4b4df'
    """
    digits = _sha256(plain(identity))[:10]
    return f"{cut(prefix, NAME_BYTES - len(digits) - 1)}-{digits}"


def _sha256(data: Any) -> str:
    # A prompt may hold half of a surrogate pair, which UTF-8 proper has no bytes for.
    return hashlib.sha256(_canonical(data).encode("utf-8", "surrogatepass")).hexdigest()


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed, without importing any."""
    installed = {package: version for package in packages if (version := _version(package)) is not None}
    return {"python": platform.python_version(), **installed}


@cache
def _version(package: str) -> str | None:
    """Look a version up once: it takes two milliseconds, and every run asks for all."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
