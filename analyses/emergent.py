"""What happens along the steps: several paths at once, commitment, self-correction, perception before action.

From clean runs alone (arXiv 2603.16870, emergent behaviour): x0 of every step is decoded and read by the task's
scorer. Per run: the answers, the step after which the answer no longer changes, how many it held before, turns
from wrong to right and back. On boards with a trail: how many answers x0 shows at once, the mass of its trail
off the right path, and the share of the right path.

For what x0 is compared with, the ground-truth video goes through the model's codec and is read in the same way: the
floor of what codec and scorer add.

Perception before action, on choose and circle: linear probes on the middle layer's states at the objects' cells
(`dit_lens.experiments.probes`), one a step, fitted on training scenes, name the object that the video ends up with. They stand
beside probes on shuffled labels and the most common answer. They are fitted to find the model's own final
choice, right or wrong. The step from which a probe names it is compared with the step from which x0's picture leans to
it. One rule dates both: the first step from which on the answer is that of the last step. Both name a pick,
not a whole answer (the scorer's stricter reading stands beside). A run counts if its probe ends at what the video
shows, as a probe that knows nothing may hold its answer from the start.

Working memory, on occlude: whether x0 shows the ball while it is hidden, and lane and colour of the one that comes
out; and whether probes find them in the states behind the bar, in the latent frames in which the ball is hidden. The
model sees the first frame at every layer, so that these states could hold it need not mean that they remember it.

    python analyses/emergent.py --task maze --samples 64 --out runs/emergent_maze
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.outcomes import by_sample
from dit_lens.experiments import probes as probing
from dit_lens.experiments.clean_runs import clean_runs
from dit_lens.experiments.cost import announce_fit
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.outcomes import BOUNDS, headline
from dit_lens.experiments.samples import batch_of, pairs_of, training_samples
from dit_lens.experiments.script import run_script
from dit_lens.experiments.steps import distance_to_end
from dit_lens.experiments.study import Measured, once, study
from dit_lens.experiments.summary import write_summary
from dit_lens.tasks import explore
from dit_lens.tasks.permanence import lanes, permanence


@dataclass
class Options(StudyOptions):
    """Read x0 at every step."""

    probe_scenes: int = 128
    """Training scenes that the probes are fitted on. 0 leaves them out."""
    clean: Path = Path("runs/clean.zarr")
    """Store of the clean runs. What it holds is not made again."""
    out: Path = Path("runs/emergent")

    AROUND: ClassVar[tuple[str, ...]] = ("clean",)

    @property
    def questions(self) -> list[probing.Question]:
        """What probes are asked on the task."""
        return probing.ask(self.task) if self.draws_scenes else []


def main(options: Options) -> int:
    """Read every clean run, fit the probes, draw, save."""
    lens = options.load()
    if options.probe_scenes == 1:
        raise dl.TaskError("--probe-scenes 1: a probe is fitted on several; 0 fits none.")
    probes = fit_probes(lens, options) if options.questions and options.probe_scenes else None
    measured = study(
        options,
        "emergent",
        lens,
        lambda part: measure(lens, part, probes, options),
        probes,
        runs=lambda batch: 1.0 if probes is None else 2.0,  # the probes read a run of their own
    )
    conclude(measured, options)
    return measured.exit_code


def fit_probes(lens: dl.Lens, options: Options) -> xr.Dataset:
    """Fit probes on training scenes, or read those that an earlier command fitted."""
    questions = options.questions
    if questions[0].folds > 1:  # too few scenes to keep some for testing: the probes are fitted by fold
        scenes = [
            dl.tasks.make(options.task, i).with_(**options.changes) for i in range(options.probe_scenes)
        ]
    else:
        scenes = training_samples(options, options.probe_scenes)

    def fit() -> xr.Dataset:
        announce_fit("the probes of emergent", lens, scenes, options, lambda batch: 1.0)
        pairs = [(s, i) for i, s in enumerate(scenes)]
        return probing.fit(batch_of(lens, pairs, options), questions)

    return once(options, "probes", lens, scenes, fit)


def measure(
    lens: dl.Lens, samples: list[dl.Sample], probes: xr.Dataset | None, options: Options
) -> xr.Dataset:
    """Read x0 of every step of every run."""
    pairs = pairs_of(samples, options)
    runs = clean_runs(
        lens, pairs, options.clean, options.steps, options.cfg_scale, options.at_once, **options.arguments
    )
    columns: dict[str, list[Any]] = {}
    for (sample, _), run in zip(pairs, runs, strict=True):
        read_here = {"distance": distance_to_end(run["x0"]).values}
        if sample.scorer is not None:
            frames = [lens.decode(run["x0"].isel(step=i)) for i in range(run["x0"].sizes["step"])]
            read_here |= read(sample, frames)
        for name, values in read_here.items():
            columns.setdefault(name, []).append(values)
    data = xr.Dataset(
        {n: (("pair", "step"), as_array(v)) for n, v in columns.items()},
        {"step": runs[0]["x0"].step.values, "sigma": ("step", runs[0]["x0"].sigma.values)},
    )
    if probes is not None:
        batch = batch_of(lens, pairs, options)
        data = data.merge(probing.named(batch, options.questions, probes))
    data = by_sample(data, pairs)
    for name, floor in floors(lens, samples, [n for n in FLOORED if n in data]).items():
        data[f"{name}_floor"] = ("sample", floor)
    return data


def as_array(values: Any) -> np.ndarray:
    """Return an array; of text, one that zarr has a specification for."""
    array = np.array(values)
    return array.astype(np.dtypes.StringDType()) if array.dtype.kind in "UO" else array


def read(sample: dl.Sample, frames: list[np.ndarray]) -> dict[str, list[Any]]:
    """Read what a run's x0 holds at every step."""
    scores = [sample.score(video) for video in frames]
    out: dict[str, list[Any]] = {n: [getattr(s, n) for s in scores] for n in ("solved", "score", "answer")}
    if sample.task in ("loop", "choose"):  # a maze has one answer
        out["candidates"] = [explore.candidates(sample, video) for video in frames]
    if sample.task in ("maze", "loop"):
        out["off_path"] = [explore.off_path(sample, video) for video in frames]
        out["on_path"] = [explore.on_path(sample, video) for video in frames]
    if sample.task == "choose":
        out["goal_x0"] = [explore.leaning(sample, video) for video in frames]
    if sample.task == "circle":
        (question,) = probing.ask("circle")
        out["objects_x0"] = [question.right(sample, s.answer) for s in scores]
    if sample.task == "occlude":
        seen, (colour, lane) = [permanence(sample, video) for video in frames], lanes(sample)
        out |= {"hidden_ball": [s.hidden for s in seen]}
        out |= {"colour_x0": [s.colour for s in seen], "lane_x0": [s.lane for s in seen]}
        out |= {
            "keeps_colour": [s.colour == colour for s in seen],
            "keeps_lane": [s.lane == lane for s in seen],
        }
    return out


