"""What a probe reads of clean runs: the states of the tokens that are asked about, and what it is compared with."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens import analysis
from dit_lens.engine.outcomes import by_sample
from dit_lens.errors import TaskError
from dit_lens.experiments.steps import clean_steps
from dit_lens.experiments.token_questions import TokenQuestion
from dit_lens.families.latents import apart
from dit_lens.tasks.canvas import CELL, Cell
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    from torch import Tensor

    from dit_lens.engine.batch import Batch
    from dit_lens.lens import Lens

Array = NDArray[Any]
FEATURES = {
    "state": "states",
    "input": "input of layer 0",
    "latents": "x_s",
    "first_frame": "first frame",
    "board": "place alone",
}
"""What a probe reads, by the variable that holds it."""
CERTAIN = 1 - 1e-6
"""A chance that counts as certainty."""
NOT_ASKED = -1
"""The place, and the label, of an item that is none: scenes have several numbers of items."""


def read_tokens(
    lens: Lens, batch: Batch, question: TokenQuestion, layers: Sequence[int], steps: Sequence[int], label: str
) -> xr.Dataset:
    """Run every pair of a batch clean, and read the tokens at the cells that are asked about.

    Args:
        lens: the model.
        batch: the pairs.
        question: of their task.
        layers: whose states are read, after the block, on the first branch.
        steps: at which they are read.
        label: `shown`: what the run's own video shows; `right`: what the scene's only right answer does.

    Returns:
        On [sample, seed, ..., item]: `state` [layer, step, channel], `input`, `latents` [step, ...], of the last latent frame at
        a cell; `first_frame`, of the cell and the 8 around it; `board`, 1 for the cell. `taken`: 1 yes, 0 no, -1 not known.
        `ideal` [step]: how much likelier the answer takes the cell for who knows all right answers and x_s, than for who knows
        the answers alone; NaN where these are not enumerable. `place`: number of the cell, -1 of no item. `picture` [sample]:
        number of the scene's picture.

    Raises:
        TaskError: a token of the model is no cell.
    """
    samples = [sample for sample, _ in batch.pairs]
    cells = [question.cells(sample) for sample in samples]
    refuse_other_tokens(batch, samples[0])
    data, x = _along_the_run(lens, batch, question, layers, steps)
    answers = [_answer(batch, sample, x[n : n + 1], label) for n, sample in enumerate(samples)]
    taken = [_taken(*one, question) for one in zip(samples, answers, strict=True)]
    numbers = np.stack([_padded([r * batch.grid[2] + c for r, c in one], question.most) for one in cells])
    data |= {
        "first_frame": (
            ("pair", "item", "given"),
            _of_latents(x, batch.grid, cells, question.most, frame=0, around=1),
        ),
        "taken": (("pair", "item"), np.stack(taken)),
        "place": (("pair", "item"), numbers),
        "board": (("pair", "item", "cell"), _of_board(numbers, batch.grid)),
    }
    sigma = ("step", [batch.sigmas[step] for step in steps])
    coords = {"layer": list(layers), "step": list(steps), "sigma": sigma}
    pictures = {sample.id: zlib.crc32(np.asarray(sample.image).tobytes()) for sample in samples}
    out = by_sample(xr.Dataset(data, coords), batch.pairs)
    return out.assign(picture=("sample", [*pictures.values()]))


def _along_the_run(
    lens: Lens, batch: Batch, question: TokenQuestion, layers: Sequence[int], steps: Sequence[int]
) -> tuple[dict[str, Any], Tensor]:
    """Run a batch clean; return what is read at the steps, as variables, and the last latents."""
    samples = [sample for sample, _ in batch.pairs]
    cells = [question.cells(sample) for sample in samples]
    ideals = [_ideal(lens, sample) for sample in samples]
    places = [("block", batch.layout.branches[0], layer) for layer in layers]
    first = ("block_in", batch.layout.branches[0], 0)
    parts: dict[str, list[Array]] = {"state": [], "input": [], "latents": [], "ideal": []}
    x = batch.noise
    for step, before, now in clean_steps(batch, [*places, first]):
        x = now.latents
        if step not in steps:
            continue
        states = [_of_states(now.states[place], cells, question.most) for place in places]
        beliefs = zip(samples, ideals, before, strict=True)
        parts["state"].append(np.stack(states))
        parts["input"].append(_of_states(now.states[first], cells, question.most))
        parts["latents"].append(_of_latents(before, batch.grid, cells, question.most, frame=-1, around=0))
        parts["ideal"].append(np.stack([_believed(*one, question, batch.sigmas[step]) for one in beliefs]))
    ends = {"state": ("layer", "pair", "item", "channel"), "input": ("pair", "item", "channel")}
    ends |= {"latents": ("pair", "item", "value"), "ideal": ("pair", "item")}
    return {name: (("step", *ends[name]), np.stack(values)) for name, values in parts.items()}, x


def refuse_other_tokens(batch: Batch, sample: Sample) -> None:
    """Refuse a model whose tokens are no cells.

    Raises:
        TaskError: it says how large they are.
    """
    if (batch.grid[1] * CELL, batch.grid[2] * CELL) != sample.size:
        raise TaskError(
            f"The tokens of this model are a grid of {batch.grid[1]} x {batch.grid[2]} of {sample.size} pixels, and a cell of "
            f"the board is {CELL} pixels: a token has to be a cell."
        )


def _answer(batch: Batch, sample: Sample, latents: Tensor, label: str) -> str:
    """Return the answer that gives the labels: of the run's video, or the right one."""
    return sample.score(batch.decode(latents)[0]).answer if label == "shown" else sample.answers[0].text


