from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr
from PIL import Image

from dit_lens.errors import DitLensError
from dit_lens.plot import energy_frames, energy_vs_step, save


def test_the_same_figure_gives_the_same_bytes(tokens: xr.DataArray, tmp_path: Path) -> None:
    one = tokens.isel(step=0, branch=0, layer=0)
    first = save(energy_frames(one), tmp_path / "new" / "folder" / "a.png")
    second = save(energy_frames(one), tmp_path / "b")
    assert second.name == "b.png" and first.read_bytes() == second.read_bytes()
    info = Image.open(first).info
    assert info["Software"] == "dit_lens" and round(info["dpi"][0]) == 150
    assert not {"Creation Time", "date"} & set(info)


def test_a_figure_with_legend_and_sigma_can_be_saved(tokens: xr.DataArray, tmp_path: Path) -> None:
    path = save(energy_vs_step(tokens.isel(branch=0, layer=[0, 3])), tmp_path / "steps.png")
    assert Image.open(path).size == (1080, 600)


def test_only_png(tokens: xr.DataArray, tmp_path: Path) -> None:
    with pytest.raises(DitLensError, match=r"must end in .png, not 'a.pdf'"):
        save(energy_vs_step(tokens.isel(branch=0, layer=0)), tmp_path / "a.pdf")
