"""Are the intermediate frames scratch space for the answer in the last one?

A video model may work its answer out in frames 1 to F-2 of its latents (the first frame is given, the last one shows the
answer), or each frame may come to the answer by itself. So what stands in these frames is replaced, at the steps of `--at-steps`,
and the last frame alone is judged. Two levels:

- Latents. x_s becomes (1 - sigma_s) z + sigma_s eps in these frames, eps the noise that the run began with: of what the run
  has written there nothing goes on to the next step but what z takes from x0. z is zeros, the mean of its x0 over time, its x0
  with all tokens shuffled, x0 of another scene's run, the right answer (encoded; of several the one nearest to the clean run's
  end), or another answer than that run shows: a wrong one of `circle`, `odd` and `tictac`, else another right one. "itself"
  keeps x0 of the run: what its first noise does alone.
- States: the output of one of `--layers` (every branch) becomes zeros, the mean of these frames' tokens, these tokens
  shuffled, or another scene's states.

Steps are from 1 on: at step 0 there is nothing but noise. The first third of the noise levels (over 2/3) always has its arm.

Beside each arm:

- a placebo: every token of x0, or of the state, changed by as much, in a random direction (the noise is the first one, too);
- the same in frames 2 to F-1, as many with the last among them: the positive control, which hits the answer itself;
- leverage: how far the last frame is from the clean run's right after the first step that is edited, in the latents and in x0;
- the ideal denoiser, edited likewise from the same noise: it holds all frames of the right videos jointly, and computes nothing.

The last frame is judged in the video whose other latent frames are those of the answer that it is nearest to, by the scorer of
all frames. The primary outcome: right in the last frame, with zeros in the latents of the intermediate frames in the first
third, minus its placebo.

    python analyses/scratch_space.py --task arrows --samples 32 --out runs/scratch_space
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.errors import TaskError
from dit_lens.experiments.cost import runs_of_arms
from dit_lens.experiments.last_frame import KnownAnswers, judge
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import BOUNDS, headline, unfold
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.primary import primary_outcome
from dit_lens.experiments.samples import batch_of, pairs_of, require_latent_frames, require_scorer
from dit_lens.experiments.samples import draw as draw_samples
from dit_lens.experiments.scratch import ANOTHER, OF_LATENTS, OF_STATES, Change, other_scene
from dit_lens.experiments.scratch_runs import IdealRuns, Planted, run_changes
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.tasks.wrong import wrong_answers

FIRST, LEVEL = "first third", 2 / 3
"""The span that always has its arms, and the noise level over which it is."""
WHERE = ("intermediate", "with the last")
"""Which frames: all but the first and the last, or as many, the last one among them."""
EDITS = ("replaced", "placebo")
OTHER_SEED = 1_000_003
"""Added to a noise seed for that of the other scene."""
NAMES = {
    "last_solved": "right in the last frame",
    "last_score": "score of the last frame",
    "solved": "right",
    "score": "score",
}
LEVELS = {"latents": "latents", "ideal": "latents of the ideal denoiser", "states": "states"}


@dataclass
class Options(StudyOptions):
    """Replace intermediate frames, and judge the last one."""

    at_steps: str = "all"
    """Steps of further arms beside the first third of the noise levels, each an arm: all (from 1 on together), a step (4), an
    interval (4-9), auto (5 steps, each alone), or several of these, as all,4-9; none leaves it at the first third."""
    contents: str = "all"
    """What takes the place of latents: all, or some beside zeros, such as "token shuffle,right answer"."""
    layers: str = "auto"
    """Layers whose states are replaced, one at a time: all, auto (3 of them), none, or a list such as 0,4,9."""
    out: Path = Path("runs/scratch_space")


def main(options: Options) -> int:
    """Replace, judge, compare, draw, save."""
    require_scorer(options)
    contents_of(options)
    lens = options.load()
    drawn = draw_samples(options, lens)
    require_latent_frames(drawn, lens, 3)
    measured = study(
        options,
        "scratch_space",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: runs_of(batch, options),
        drawn=drawn,
    )
    conclude(measured, options)
    return measured.exit_code


def contents_of(options: Options) -> list[str]:
    """Return what takes the place of latents; zeros are always among it.

    Raises:
        TaskError: there is no such content, or the task has no other answer.
    """
    scene = dl.tasks.make(options.task, options.scene)
    has_others = len(scene.answers) + len(wrong_answers(scene)) > 1
    known = [content for content in OF_LATENTS if has_others or content != ANOTHER]
    if options.contents == "all":
        return known
    chosen = {part.strip() for part in options.contents.split(",")}
    if unknown := sorted(chosen - {*known}):
        raise TaskError(f"--contents {', '.join(unknown)}: on {options.task} there are {', '.join(known)}.")
    return [content for content in known if content in chosen | {"zeros"}]


def spans_of(batch: Batch, options: Options) -> dict[str, list[int]]:
    """Return the steps that are edited together, by name.

    Raises:
        TaskError: no step but the first is in the first third of the noise levels.
    """
    first = [step for step in range(1, batch.steps) if batch.sigmas[step] > LEVEL]
    if not first:
        raise TaskError(
            f"{batch.steps} steps: take so many that one after the first has a noise level over {LEVEL:.2f}; raise --steps."
        )
    spans = {FIRST: first}
    for part in options.at_steps.split(",") if options.at_steps != "none" else ():
        steps = choose(part.strip(), batch.steps, "at-steps", first=1)
        spans |= {str(step): [step] for step in steps} if part.strip() == "auto" else {part.strip(): steps}
    return spans


def changes_of(batch: Batch, options: Options) -> dict[str, tuple[dict[str, list[Any]], list[Change]]]:
    """Return the arms of each level, and the labels of the dimensions that they are, the last of them the fastest."""
    frames, spans = batch.noise.shape[2], spans_of(batch, options)
    where = dict(zip(WHERE, (range(1, frames - 1), range(2, frames)), strict=True))
    layers = [] if options.layers == "none" else choose(options.layers, batch.layout.layers, "layers", auto=3)
    if layers and batch.grid[0] != frames:
        raise TaskError(
            f"{batch.grid[0]} frames of tokens, {frames} of latents: no state is of one frame; give --layers none."
        )
    levels: dict[str, tuple[list[Any], Sequence[str]]] = {"latents": ([None], contents_of(options))}
    levels |= {"states": (layers, OF_STATES)} if layers else {}
    out = {}
    for level, (numbers, contents) in levels.items():
        labels = {"content": contents, "span": [*spans], "where": [*WHERE], "edit": [*EDITS]}
        changes = [
            Change(content, spans[span], list(where[place]), edit == "placebo", layer)
            for layer, content, span, place, edit in product(numbers, *labels.values())
        ]
        if level == "states":  # whose contents are others, so they have a dimension of their own
            labels = {"layer": numbers, "state_content": labels.pop("content"), **labels}
        out[level] = labels, changes
    return out


def runs_of(batch: Batch, options: Options) -> float:
    """Return how many runs the study makes of a pair: a clean one, and for each level the arms and another scene's."""
    levels = [changes for _, changes in changes_of(batch, options).values()]
    arms = [[change.placed(batch.noise[0], None) for change in changes] for changes in levels]
    return 1 + sum(runs_of_arms(batch, level) + 1 for level in arms)


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run every pair clean and under every change; judge the last frame, and the whole video."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    levels = changes_of(batch, options)
    scenes = {sample.id: other_scene(sample, options.task).with_(**options.changes) for sample in samples}
    beside = batch_of(lens, [(scenes[sample.id], seed + OTHER_SEED) for sample, seed in pairs], options)
    known = {sample.id: KnownAnswers.of(sample, lens.encode) for sample in samples}
    answers = [known[sample.id] for sample, _ in pairs]
    has_others = ANOTHER in contents_of(options)
    clean = batch.noise
    for step in range(batch.steps):
        clean = batch.step(step, clean).latents
    planted = Planted(batch, answers, clean, has_others, options.draw)
    alone = judge(batch, answers, clean[None])
    parts = [named(alone.drop_vars("last_answer").isel(arm=0), "clean")]
    for level, (labels, changes) in levels.items():
        ended, moved = run_changes(batch, beside, changes, planted)
        found = planted.compare(judge(batch, answers, ended), alone)
        parts.append(named(unfold(found.merge(moved), labels), level))
    ideal = IdealRuns(batch, beside, answers, lens.encode)
    own = Planted(batch, answers, ideal.clean, has_others, options.draw)
    labels, changes = levels["latents"]
    ended, moved = ideal.run(changes, own)
    alone, found = (judge(batch, answers, x.to(clean), whole=False) for x in (ideal.clean[None], ended))
    parts.append(named(unfold(own.compare(found, alone).merge(moved), labels), "ideal"))
    spans = [",".join(map(str, steps)) for steps in spans_of(batch, options).values()]
    parts.append(xr.Dataset({"steps": ("span", np.array(spans, np.dtypes.StringDType()))}))
    return by_sample(xr.merge(parts, compat="override", join="exact"), pairs)


