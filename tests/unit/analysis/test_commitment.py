from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr

from dit_lens.analysis.commitment import commitment, corrections, revisions
from dit_lens.errors import DitLensError

STEPS = [0, 5, 10, 15, 19]


def along_steps(*trajectories: object) -> xr.DataArray:
    values = np.array([list(t) for t in trajectories])  # type: ignore[call-overload]
    names = np.array([f"maze-{i}" for i in range(len(values))], dtype=object)
    coords = {"sample": names, "step": STEPS}
    return xr.DataArray(values, coords, ["sample", "step"], "answer")


@pytest.mark.parametrize("dtype", [object, "<U1", np.dtypes.StringDType()])
def test_planted_trajectories(dtype: object) -> None:
    out = commitment(
        along_steps(
            "aaaaa",  # there from the start
            "abccc",  # two others before
            "abbba",  # held, left, and taken up again at the end
            "ababb",  # back and forth
            "aabac",  # decided at the last step
        ).astype(dtype)
    )
    assert out["commitment"].values.tolist() == [0, 10, 19, 15, 19]
    assert out["distinct"].values.tolist() == [0, 2, 2, 2, 2]
    assert out["changes"].values.tolist() == [0, 2, 2, 3, 3]
    assert out["sample"].values.tolist() == [f"maze-{i}" for i in range(5)]


def test_every_other_dimension_is_kept_and_step_may_stand_anywhere() -> None:
    rng = np.random.default_rng(0)
    coords = {"seed": [4, 5], "step": STEPS, "sigma": ("step", np.linspace(1, 0, 5)), "site": "x0"}
    answers = xr.DataArray(rng.choice(list("ab"), (3, 2, 5)), coords, ["sample", "seed", "step"])
    out = commitment(answers.transpose("step", "seed", "sample"))
    assert out["commitment"].dims == ("seed", "sample") and set(out.coords) == {"seed", "site"}
    for i in range(3):
        for j in range(2):
            one = list(answers[i, j].to_numpy())
            first = next(k for k in range(5) if set(one[k:]) == {one[-1]})
            at = {"sample": i, "seed": j}
            assert out["commitment"].isel(at) == STEPS[first]
            assert out["distinct"].isel(at) == len(set(one[:first]))
            assert out["changes"].isel(at) == sum(a != b for a, b in pairwise(one))


def test_one_trajectory_one_step_and_no_answer() -> None:
    alone = commitment(along_steps(["", "", "a", "a", "a"]).isel(sample=0))
    assert alone["commitment"].dims == () and alone["commitment"] == 10 and alone["distinct"] == 1
    assert alone["sample"] == "maze-0" and "step" not in alone.coords
    one = commitment(along_steps("abcde").isel(step=[3]))
    assert one["commitment"].values.tolist() == [15] and one["changes"].values.tolist() == [0]
    unlabelled = commitment(along_steps("aabbb").drop_vars("step"))
    assert unlabelled["commitment"].values.tolist() == [2]


def test_a_stored_array_gives_the_same(tmp_path: object) -> None:
    answers = along_steps("abccc", "abbba").astype(object)
    answers.to_dataset().to_zarr(f"{tmp_path}/a.zarr", consolidated=False, zarr_format=3)
    stored = xr.open_zarr(f"{tmp_path}/a.zarr", chunks=None, consolidated=False)["answer"]
    xr.testing.assert_equal(commitment(stored), commitment(answers))


def test_corrections_of_planted_trajectories() -> None:
    solved = along_steps(
        [0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],  # corrects itself
        [0, 1, 0, 1, 1],  # and does so twice
        [1, 0, 0, 0, 1],  # right at first: no self-correction, though it turned back
        [0, 1, 1, 1, 0],
    ).astype(bool)
    out = corrections(solved)
    assert out["wrong_to_right"].values.tolist() == [0, 0, 1, 2, 1, 1]
    assert out["right_to_wrong"].values.tolist() == [0, 0, 0, 1, 1, 1]
    assert out["ever_right"].values.tolist() == [False, True, True, True, True, True]
    np.testing.assert_array_equal(out["first_right"], [np.nan, 0, 10, 5, 0, 5])
    assert out["self_corrected"].values.tolist() == [False, False, True, True, False, False]
    assert out["self_corrected"].dtype == bool and out["first_right"].dims == ("sample",)