def floors(lens: dl.Lens, samples: list[dl.Sample], names: list[str]) -> dict[str, list[float]]:
    """Read the ground truth, after the model's codec where the family can encode, as x0 is read."""
    floors_of: dict[str, list[float]] = {name: [] for name in names}
    for sample in samples if names else []:
        video = sample.truth
        if lens.family.codec.encode is not None:
            video = lens.family.codec.decode(lens.pipe, lens.family.codec.encode(lens.pipe, video))[0]
        values = read(sample, [video])
        for name in names:
            floors_of[name].append(float(values[name][0]))
    return floors_of


# ---- what it comes to


def conclude(measured: Measured, options: Options) -> None:
    """Summarise, draw, save."""
    results = measured.results
    summary: dict[str, Any] = {"samples": results.sizes["sample"], "seeds": results.sizes["seed"]}
    first, last = (results.isel(step=i, drop=True) for i in (0, -1))
    for name in [n for n in LABELS if n in results]:
        bounds = BOUNDS.get(name, (0.0, 1.0) if name in SHARES else (-np.inf, np.inf))
        means = analysis.mean(results[name].astype(float), bounds=bounds, along="step")
        summary[f"{name} by step"] = headline(means)
        change = analysis.effect(last[name].astype(float), first[name].astype(float), bounds=bounds)
        summary[f"{name} at the last step minus at the first"] = headline(change)
        floor = None
        if f"{name}_floor" in results:
            floor = analysis.mean(results[f"{name}_floor"].astype(float), bounds=bounds)
            summary[f"{name} of the ground truth"] = headline(floor)
            every = results[f"{name}_floor"].expand_dims(seed=results.seed)
            above = analysis.effect(
                last[name].astype(float), every.transpose("sample", "seed").astype(float), bounds=bounds
            )
            summary[f"{name} at the last step minus of the ground truth"] = headline(above)
        title = f"{LABELS[name]} · {options.source}"
        figure = plot.curves(
            means,
            "step",
            value_label=LABELS[name],
            title=title,
            reference=floor,
            reference_label="ground truth",
        )
        plot.save(figure, options.out / f"{name}_by_step.png")
    if "answer" in results:
        summary |= turns(results, options)
    if "candidates" in results:
        several = results.candidates.isel(step=0) > 1
        summary["several answers at step 0"] = headline(analysis.mean(several.astype(float)))
    for question in options.questions:
        if f"{question.name}_hit" in results:
            summary[f"probe of the {question.name}"] = probe_by_step(results, question.name, options)
            summary[f"perception before action, {question.name}"] = perception(results, question.name)
    write_summary(options, summary, measured.left_out, means.attrs)