def named(found: xr.Dataset, level: str) -> xr.Dataset:
    """Put the level before the names of what was found."""
    return found.rename({str(name): f"{level}_{name}" for name in found.data_vars})


def conclude(measured: Measured, options: Options) -> None:
    """Compare every change with its placebo and with the clean run, paired; draw; save."""
    results = measured.results
    summary: dict[str, Any] = {
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "contents": results.content.values.tolist(),
        "steps": dict(zip(results.span.values.tolist(), results.steps.values.tolist(), strict=True)),
    }
    if results.sizes["sample"] < 2:
        write_summary(options, summary | {"not measured": "one sample has no interval"}, measured.left_out)
        return
    if not bool(results.clean_last_solved.any()):
        summary["note"] = "no clean run is right in its last frame: nothing can be lost, and little be seen"
    summary |= {
        "right, clean": headline(analysis.mean(results.clean_solved)),
        "right in the last frame, clean": headline(analysis.mean(results.clean_last_solved)),
        **primary(results),
        **of_level(results, "latents"),
        **of_level(results, "ideal"),
        **(of_level(results, "states") if "layer" in results.dims else {}),
    }
    means = analysis.mean(results.latents_last_solved, along="content")
    write_summary(options, summary, measured.left_out, means.attrs)
    draw(results, options)


