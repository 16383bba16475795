"""What the middle layer knows, step by step: linear probes on a batch's states, with their chance baselines.

A `Question` says what is asked of a state on a task, and of what part of it. Probes are fitted on scenes that are not
among those tested, one for every step; where a task has too few scenes for that, they are cut into folds by layout,
and a scene is read by probes that saw no scene of its fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.probe import common, fit_probe, pick, shuffle
from dit_lens.tasks.canvas import BALLS, OBJECT, Cell, centre, likeness, patch
from dit_lens.tasks.permanence import ball, hidden_frames, lanes
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch

SHUFFLES = 3
"""Fits on shuffled labels, of which the mean is reported."""

State = NDArray[np.float32]
"""The states of one run at one step: [frame, y, x, channel]."""


@dataclass(frozen=True)
class Question:
    """What is asked of a state.

    Attributes:
        name: of the question.
        one: whether exactly one choice is right.
        choices: (sample) to the names of the choices.
        right: (sample, the scorer's answer to the finished video) to the name of what is to be found, "" for nothing.
        read: (sample, state) to [choice, channel], what is read for each choice by the same probe, or [1, channel],
            read by a probe for each choice.
        fold: (sample) to its fold; 0 for all where training scenes are none of the tested.
        folds: how many there are.
    """

    name: str
    one: bool
    choices: Callable[[Sample], list[str]]
    right: Callable[[Sample, str], str]
    read: Callable[[Sample, State], NDArray[Any]]
    fold: Callable[[Sample], int] = lambda _: 0
    folds: int = 1

    def labels(self, sample: Sample, right: str) -> NDArray[np.bool_]:
        """Say of every choice whether it is in an answer."""
        return np.array([name in right.split(" + ") for name in self.choices(sample)])

    def name_of(self, sample: Sample, odds: NDArray[Any]) -> str:
        """Return the answer that odds [choice] give."""
        picked = pick(odds, self.one)
        return " + ".join(name for name, yes in zip(self.choices(sample), picked, strict=True) if yes)


def ask(task: str) -> list[Question]:
    """Return the questions of a task; none where there are none."""
    return QUESTIONS.get(task, [])


def objects(sample: Sample) -> list[Cell]:
    """Return the cells of the objects in the scene."""
    seen = likeness(np.asarray(sample.image), OBJECT)
    cells = [(r, c) for r in range(sample.height // 16) for c in range(sample.width // 16)]
    return [cell for cell in cells if patch(seen, *centre(cell), 3) > 0.5]


def _goals(sample: Sample) -> list[Cell]:
    return list(sample.scorer.keywords["goals"])  # type: ignore[union-attr]


def _behind_the_bar(sample: Sample, state: State) -> NDArray[Any]:
    """Return the states behind the bar while the ball is hidden, the mean over frames and columns: [lane, channel]."""
    hidden = set(hidden_frames(sample).tolist())
    times = len(sample.truth) if sample.truth is not None else sample.num_frames
    per = (times - 1) // (len(state) - 1)  # frames in a latent frame; the first stands alone
    inside = [f for f in range(1, len(state)) if hidden.issuperset(range(1 + (f - 1) * per, 1 + f * per))]
    means: NDArray[Any] = state[inside, :, 1:-1].mean((0, 2))
    return means


def _fold(sample: Sample) -> int:
    """Cut the 24 layouts of `occlude` into 4 folds, each with all colours and lanes on either side."""
    colour, (lane, column) = ball(sample)
    leftward = column == 0
    return (list(BALLS).index(colour) + lane + 2 * int(leftward)) % 4


QUESTIONS: dict[str, list[Question]] = {
    "choose": [
        Question(
            "goal",
            True,
            lambda s: [f"goal {i}" for i in range(len(_goals(s)))],
            lambda s, answer: answer if answer.startswith("goal ") else "",
            lambda s, h: np.stack([h[-1][cell] for cell in _goals(s)]),
        )
    ],
    "circle": [
        Question(
            "objects",
            False,
            lambda s: [f"{r}{c}" for r, c in objects(s)],
            lambda s, answer: " + ".join(f"{r}{c}" for r, c in objects(s) if f"{r}{c}" in answer.split()),
            lambda s, h: np.stack([h[-1][cell] for cell in objects(s)]),
        )
    ],
    "occlude": [
        Question(
            "colour",
            True,
            lambda _: list(BALLS),
            lambda s, _: lanes(s)[0],
            lambda s, h: _behind_the_bar(s, h).mean(0, keepdims=True),
            fold=_fold,
            folds=4,
        ),
        Question(
            "lane",
            True,
            lambda _: ["0", "1", "2", "3"],
            lambda s, _: lanes(s)[1],
            _behind_the_bar,
            fold=_fold,
            folds=4,
        ),
    ],
}
"""Circle and choose: what the video ends up with, right or wrong, from the objects' cells in the last latent frame.
Occlude: the ball's colour and lane, from the states behind the bar in the latent frames in which it is hidden."""


@dataclass
class Read:
    """What was read of the states of some runs.

    Attributes:
        values: by question, step and run: [choice or 1, channel].
        right: by question and run, the name of what is to be found.
    """

    values: dict[str, list[list[NDArray[Any]]]]
    right: dict[str, list[str]]


def read_states(batch: Batch, questions: Sequence[Question]) -> Read:
    """Run a batch, and read the middle layer's states (conditional branch) at every step."""
    place, x = ("block", "cond", batch.layout.layers // 2), batch.noise
    samples = [sample for sample, _ in batch.pairs]
    values: dict[str, list[list[NDArray[Any]]]] = {q.name: [] for q in questions}
    for step in range(batch.steps):
        out = batch.step(step, x, watch=[place])
        states = out.states[place].float().cpu().numpy()
        for q in questions:
            values[q.name].append([q.read(s, h) for s, h in zip(samples, states, strict=True)])
        x = out.latents
    answers = [s.score(batch.decode(z[None])[0]).answer for s, z in zip(samples, x, strict=True)]
    right = {q.name: [q.right(s, a) for s, a in zip(samples, answers, strict=True)] for q in questions}
    return Read(values, right)


def fit(batch: Batch, questions: Sequence[Question]) -> xr.Dataset:
    """Fit probes for every question, step and fold: on the labels (draw 0), and on shuffled ones.

    Returns:
        `QUESTION_weight` [step, fold, draw, choice, channel], `QUESTION_bias` [step, fold, draw, choice], and
        `QUESTION_common` [fold, place], the odds of the choices by their place in the list alone.
    """
    read = read_states(batch, questions)
    out: dict[str, Any] = {}
    for q in questions:
        folds = np.array([q.fold(sample) for sample, _ in batch.pairs])
        fitted = [_fit_fold(q, batch, read, _trained(q, folds, fold)) for fold in range(q.folds)]
        weight, bias, usual = (np.stack(part) for part in zip(*fitted, strict=True))
        dims = ("fold", "step", "draw", f"{q.name}_choice")
        out[f"{q.name}_weight"] = ((*dims, f"{q.name}_channel"), weight)
        out[f"{q.name}_bias"] = (dims, bias)
        out[f"{q.name}_common"] = (("fold", f"{q.name}_place"), usual)
    # Questions of one task share their folds.
    return xr.Dataset(out).assign_coords(draw=range(1 + SHUFFLES))


def _trained(question: Question, folds: NDArray[np.intp], fold: int) -> NDArray[np.intp]:
    return np.flatnonzero(folds != fold) if question.folds > 1 else np.arange(len(folds))


def _fit_fold(q: Question, batch: Batch, read: Read, runs: NDArray[np.intp]) -> tuple[NDArray[Any], ...]:
    """Fit a fold: weight [step, draw, choice, channel], bias [step, draw, choice], common [place]."""
    samples = [batch.pairs[i][0] for i in runs]
    labels = [q.labels(s, read.right[q.name][i]) for s, i in zip(samples, runs, strict=True)]
    shared = len(read.values[q.name][0][0]) == len(labels[0])
    rng = np.random.default_rng(0)
    draws = [labels, *(shuffle(labels, rng, within=shared) for _ in range(SHUFFLES))]
    fits = []
    for step in read.values[q.name]:
        states = np.concatenate([step[i] for i in runs])
        fits.append([fit_probe(states, np.concatenate(d)[:, None] if shared else np.stack(d)) for d in draws])
    usual = common(labels)
    return (*(np.array([[pair[k] for pair in step] for step in fits]) for k in (0, 1)), usual)


def named(batch: Batch, questions: Sequence[Question], fitted: xr.Dataset) -> xr.Dataset:
    """Let the probes read the states of a batch.

    Returns:
        For every question, on [pair] and [pair, step]: `QUESTION_right`, what is to be found; `QUESTION_probe`, what the probe
        names; `QUESTION_hit`, whether that is right; `QUESTION_shuffled`, how often the probes on shuffled labels are;
        `QUESTION_common`, whether the most common answer is.
    """
    read = read_states(batch, questions)
    text = np.dtypes.StringDType()
    out: dict[str, Any] = {}
    for q in questions:
        right = read.right[q.name]
        weight, bias, usual = (fitted[f"{q.name}_{n}"].values for n in ("weight", "bias", "common"))
        said = np.empty((len(batch.pairs), batch.steps, 1 + SHUFFLES), object)
        for i, (sample, _) in enumerate(batch.pairs):
            fold = q.fold(sample)
            for step, values in enumerate(read.values[q.name]):
                odds = np.einsum("dkc,sc->dks", weight[fold, step], values[i]) + bias[fold, step][..., None]
                said[i, step] = [q.name_of(sample, one.ravel()) for one in odds]
        hits = (said == np.array(right, object)[:, None, None]) & (np.array(right, object) != "")[
            :, None, None
        ]
        usually = [q.name_of(s, usual[q.fold(s)][: len(q.choices(s))]) for s, _ in batch.pairs]
        out[f"{q.name}_right"] = ("pair", np.array(right, text))
        out[f"{q.name}_probe"] = (("pair", "step"), said[..., 0].astype(text))
        out[f"{q.name}_hit"] = (("pair", "step"), hits[..., 0].astype(bool))
        out[f"{q.name}_shuffled"] = (("pair", "step"), hits[..., 1:].astype(float).mean(-1))
        out[f"{q.name}_common"] = ("pair", [bool(u == r != "") for u, r in zip(usually, right, strict=True)])
    return xr.Dataset(out)


__all__ = ["QUESTIONS", "Question", "ask", "fit", "named", "objects", "read_states"]
