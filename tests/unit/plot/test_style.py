from __future__ import annotations

import sys

import matplotlib as mpl
import numpy as np
import pytest

from dit_lens.plot.style import best_columns, image_panels, index_ticks, new_figure, styled, wrapped


def test_pictures_leave_no_trace_and_need_no_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(mpl.rcParams)
    monkeypatch.setitem(mpl.rcParams, "font.size", 40)

    @styled
    def size() -> float:
        return mpl.rcParams["font.size"]

    assert size() == 9
    monkeypatch.undo()
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize(
    ("count", "aspect", "columns"), [(5, 1.0, 5), (12, 1.0, 6), (21, 52 / 30, 7), (40, 52 / 30, 8)]
)
def test_grids_of_the_sizes_in_use_have_no_empty_panel(count: int, aspect: float, columns: int) -> None:
    assert best_columns(count, aspect) == columns and count % columns == 0


def test_panels_come_in_reading_order_and_fit_a_page() -> None:
    figure, axes = image_panels(17, 1.0, "many panels")
    assert len(axes) == 17
    width, height = figure.get_size_inches()
    assert 5 <= width < 14 and height < 12


def test_long_titles_are_broken() -> None:
    assert max(map(len, wrapped("words " * 40, 5).split("\n"))) <= 5 * 9.5
    assert new_figure(5, 3, "a title").get_suptitle() == "a title"


def test_ticks_are_labelled_with_coordinates() -> None:
    axis = new_figure(3, 3, "").subplots().xaxis
    index_ticks(axis, list(np.arange(50) * 2), most=10)
    assert [t.get_text() for t in axis.get_ticklabels()] == [str(i) for i in range(0, 100, 10)]
