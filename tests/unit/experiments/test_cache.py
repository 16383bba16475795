"""What is made once is read from then on, and is there whole or not at all."""

import numpy as np
import pytest
import xarray as xr

from dit_lens.experiments.cache import kept, save


def test_it_is_made_once_for_each_key(tmp_path):
    made = []

    def make():
        made.append(1)
        return xr.Dataset({"x": ("n", [len(made)])}, attrs={"a": 1})

    first = kept(tmp_path / "deep" / "fit", "k1", make)
    assert kept(tmp_path / "deep" / "fit", "k1", make).identical(first) and len(made) == 1
    assert kept(tmp_path / "deep" / "fit", "k2", make).x.values.tolist() == [2]


def test_what_was_not_finished_is_not_there(tmp_path, monkeypatch):
    def torn(data, folder, **_):
        folder.mkdir()
        (folder / "zarr.json").write_text("{")
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(xr.Dataset, "to_zarr", torn)
        with pytest.raises(OSError, match="no space"):
            kept(tmp_path / "fit", "k", lambda: xr.Dataset({"x": 1}))
    assert int(kept(tmp_path / "fit", "k", lambda: xr.Dataset({"x": 2})).x) == 2


def test_texts_that_lie_in_another_order_come_back_as_they_are(tmp_path):
    texts = np.array([["a", "b", "c"], ["d", "e", "f"]], np.dtypes.StringDType())
    data = xr.Dataset({"x": (("s", "p"), texts)}).sel(p=[0, 1, 2]).transpose("p", "s")
    save(data, tmp_path / "results.zarr")
    read = xr.open_zarr(tmp_path / "results.zarr", consolidated=False)
    assert read.x.values.tolist() == data.x.values.tolist()
