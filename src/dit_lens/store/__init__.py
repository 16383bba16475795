"""The store: what a traced run leaves on disk, and the way back to named, lazy arrays.

A store is a zarr v3 group of runs; a run is a group of arrays on the dimensions of `dit_lens.plan.places`, and
opens with plain `xarray.open_zarr`. What this package adds is, on the writing side, speed, resuming and a
journal that says which units exist; on the reading side, that what does not exist is masked.
`docs/store-layout.md` is normative.

Limits: one writer per run, on a POSIX file system; readers need local files; no append along a dimension and
no deletion; a run of several stages is several runs. For arrays that are not a run, such as an analysis'
results, `xarray.Dataset.to_zarr` is the tool.
"""

from dit_lens.store.layout import LAYOUT_VERSION, Variable
from dit_lens.store.manifest import canonical_json, identity_hash, run_name, versions
from dit_lens.store.reader import find_runs, open_run, open_runs, read_codes
from dit_lens.store.status import RunStatus, status, verify
from dit_lens.store.writer import RunWriter

__all__ = [
    "LAYOUT_VERSION",
    "RunStatus",
    "RunWriter",
    "Variable",
    "canonical_json",
    "find_runs",
    "identity_hash",
    "open_run",
    "open_runs",
    "read_codes",
    "run_name",
    "status",
    "verify",
    "versions",
]