def primary(results: xr.Dataset) -> dict[str, Any]:
    """Return the primary contrast, zeros minus placebo in the first third, beside the null and the positive control.

    Each of the two also minus the clean run: where the placebo does as much harm as zeros, their contrast says nothing.
    """
    out = {}
    for where in WHERE:
        place = f"{where} frames, first third"
        differences = {}
        for level, name in (("latents", "model"), ("ideal", "ideal denoiser")):
            solved = results[f"{level}_last_solved"].sel(content="zeros", span=FIRST, where=where, drop=True)
            zeros, placebo = (solved.sel(edit=edit, drop=True) for edit in EDITS)
            contrast = partial(analysis.effect, zeros, placebo, bounds=(0, 1))
            is_primary = where == WHERE[0] and level == "latents"
            said = primary_outcome(contrast) if is_primary else headline(contrast())
            out[f"right in the last frame, zeros minus placebo, {place}, {name}"] = said
            differences[name] = zeros.astype(float) - placebo
            if level == "latents":
                for what, values in (("zeros", zeros), ("placebo", placebo)):
                    against = analysis.effect(values, results.clean_last_solved, bounds=(0, 1))
                    out[f"right in the last frame, {what} minus clean, {place}"] = headline(against)
        beyond = analysis.effect(*differences.values(), bounds=(-1, 1))
        out[f"right in the last frame, zeros minus placebo, {place}, model minus ideal denoiser"] = headline(
            beyond
        )
    return out


