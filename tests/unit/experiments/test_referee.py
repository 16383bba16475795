"""The referee's rules: verdicts by intervals alone, and a card that says what it was made of."""

import json

import pytest

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


def test_a_date_without_an_interval_is_no_verdict(referee):
    found = {"value": {"step": 2.0, "sigma": 0.9}, "no interval": "all samples agree everywhere"}
    row = referee.early({"commitment": found}, 20)
    assert row["verdict"] == "not measured: no interval, for all samples agree everywhere"


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
    with pytest.raises(referee.TaskError, match="takes 10 samples"):
        referee.main(options)
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
