"""Outcomes at equal amounts: exact on lines, silent where nothing was carried out."""

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis import at_amount
from dit_lens.errors import DitLensError

DIMS = ("sample", "interval")


def table(rows):
    return xr.DataArray(np.array(rows, float), {"interval": list("abc"[: len(rows[0])])}, DIMS)


def test_the_line_between_two_treatments_is_followed_and_a_treatment_is_itself():
    amounts, outcomes = table([[1, 3, 5], [2, 4, 8]]), table([[0, 1, 1], [1, 0, 1]])
    assert at_amount(outcomes, amounts, 4.0, "interval").values.tolist() == [1.0, 0.0]
    assert at_amount(outcomes, amounts, 2.5, "interval").values.tolist() == [0.75, 0.75]
    assert at_amount(
        outcomes, amounts, xr.DataArray([1.0, 6.0], dims="sample"), "interval"
    ).values.tolist() == [
        0.0,
        0.5,
    ]


def test_the_treatments_around_a_level_are_read_as_they_are():
    amounts, outcomes = table([[1, 3, 5], [2, 4, 8]]), table([[0, 1, 3], [1, 0, 1]])
    around = {
        read: at_amount(outcomes, amounts, 4.0, "interval", read).values.tolist()
        for read in ("before", "after")
    }
    assert around == {
        "before": [1.0, 0.0],
        "after": [3.0, 0.0],
    }  # the second is a treatment of just that amount
    first = [at_amount(outcomes, amounts, 1.0, "interval", read) for read in ("before", "line", "after")]
    assert [float(one[0]) for one in first] == [0, 0, 0] and all(np.isnan(one[1]) for one in first)


def test_a_level_that_no_treatment_reaches_or_all_exceed_is_not_known():
    amounts, outcomes = table([[1, 3, 5], [2, 4, 8]]), table([[0, 1, 1], [1, 0, 1]])
    known = at_amount(outcomes, amounts, xr.DataArray([0.5, 9.0], dims="sample"), "interval")
    assert np.isnan(known).all()


def test_amounts_that_fall_back_are_read_where_they_first_come_to_the_level():
    amounts, outcomes = table([[1, 5, 2]]), table([[0, 1, 7]])
    assert float(at_amount(outcomes, amounts, 3.0, "interval")[0]) == 0.5
    assert float(at_amount(outcomes, amounts, 5.0, "interval")[0]) == 1
    still = at_amount(table([[3, 4, 5]]), table([[0, 0, 0]]), 0.0, "interval")
    assert still.values.tolist() == [3.0]  # nothing moved: the first treatment


def test_two_edits_of_one_dose_response_are_equal_at_equal_amounts_and_others_are_not():
    """The planted null and effect: outcomes that depend on the amount alone, and on which edit it is as well."""
    rng = np.random.default_rng(0)
    amounts = xr.DataArray(np.cumsum(rng.uniform(0.1, 1, (20, 6)), 1), dims=DIMS)
    strong = 3 * amounts
    level = np.minimum(amounts.max("interval"), strong.max("interval"))
    weak_end, strong_end = (at_amount(0.2 * a, a, level, "interval") for a in (amounts, strong))
    np.testing.assert_allclose(weak_end, strong_end)
    np.testing.assert_allclose(weak_end, 0.2 * level)
    shifted = at_amount(0.2 * strong - 0.05, strong, level, "interval")
    np.testing.assert_allclose(shifted - weak_end, -0.05)
    assert float(abs(0.2 * amounts - 0.2 * strong).max()) > 0.1  # unequal amounts would tell them apart


def test_what_cannot_be_read_is_refused():
    amounts = table([[1, np.nan, 2]])
    with pytest.raises(DitLensError, match="NaN or Inf"):
        at_amount(table([[0, 0, 0]]), amounts, 1.0, "interval")
    with pytest.raises(DitLensError, match="dose"):
        at_amount(table([[0, 0, 0]]), table([[1, 2, 3]]), 1.0, "dose")