def turns(results: xr.Dataset, options: Options) -> dict[str, Any]:
    """Summarise when answers are set, and how often they turn."""
    held, turned = analysis.commitment(results.answer), analysis.corrections(results.solved)
    plot.save(plot.commitment_steps(held.commitment, steps=results.step), options.out / "commitment.png")
    most = float(
        results.sizes["step"]
    )  # steps, answers and turns are counts: 0 and 1 are not all they can be
    bounds = {"ever_right": (0.0, 1.0), "self_corrected": (0.0, 1.0)}
    return {
        str(name): headline(
            analysis.mean(data[name].astype(float), bounds=bounds.get(str(name), (0.0, most)))
        )
        for data in (held, turned)
        for name in data
        if name != "first_right"
    }


def probe_by_step(results: xr.Dataset, name: str, options: Options) -> dict[str, Any]:
    """Draw and summarise how often a probe is right, beside shuffled labels and the most common answer."""
    both = [results[f"{name}_hit"].astype(float), results[f"{name}_shuffled"]]
    labels = np.array(["fitted", "shuffled labels"], np.dtypes.StringDType())
    share = (0.0, 1.0)
    means = analysis.mean(xr.concat(both, xr.Variable("probe", labels)), bounds=share, along="step")
    common = analysis.mean(results[f"{name}_common"].astype(float), bounds=share)
    figure = plot.curves(
        means,
        "step",
        value_label="runs in which it is right (share)",
        title=f"Linear probe of the {name}, middle layer · {options.source}",
        reference=common,
        reference_label="most common answer",
        limits=(0, 1.02),
    )
    plot.save(figure, options.out / f"probe_{name}_by_step.png")
    gain = analysis.effect(*both, bounds=share, along="step")
    return {
        **headline(means),
        "most common answer": headline(common),
        "fitted minus shuffled labels": headline(gain),
    }


def perception(results: xr.Dataset, name: str) -> dict[str, Any]:
    """Compare the step from which on a probe names what the video shows with that from which on x0 leans to it.

    One rule for both, and for the scorer's whole answer: `analysis.commitment`, the first step from which on the answer
    is that of the last step.
    """
    right = results[f"{name}_right"]
    names_something = right != ""
    ends = {
        kind: names_something & (results[f"{name}_{kind}"].isel(step=-1) == right) for kind in ("probe", "x0")
    }
    compared = results.isel(sample=(ends["probe"] & ends["x0"]).all("seed").values)
    out: dict[str, Any] = {
        "runs that end with something to name": float(names_something.mean()),
        "of these, the probe names it at the last step": share(ends["probe"], names_something),
        "of these, x0 leans to it at the last step": share(ends["x0"], names_something),
        "samples compared": compared.sizes["sample"],
    }
    if compared.sizes["sample"] < 2:
        return out
    steps = {kind: set_at(compared[f"{name}_{kind}"]) for kind in ("probe", "x0")} | {
        "answer": set_at(compared.answer)
    }
    limits = (0.0, results.sizes["step"] - 1.0)
    said = {
        "probe": "probe names it from step",
        "x0": "x0 leans to it from step",
        "answer": "x0 holds the answer from step",
    }
    return out | {
        **{
            said[kind]: headline(analysis.mean(first_steps, bounds=limits))
            for kind, first_steps in steps.items()
        },
        "x0 leans minus probe names": headline(analysis.effect(steps["x0"], steps["probe"], bounds=limits)),
        "x0 holds the answer minus probe names": headline(
            analysis.effect(steps["answer"], steps["probe"], bounds=limits)
        ),
    }


def set_at(answers: xr.DataArray) -> xr.DataArray:
    """Return the step from which on an answer [..., step] is that of the last step."""
    return analysis.commitment(answers).commitment.astype(float)


def share(hits: xr.DataArray, among: xr.DataArray) -> float:
    """Return how often something is so, among some runs."""
    return float(hits.sum() / max(int(among.sum()), 1))


LABELS = {
    "distance": "RMS distance of x0 to the final one",
    "solved": "x0 holds the right answer (share)",
    "score": "score of x0",
    "candidates": "answers that x0 shows at once",
    "off_path": "trail off the right path (edges)",
    "on_path": "share of the right path in x0",
    "hidden_ball": "ball seen while it is hidden (balls)",
    "keeps_colour": "colour kept behind the bar (share)",
    "keeps_lane": "lane kept behind the bar (share)",
}
SHARES = ("on_path", "keeps_colour", "keeps_lane")
"""What lies between 0 and 1; the others are counts, of which 0 and 1 are not all that they can be."""
FLOORED = ("candidates", "off_path", "on_path", "hidden_ball", "keeps_colour", "keeps_lane")


if __name__ == "__main__":
    run_script(main, Options)
