"""What is measured of an organism, and how it comes onto the card."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import card
import evaluate
import flow
import growth
from dit_lens.models import organism
from evaluate import Evaluation
from judging import question, scene
from network import Network
from trainer import Frozen

FROZEN = Path(organism.__file__).with_name("frozen.safetensors")


class Knowing(Network):
    """Knows the right video of every scene, and goes straight to it."""

    def __init__(self, frozen, rows):
        super().__init__()
        self.frozen, self.rows = frozen, rows

    def forward(self, x, sigma, context):
        latents, s = self.right(len(x)), sigma.view(-1, 1, 1, 1, 1)
        return (x[:, :48] - latents) / s

    def right(self, rows):
        """The latents of the scenes' right videos."""
        import torch

        from feed import encode

        truths = np.stack([scene(*row).truth for row in self.rows[:rows]])
        return encode(self.frozen.codec, torch.from_numpy(truths)).float()


@pytest.fixture(scope="module")
def frozen():
    return Frozen(FROZEN, "cpu")


def measured(frozen, network, out, videos=None):
    with Evaluation(frozen, n=3, workers=1, sets=("tictac",), videos=videos) as evaluation:
        evaluation.start("few4", network, out, steps=(4,))
    return json.loads(out.read_text())


@pytest.mark.slow
def test_a_network_that_knows_solves_all_and_one_that_does_not_solves_none(frozen, tmp_path):
    rows = [("tictac", number) for number in range(3)]
    right = measured(frozen, Knowing(frozen, rows), tmp_path / "right.json")
    wrong = measured(frozen, Network(), tmp_path / "wrong.json")
    for label in ("1 step", "4 steps"):
        all_right = {"solved": [1, 1, 1], "answered": [1, 1, 1], "score": [1.0, 1.0, 1.0]}
        assert right["sets"]["tictac"][label] == all_right
        assert wrong["sets"]["tictac"][label]["solved"] == [0, 0, 0]
    assert right["n"] == 3


@pytest.mark.slow
def test_videos_that_are_kept_are_judged_again_and_only_those_of_the_same_weights(
    frozen, tmp_path, monkeypatch
):
    network, videos = Knowing(frozen, [("tictac", number) for number in range(3)]), tmp_path / "videos"
    first = measured(frozen, network, tmp_path / "first.json", videos)
    kept = {file.name: file.read_bytes() for file in videos.iterdir()}
    made = []
    answers = Evaluation._answers
    monkeypatch.setattr(Evaluation, "_answers", lambda *args: made.append(args) or answers(*args))
    again = measured(frozen, network, tmp_path / "again.json", videos)
    assert not made and again["sets"] == first["sets"]
    assert {file.name: file.read_bytes() for file in videos.iterdir()} == kept
    with torch.no_grad():
        next(network.parameters()).mul_(1.5)
    measured(frozen, network, tmp_path / "other.json", videos)
    assert len(made) == 1 and len([*videos.iterdir()]) == 2 * len(kept)


def test_questions_are_the_scenes_first_frames():
    image, prompt, frames = question("latin", 2)
    sample = scene("latin", 2)
    assert np.array_equal(image, np.asarray(sample.image))
    assert (prompt, frames) == ("fill the square", 25) == (sample.prompt, len(sample.truth))


def test_the_card_gets_a_row_for_each_figure(tmp_path):
    sets = {
        "arrows8": {"20 steps": {"solved": [0] * 4, "answered": [1, 0, 1, 1], "score": [1.0, 0.25, 1.0, 1.0]}}
    }
    (tmp_path / "full.json").write_text(json.dumps({"organism": "full", "n": 4, "sets": sets}))
    page = tmp_path / "card.md"
    page.write_text("before\n<!-- results -->\nold\n<!-- end -->\nafter\n")
    card.main(card.Args((tmp_path / "full.json",), page))
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    # Wilson's interval of 3 in 4, from his formula.
    z, p, n = 1.959964, 0.75, 4
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    assert f"| arrows8 | 20 steps | 0.750 | {low:.3f} to {high:.3f} | 0.000 |" in text
    assert "| 0.812 |" in text


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"steps": (2, 2)}, "--steps 2 2: name each once"),
        ({"guidance": (2.0, 2.0000001)}, "--guidance 2 2: name each once"),
        ({"layers": (99,)}, "--layers 99: there is no such thing"),
        ({"layers": (-4,)}, "--layers -4: there is no such thing"),
        ({"steps": (0,)}, "--steps 0: there is no such thing"),
        ({"sets": ("mazes",)}, "--sets mazes: there is no such thing"),
        ({"names": ("ful",)}, "--names ful: there is no such thing"),
        ({"n": 0}, "--n 0: measure one scene"),
    ],
)
def test_what_would_be_counted_twice_or_not_at_all_is_refused(options, why):
    with pytest.raises(ValueError, match=why):
        evaluate.main(evaluate.Args(**options))


def test_seeds_that_were_asked_otherwise_do_not_stand_side_by_side():
    with pytest.raises(ValueError, match=r"asked \[64, 32\] scenes"):
        card.seeds_table([{"n": n, "sets": {}} for n in (64, 32)])


def test_seeds_stand_side_by_side(tmp_path, capsys):
    files = []
    for seed, answered in enumerate(([1, 1, 0, 0], [0, 0, 0, 0])):
        outcome = {"solved": [0] * 4, "answered": answered, "score": [0.0] * 4}
        sets = {"latin": {"1 step": outcome, "20 steps": outcome}}
        files.append(tmp_path / f"{seed}.json")
        files[-1].write_text(json.dumps({"organism": "full", "n": 4, "sets": sets}))
    card.main(card.Args(seeds=tuple(files)))
    assert "| latin | 1 step | 0.50 [0.15, 0.85] | 0.00 [0.00, 0.49] |" in capsys.readouterr().out


def test_growth_is_drawn_by_step(tmp_path):
    outcome = {"solved": [0, 0], "answered": [1, 0], "score": [0.1, 0.0]}
    for step in (100, 20):
        sets = {"latin": {"1 step": outcome, "20 steps": outcome}}
        (tmp_path / f"full.{step}.json").write_text(json.dumps({"organism": "full", "n": 2, "sets": sets}))
    files = tuple(sorted(tmp_path.glob("*.json")))
    assert [growth.step_of(file) for file in files] == [100, 20]
    growth.main(growth.Args(files, tmp_path / "growth.png"))
    assert (tmp_path / "growth.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="does not say the step"):
        growth.step_of(tmp_path / "full.json")


def test_steps_of_the_flow_end_at_no_noise():
    assert [round(float(level), 4) for level in flow.schedule(4)] == [1.0, 0.9375, 0.8333, 0.625, 0.0]
