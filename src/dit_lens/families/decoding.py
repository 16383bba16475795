"""Latents as they stand in a run, to frames or sound, and frames to latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_lens.errors import PlanError
from dit_lens.plan.places import GRID_DIMS, grid_dim
from dit_lens.tasks.sample import as_frames

if TYPE_CHECKING:
    import xarray as xr

    from dit_lens.families.specimen import Specimen


def encode(specimen: Specimen, frames: Any) -> Tensor:
    """Encode frames by a model's own codec; see `Lens.encode`.

    Raises:
        PlanError: the family does not say how.
    """
    codec = specimen.family.codec
    if codec.encode is None:
        raise PlanError(f"Family {specimen.family.name} does not say how to encode frames to latents.")
    return codec.encode(specimen.pipe, as_frames(frames))[0].permute(1, 2, 3, 0)


def decode(specimen: Specimen, latents: xr.DataArray | Tensor | np.ndarray) -> np.ndarray:
    """Decode latents by a model's own codec; see `Lens.decode`.

    Raises:
        PlanError: not latents, or they hold NaN (they were not recorded).
    """
    codec = specimen.family.codec
    known = {s: tuple(grid_dim(d, "latents", s) for d in GRID_DIMS) for s in specimen.family.anatomy.latents}
    dims = tuple(getattr(latents, "dims", known["video"]))
    stream = next((s for s, names in known.items() if dims[-4:] == names), None)
    decoder = {"video": codec.decode, "audio": codec.decode_audio}.get(stream or "")
    if decoder is None:
        names = " or ".join(f"[..., {', '.join(n)}]" for n in known.values())
        raise PlanError(f"decode takes latents {names}; these have {dims}.")
    if not isinstance(latents, Tensor):
        array = np.array(getattr(latents, "values", latents))  # a copy: a store's may not be writable
        if array.dtype.kind != "f":
            raise PlanError(f"decode takes an array of latents; this is a {type(latents).__name__}.")
        latents = torch.from_numpy(array)
    values = latents
    if values.ndim < 4:
        raise PlanError(
            f"decode takes latents [..., frame, latent_y, latent_x, latent_channel]; these are {tuple(values.shape)}."
        )
    if bool(torch.isnan(values).any()):
        raise PlanError(
            "decode: the latents hold NaN: the place was not recorded, or the run is not complete."
        )
    rows = values.reshape(-1, *values.shape[-4:]).permute(0, 4, 1, 2, 3)
    decoded: np.ndarray = decoder(specimen.pipe, rows)
    return decoded.reshape(*values.shape[:-4], *decoded.shape[1:])