def _taken(sample: Sample, answer: str, question: TokenQuestion) -> Array:
    taken = question.taken(sample, answer)
    known = [NOT_ASKED if taken is None else int(cell in taken) for cell in question.cells(sample)]
    return _padded(known, question.most)


def _of_board(numbers: Array, grid: Sequence[int]) -> Array:
    """Return each item's place as a channel for each cell of the board, [row, item, cell]."""
    return (numbers[..., None] == np.arange(grid[1] * grid[2])).astype(np.float32)


def _padded(values: Sequence[int], count: int) -> Array:
    return np.array([*values, *[NOT_ASKED] * (count - len(values))])


def _of_states(states: Tensor, cells: Sequence[Sequence[Cell]], most: int) -> Array:
    """Return the last frame's states at cells, [row, item, channel], from [row, frame, y, x, channel]; 0 of no item."""
    out = np.zeros((len(cells), most, states.shape[-1]), np.float32)
    for row, asked in enumerate(cells):
        for item, (r, c) in enumerate(asked):
            out[row, item] = states[row, -1, r, c].float().cpu().numpy()
    return out


def _of_latents(
    latents: Tensor, grid: Sequence[int], cells: Sequence[Sequence[Cell]], most: int, frame: int, around: int
) -> Array:
    """Return the latents of one frame that lie under the tokens at cells, and under those around them: [row, item, value]."""
    x = apart(latents)["video"][:, :, frame].float().cpu().numpy()  # [row, channel, y, x]
    high, wide = x.shape[2] // grid[1], x.shape[3] // grid[2]
    x = np.pad(x, [(0, 0), (0, 0), (around * high, around * high), (around * wide, around * wide)])
    span = 2 * around + 1
    out = np.zeros((len(cells), most, x.shape[1] * span * high * span * wide), np.float32)
    for row, asked in enumerate(cells):
        for item, (r, c) in enumerate(asked):
            out[row, item] = x[row, :, r * high : (r + span) * high, c * wide : (c + span) * wide].ravel()
    return out


def _ideal(lens: Lens, sample: Sample) -> analysis.IdealDenoiser | None:
    """Return the ideal denoiser of a sample; None where its answers are not enumerable."""
    try:
        return analysis.ideal_denoiser(sample, lens.encode)
    except TaskError:
        return None


def _believed(
    sample: Sample, ideal: analysis.IdealDenoiser | None, x: Tensor, question: TokenQuestion, sigma: float
) -> Array:
    """Return how much likelier than without x_s the answer takes each cell for the ideal denoiser, [item].

    Over 0 is a yes: of all rules that know x_s, it has the best balanced accuracy. A cell that every answer takes is a yes, too.
    """
    out = np.full(question.most, np.nan)
    if ideal is not None:
        weights = ideal.weights(x[None], sigma)[0]
        takes = [question.taken(sample, text) or set() for text in ideal.texts]
        cells = question.cells(sample)
        inside = np.array([[cell in taken for taken in takes] for cell in cells], float)
        out[: len(cells)] = inside @ weights - np.minimum(inside @ ideal.prior, CERTAIN)
    return out


__all__ = ["FEATURES", "NOT_ASKED", "read_tokens", "refuse_other_tokens"]
