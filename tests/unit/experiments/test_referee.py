"""The referee's rules: verdicts by intervals alone, and a card that says what it was made of."""

import json

import numpy as np
import pytest
import xarray as xr

from dit_lens.errors import DitLensError, TaskError
from dit_lens.experiments.crossings import committed
from scripts import script


@pytest.fixture(scope="module")
def referee():
    return script("referee")


@pytest.mark.parametrize(
    "interval, margin, verdict",
    [
        ((0.2, 0.05, 0.3), 0.05, "for"),
        ((0.2, 0.0, 0.3), 0.05, "undecided"),
        ((0.01, -0.02, 0.04), 0.05, "against"),
        ((0.01, -0.02, 0.06), 0.05, "undecided"),
        ((-0.3, -0.5, -0.1), 0.0, "against"),
    ],
)
def test_an_interval_decides_and_no_estimate_does(referee, interval, margin, verdict):
    assert referee.row("claim", "what", interval, margin)["verdict"] == verdict


@pytest.mark.parametrize(
    "steps, verdict",
    [((2.0, 1.0, 5.0), "for"), ((6.0, 4.0, 8.0), "undecided"), ((8.0, 6.0, 9.0), "against"), ((8.0, 6.0, None), "against"),
     ((4.0, 2.0, None), "undecided")],
)  # fmt: skip
def test_a_plan_is_early_within_a_quarter_of_the_steps(referee, steps, verdict):
    found = {name: {"step": step} for name, step in zip(("value", "low", "high"), steps, strict=True)}
    assert referee.early({"commitment": found}, 20)["verdict"] == verdict


def forked(at, shares, samples=12):
    """What `committed` says of runs that have no answer in common by chance; so many forks of each keep it at each step."""
    same = np.tile(np.array(shares, float), (samples, 1, 1))
    coords = {"at": at}
    results = xr.Dataset({"sigma": ("at", 1 - np.array(at) / 20)}, coords)
    same = xr.DataArray(same, dims=("sample", "seed", "at"), coords=coords)
    return {"commitment": committed(same, xr.DataArray(np.zeros(samples), dims="sample"), results)}


def test_what_a_study_says_of_a_date_is_read_with_and_without_an_interval(referee):
    """The fault: a date without an interval, which has no `low`, was an error."""
    at = [1, 4, 5, 7, 10]
    assert referee.early(forked(at, [0, 1, 1, 1, 1]), 20)["verdict"] == "for"
    late = referee.early(forked(at, [0, 0, 0, 1, 1]), 20)  # surely not at 5, the last early step
    assert (late["low"], late["high"], late["verdict"]) == (5, 7, "against")
    assert referee.early(forked(at, [0, 0, 0.5, 1, 1]), 20)["verdict"] == "undecided"
    never = referee.early(forked(at, [0, 0, 0, 0, 0]), 20)
    assert never["value"] is None and never["verdict"] == "against"
    few = referee.early(forked(at, [0, 1, 1, 1, 1], samples=2), 20)
    assert few["verdict"].startswith("not measured: no interval, for 2 samples of 2 that tell")
    assert "value" not in few and referee.number(few) == ""


def test_a_date_at_the_first_fork_is_a_bound_and_no_verdict_against(referee):
    first = referee.early(forked([1, 2], [1, 1]), 20)
    assert first["at or before"] == ["value", "low", "high"] and first["verdict"] == "for"
    assert referee.number(first) == "at or before 1.00 [at or before 1.00, at or before 1.00]"
    short = referee.early(forked([1, 2], [1, 1]), 3)  # a quarter of 3 steps is over before step 1
    assert short["verdict"].startswith("not measured: a quarter of the steps is over before runs are forked")
    # Of 4 steps the quarter ends with the first fork: what may have been before it is not late.
    wide = {"value": {"step": 1.2}, "low": {"step": 1.0, "at or before": True}, "high": {"step": 2.0}}
    assert referee.early({"commitment": wide}, 4)["verdict"] == "undecided"
    assert referee.number({"value": 1.2, "low": 1.0, "high": None, "at or before": ["low"]}) == (
        "1.20 [at or before 1.00, never]"
    )
    assert [referee.last_early(steps) for steps in (3, 4, 18, 20)] == [0, 1, 4, 5]
    late = referee.early(forked([1, 4, 5], [0, 0, 1]), 18)  # surely not at 4, the last step of the quarter
    assert late["verdict"] == "against"
    assert referee.forked_at(20) == [1, 4, 5, 7, 10, 13, 16, 19] and referee.forked_at(2) == [1]


def summaries(samples=12, left_out=0):
    """Summaries of all scripts, with clear intervals."""
    counts = {"samples": samples, "samples left out": left_out}
    gain = {"solved, minus that of steps 20": [{"steps": 1, "effect": -0.4, "low": -0.5, "high": -0.2}, {}]}
    slope = {"slope of commitment over frames, model": {"mean": 0.3, "low": 0.1, "high": 0.5}}
    scripts = {"step_count": gain, "steps_or_frames": slope, "causal_commitment": forked([1, 4], [0, 1])}
    return {name: {**one, **counts} for name, one in scripts.items()}


def test_a_card_says_how_many_samples_were_left_out_and_has_no_verdict_on_few(referee):
    found = summaries(12, 2) | {"control": summaries(9, 5)["steps_or_frames"]}
    rows = referee.card(found, 20)
    assert [row["verdict"] for row in rows] == ["for", "for", "not measured: too few such runs", "for"]
    assert rows[1]["control"]["verdict"] == "not measured: 9 samples are left, and a verdict takes 10"
    text = referee.written(rows, referee.Options())
    assert text.count("12, 2 left out") == 4 and "9, 5 left out: 0.30 [0.10, 0.50]: not measured" in text


