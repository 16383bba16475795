"""A `Run`: what one traced trajectory left behind, by name, lazily."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_lens.errors import StoreError
from dit_lens.plan import objects
from dit_lens.store import RunStatus, journal, open_run, status
from dit_lens.store.metadata import load_run_group
from dit_lens.store.names import absolute
from dit_lens.tasks.sample import Frames

if TYPE_CHECKING:
    import xarray as xr

    from dit_lens.store.scratch import Scratch


JSON_ATTRS = ("manifest", "nan", "inf", "journal")
"""Attributes of a run that are more than a string or a number."""


class Run:
    """One traced trajectory.

    Args:
        path: the run's folder in its store.
        scratch: the temporary folder that the run lives in, where it is in no store; the folder goes once neither the
            run nor any lazy array of it is held.
    """

    def __init__(self, path: Path, scratch: Scratch | None = None) -> None:
        self._path = absolute(path)
        self._scratch = scratch
        self._dataset: xr.Dataset | None = None
        self._lazy: dict[str, Any] = {}  # what `dataset` read its variables by when it was opened

    @property
    def path(self) -> Path:
        """The run's folder. A run in no store is written when its folder is first asked for.

        Raises:
            StoreError: it cannot be written.
        """
        if self._scratch is not None:
            self._scratch.settle()
        return self._path

    @property
    def dataset(self) -> xr.Dataset:
        """All that was recorded, as a lazy `xarray.Dataset` on the run's full coordinates."""
        if self._dataset is None:
            self._dataset = open_run(self.path, keep=self._scratch)
            self._lazy = {str(name): array.variable._data for name, array in self._dataset.data_vars.items()}
        return self._dataset

    @property
    def names(self) -> list[str]:
        """Names of what was recorded."""
        return [str(name) for name in self.dataset.data_vars]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __getitem__(self, name: str) -> xr.DataArray:
        """Return what was recorded under a name, on the steps, branches and layers that the plan records.

        Raises:
            StoreError: nothing was recorded under this name.
        """
        if name not in self.dataset.data_vars:
            raise StoreError(
                f"{self.path.name} holds no {name!r}, only {', '.join(self.names)}: record it in a new run."
            )
        array = self.dataset[name]
        recorded = json.loads(array.attrs.get("recorded", "{}"))
        if not isinstance(recorded, dict):
            return array
        return array.isel({dim: positions for dim, positions in recorded.items() if dim in array.dims})

    @property
    def text_tokens(self) -> dict[str, list[tuple[str, str]]]:
        """The tokens of the prompt by branch, each its text and what it is: "word", "special" or "padding".

        Empty where the run does not read the prompt's tokens, or which they are is not known.
        """
        known = self.attrs["manifest"].get("text_tokens", {})
        return {branch: [(text, kind) for text, kind in tokens] for branch, tokens in known.items()}

    @property
    def stages(self) -> list[Run]:
        """The runs of all stages of the pipeline, in order; this one alone where there is one."""
        names = self.attrs["manifest"].get("stages", [self.path.name])
        own_name = self.path.name
        return [self if name == own_name else Run(self.path.parent / name, self._scratch) for name in names]

    @property
    def video(self) -> Frames:
        """The decoded frames, [time, height, width, rgb] of uint8; a prompt batch has `sample` first."""
        return np.asarray(self["video"].values)

    @property
    def sound(self) -> tuple[np.ndarray, float] | None:
        """The decoded sound, [speaker, audio_time] in [-1, 1], and its samples per second; None without."""
        if "audio" not in self.names:
            return None
        return np.asarray(self["audio"].values), float(self["audio"].attrs["rate"])

    @property
    def attrs(self) -> dict[Any, Any]:
        """The run's attributes, its manifest among them, as data; in `dataset` they are JSON text."""
        data = {key: json.loads(self.dataset.attrs[key]) for key in JSON_ATTRS if key in self.dataset.attrs}
        return self.dataset.attrs | data

    @property
    def status(self) -> RunStatus:
        """What is committed and what is missing."""
        return status(self.path)

    @property
    def complete(self) -> bool:
        """Whether everything that the plan records is committed."""
        return self.status.complete

    def __content__(self, walk: Any) -> dict[str, Any]:
        """Return what names the run where a function reads it: what made it, and the checksums of what it holds."""
        group = load_run_group(str(self.path))
        if group is None:
            return dict(walk.unnamed(self, "a run that is not readable"))
        units = {
            f"{name} {key}": entry.crc32c for (name, key), entry in journal.read(self.path).units.items()
        }
        own = ("_path", "_scratch", "_dataset", "_lazy")
        more = walk.node(self, lambda *_: [objects.beyond(walk, self, Run, own), walk.visit(self._altered())])
        return {"@run": group["attributes"]["identity_sha256"], "units": sorted(units.items()), "more": more}

    def _altered(self) -> dict[str, Any]:
        """Return by name what the user has put into `dataset`, or written into what is loaded there."""
        if self._dataset is None:
            return {}
        fresh, held = open_run(self.path, keep=self._scratch), self._dataset
        altered: dict[str, Any] = {}
        for name in sorted(map(str, held.variables.keys() | fresh.variables.keys())):
            one, other = held.variables.get(name), fresh.variables.get(name)
            if one is None or other is None:
                altered[name] = None if one is None else held[name]
            elif not (
                (one._data is self._lazy.get(name) and one.attrs == other.attrs) or one.identical(other)
            ):
                altered[name] = held[name]
        return altered if held.attrs == fresh.attrs else {**altered, "attributes": dict(held.attrs)}

    def __repr__(self) -> str:
        return (
            f"Run({str(self.path)!r}: {', '.join(f'{n}{dict(self.dataset[n].sizes)}' for n in self.names)})"
        )
