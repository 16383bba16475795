"""Results that are made once: a Dataset in a folder whose name says everything that makes it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

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