@pytest.mark.parametrize(
    "written, code, said",
    [
        ({"samples": 11, "samples left out": 1}, 1, None),
        ({"samples": 12, "samples left out": 0}, 0, None),
        ({"samples": 12, "samples left out": 0}, 1, "ended with exit code 1"),  # it fell after its summary
        ({"samples": 11, "samples left out": 1}, -9, "ended with exit code -9"),
        (None, 1, "ended with exit code 1"),
    ],
)
def test_a_study_that_leaves_samples_out_is_read_and_one_that_fails_is_not(
    referee, tmp_path, monkeypatch, written, code, said
):
    """A real process in the place of the study; what an earlier command wrote is never read."""
    here, out = tmp_path / "scripts", tmp_path / "out"
    here.mkdir(), out.mkdir()
    (out / "summary.json").write_text('{"samples": 99, "samples left out": 0}')
    write = "" if written is None else f"p.write_text({json.dumps(json.dumps(written))});"
    lines = f"import os, sys, pathlib\np = pathlib.Path(sys.argv[-1]) / 'summary.json'\n{write}\n"
    end = f"sys.exit({code})" if code >= 0 else f"os.kill(os.getpid(), {-code})"
    (here / "study.py").write_text(lines + end + "\n")
    monkeypatch.setattr(referee, "HERE", here)
    if said is None:
        assert referee.run("study", "m", [], referee.Options(), out) == written
    else:
        with pytest.raises(DitLensError, match=said):
            referee.run("study", "m", [], referee.Options(), out)


def test_what_no_card_can_be_written_of_is_refused_before_anything_is_computed(
    referee, tmp_path, monkeypatch
):
    monkeypatch.setattr(referee, "run", lambda *_: pytest.fail("a study ran"))
    for given, words in (
        ({"samples": 3}, "takes 10 samples"),
        ({"steps": 1}, "--steps 1: they are compared with one step"),
        ({"image": tmp_path / "cat.png", "prompt": "it walks"}, "judged by a scorer"),
    ):
        with pytest.raises(TaskError, match=words):
            referee.main(referee.Options(**given))
    assert referee.Options().steps == 20 and "--steps" not in referee.handed_on(referee.Options(steps=9))


@pytest.mark.slow
def test_videos_of_too_few_latent_frames_are_refused_by_the_first_study(referee, tmp_path, capfd):
    options = referee.Options(
        model="organism-v1", task="choose", samples=10, steps=3, num_frames=5, out=tmp_path
    )
    with pytest.raises(DitLensError, match="steps_or_frames ended with exit code 1"):
        referee.main(options)
    assert (
        "5 frames are 2 latent frames; this study takes 3 at least: raise --num-frames"
        in capfd.readouterr().err
    )
    assert not [*tmp_path.rglob("blocks")]


def test_what_is_read_off_the_summaries(referee):
    counts = {"solved, minus that of steps 20": [{"steps": 1, "effect": -0.4, "low": -0.5, "high": -0.2}, {}]}
    assert referee.gained(counts) == (0.4, 0.2, 0.5)
    name = "slope of commitment over frames, model"
    alone = {name: {"mean": 0.3, "low": 0.1, "high": 0.5}}
    assert referee.slope(alone) == (0.3, 0.1, 0.5)
    beside = {**alone, f"{name} minus ideal denoiser": {"effect": 0.1, "low": -0.1, "high": 0.2}}
    assert referee.slope(beside) == (0.1, -0.1, 0.2)
    assert referee.rescued({}) is None
    name = "rescued, of wrong runs"
    found = {f"{name}, middle steps repeated minus middle frames": {"effect": 1.0, "low": 0.1, "high": 1.0}}
    assert referee.rescued({**found, f"{name}, samples": referee.LEAST - 1}) is None
    assert referee.rescued({**found, f"{name}, samples": referee.LEAST}) == (1.0, 0.1, 1.0)
    assert "not measured" in referee.row("claim", "what", None, 0.0)["verdict"]


def test_options_are_handed_on_as_they_are_written(referee):
    options = referee.Options(
        task="latin", samples=3, cfg_scale=2.0, text_only=True, seeds=4, steps=9, model="m"
    )
    expected = {"--task", "latin", "--samples", "3", "--cfg-scale", "2.0", "--text-only", "--seeds", "4"}
    assert set(referee.handed_on(options)) == expected
    chance = {"commitment": {"not measured": "two runs give one answer in 1.00"}}
    assert referee.early(chance, 20)["verdict"].startswith("not measured: two runs")


@pytest.mark.slow
def test_a_card_is_written_of_what_was_run(referee, tmp_path, capsys):
    options = referee.Options(
        model="organism-v1", control="organism-v1", task="choose", samples=10, steps=3, out=tmp_path
    )
    assert referee.main(options) == 0
    rows = json.loads((tmp_path / "summary.json").read_text())["claims"]
    assert len(rows) == 4 and rows[1]["control"]["value"] == rows[1]["value"]
    assert rows[2]["verdict"] == "not measured: too few such runs"  # fewer than 10 of these come out wrong
    text = (tmp_path / "card.md").read_text()
    assert text in capsys.readouterr().out and text.count("\n|") == 6
    for name in ("step_count", "steps_or_frames", "causal_commitment", "control"):
        assert json.loads((tmp_path / name / "summary.json").read_text())["samples"] == 10