def of_level(results: xr.Dataset, level: str) -> dict[str, Any]:
    """Say what the changes of one level do beside their placebos and the clean run, and how far they move the last frame."""
    along = "state_content" if level == "states" else "content"
    last = results[f"{level}_last_solved"]
    replaced, placebo = (last.sel(edit=edit, drop=True) for edit in EDITS)
    about = {
        "right in the last frame": analysis.mean(last, bounds=(0, 1), along=along),
        "right in the last frame, minus placebo": analysis.effect(
            replaced, placebo, bounds=(0, 1), along=along
        ),
        "answer of the clean run kept": analysis.mean(
            results[f"{level}_last_kept"], bounds=(0, 1), along=along
        ),
    }
    if level != "ideal":  # which is nearly always right
        clean = {name: results[f"clean_{name}"] for name in ("last_solved", "last_score", "solved", "score")}
        for name, values in clean.items():
            difference = analysis.effect(results[f"{level}_{name}"], values, bounds=(0, 1), along=along)
            about[f"{NAMES[name]}, minus clean"] = difference
    if f"{level}_last_another" in results:
        about["the other answer in the last frame"] = analysis.mean(
            results[f"{level}_last_another"], bounds=(0, 1)
        )
    about["leverage, latents"] = analysis.mean(results[f"{level}_moved"], bounds=BOUNDS["distance"])
    about["leverage, x0"] = analysis.mean(results[f"{level}_moved_x0"], bounds=BOUNDS["distance"])
    return {f"{LEVELS[level]}: {name}": headline(found) for name, found in about.items()}


def draw(results: xr.Dataset, options: Options) -> None:
    """Draw what is right in the last frame, by content and by layer, and the leverage by content."""
    clean = analysis.mean(results.clean_last_solved, bounds=(0, 1))
    for name, label in (
        ("last_solved", "right in the last frame (share)"),
        ("moved_x0", "x0 of the last frame moved (RMS)"),
    ):
        lines = {
            f"{where}, {edit}": results[f"latents_{name}"].sel(span=FIRST, where=where, edit=edit, drop=True)
            for where in WHERE
            for edit in EDITS
        }
        is_rate = name == "last_solved"
        means = analysis.mean(stacked(lines), bounds=(0, 1) if is_rate else BOUNDS["distance"])
        title = f"Frames replaced in the first third of the noise levels · {options.source}"
        figure = plot.curves(
            means, "content", value_label=label, title=title, reference=clean if is_rate else None
        )
        plot.save(figure, options.out / f"{name}_by_content.png")
    if "layer" in results.dims:
        solved = results.states_last_solved.sel(span=FIRST, where=WHERE[0])
        lines = {
            c: solved.sel(state_content=c, edit=EDITS[0], drop=True)
            for c in results.state_content.values.tolist()
        }
        lines["placebo of zeros"] = solved.sel(state_content="zeros", edit=EDITS[1], drop=True)
        means = analysis.mean(stacked(lines).drop_vars(["span", "where"], errors="ignore"), bounds=(0, 1))
        title = f"States of the intermediate frames replaced · {options.source}"
        label = "right in the last frame (share)"
        figure = plot.curves(means, "layer", value_label=label, title=title, reference=clean, marks=True)
        plot.save(figure, options.out / "last_solved_by_layer.png")


def stacked(lines: dict[str, xr.DataArray]) -> xr.DataArray:
    """Put the curves of a figure together."""
    arrays = [values.astype(float).rename("values") for values in lines.values()]
    return xr.concat(arrays, xr.Variable("frames", list(lines)))


if __name__ == "__main__":
    run_script(main, Options)