def test_errors_name_the_place_and_the_remedy() -> None:
    answers = along_steps("abccc", "abbba").astype(object)
    with pytest.raises(DitLensError, match="commitment: answer has no dimension step"):
        commitment(answers.rename(step="time"))
    with pytest.raises(DitLensError, match=r"do not increase: \[19, 15.*sortby"):
        commitment(answers.isel(step=slice(None, None, -1)))
    answers[1, 2] = None
    with pytest.raises(DitLensError, match="answer is None at sample maze-1, step 10, not a string"):
        commitment(answers.transpose("step", "sample"))
    with pytest.raises(DitLensError, match="holds int64, not strings"):
        commitment(along_steps([1, 2, 3, 4, 5]))
    with pytest.raises(DitLensError, match="corrections: answer holds int64, not bool"):
        corrections(along_steps([0, 1, 1, 1, 1]))


def planted(*trajectories: str) -> xr.Dataset:
    """Revisions of trajectories of answers: capitals are right, `.` is no complete answer."""
    answers = along_steps(*trajectories).astype(object)
    answers = answers.where(answers != ".", "")
    right = xr.DataArray(np.vectorize(str.isupper)(answers), answers.coords, answers.dims)
    return revisions(answers, right)


def test_a_revision_gives_up_an_answer_that_was_held() -> None:
    found = planted(
        "waaAA",  # wrong to right
        "aaaaa",  # wrong, and kept
        "aabb.",  # wrong to none; b is the second wrong one
        "aaabb",  # wrong to another wrong one
        "AAaaa",  # right to wrong
        "AABBB",  # right to another right one
        "aaAAb",  # wrong to right and on to a wrong one
    )
    names = [
        "wrong_to_right",
        "wrong_kept",
        "wrong_to_none",
        "wrong_to_wrong",
        "right_to_wrong",
        "right_to_right",
    ]
    for row, name in enumerate(names):
        held_after = ["wrong_kept"] * (name == "right_to_wrong")  # the wrong answer is held in its turn
        assert [n for n in names if bool(found[n][row])] == [*held_after, name]
    assert (
        bool(found.wrong_to_wrong[6]) and bool(found.right_to_wrong[6]) and not bool(found.wrong_to_right[6])
    )
    ends = sum(found[f"wrong_{end}"].astype(int) for end in ("kept", "to_right", "to_wrong", "to_none"))
    assert (ends == found.committed_wrong).all()


def test_an_answer_for_a_step_and_one_that_is_still_being_made_are_no_commitment() -> None:
    found = planted("abcdE", "a.a.A", ".....", "...AA", "....A")
    assert found.committed.values.tolist() == [False, False, False, True, False]
    assert not bool(found.committed_wrong.any()) and not bool(found.wrong_to_right.any())


def test_revisions_of_what_is_no_answer_are_refused() -> None:
    answers = along_steps("aaaaa").astype(object)
    right = answers == "b"
    with pytest.raises(DitLensError, match="give bool as the answers"):
        revisions(answers, right.astype(int))
    with pytest.raises(DitLensError, match="never right"):
        revisions(answers.where(answers != "a", ""), ~right)
    with pytest.raises(DitLensError, match="of other steps"):
        revisions(answers, right.assign_coords(step=[1, 2, 3, 4, 5]))
    with pytest.raises(DitLensError, match="not strings"):
        revisions(right, right)
    assert not bool(revisions(answers, right, least=6).committed.any())
