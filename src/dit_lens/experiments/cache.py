"""Results that are made once: a Dataset in a folder whose name says everything that makes it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr


def kept(stem: Path, key: str, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """Return what stands in `STEM-KEY.zarr`; make it first where it does not.

    Args:
        stem: folder and first part of the name.
        key: hash of everything that makes it.
        make: makes it.
    """
    folder = stem.with_name(f"{stem.name}-{key}.zarr")
    if not folder.exists():
        save(make(), folder)
    return xr.open_zarr(folder, consolidated=False).load()


def save(data: xr.Dataset, folder: Path) -> None:
    """Write a dataset whole or not at all."""
    part = folder.with_suffix(".partial")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    data.drop_encoding().to_zarr(part, mode="w", consolidated=False)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def hash_code(made_by: Callable[..., Any]) -> str:
    """Hash the library's sources and those of a script: what other code made is made again.

    Args:
        made_by: a function of the script's.
    """
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    script = Path(made_by.__code__.co_filename)
    texts = [p.read_bytes() for p in (*files, script) if p.is_file()]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()
