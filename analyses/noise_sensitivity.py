"""Where does noise hurt: at a denoising step, or in a frame?

The paper's experiment (arXiv 2603.16870): Gaussian noise in all latent frames after one step (a), or in one latent frame
after every step (b). Score against step and against frame, and how far the states of every layer move from the clean
run's at every later step (1 - CKA).

`--noise` says what it does to the latents:

- replace, the paper's: x_s <- eps. What the run has come to is lost, and the noise level is that of step 0.
- add: x_s <- x_s + eps. What the run has come to stays, under more noise than the model is told.
- renoise: x_s <- (1 - sigma_s) x0 + sigma_s eps, with x0 of the step before. What the run believes stays, the noise
  level is right, and all else is drawn anew: the clean intervention.

(a) and (b) differ in three things: how much noise there is, where it is, and when it last comes. Each arm with noise
in a frame holds one more of them equal to (a); only noise that is added has an amount:

- "same scale": after every step, as strong as (a). It is the paper's arm, and isolates nothing.
- "same energy" (add): after every step, with the energy of (a) in all. Its last part comes where no step is left to
  remove it, while the noise of (a) comes after step s.
- "up to step": after each of the steps 0 to s, added with the energy of (a) in all; the last part comes when (a) comes,
  at the same noise level. It differs from (a) in place, and in being spread over steps.
- "at step": after step s alone, added with the energy of (a). It differs from (a) in place alone.

A frame with noise looks bad itself; that is no propagation. So every frame arm is also judged elsewhere: distance
over the other frames, and score of the video in which the hit frame's latents are the clean run's.

Where the pipeline gives a latent frame and puts it back after every step (the first one of Wan 2.2 TI2V and LTX-2), noise
spares it: it is in no arm, and neither distances nor states count it.

The noise comes after steps 0 to S-2: after the last one nothing is left to run, so noise there says nothing of
the model.

    python analyses/noise_sensitivity.py --task maze --noise replace --samples 64 --out runs/noise_sensitivity

Samples of a folder of VBVR-Bench give distances, and with `--score vbvr` the official evaluator's scores of every arm,
"elsewhere" among them, beside the clean run and the first frame held. Every arm is a video for each sample and seed;
`--stops none` leaves most arms out.

    python analyses/noise_sensitivity.py --paper --model wan2.2 --eval-root VBVR-Bench --score vbvr --stops none --out runs/noise
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample
from dit_lens.engine.sweep import run_arms
from dit_lens.errors import TaskError
from dit_lens.experiments import benchmark, benchmark_table
from dit_lens.experiments.compared_tokens import refuse_few_tokens
from dit_lens.experiments.cost import runs_of_arms
from dit_lens.experiments.moved_states import MovedStates, of_states, references
from dit_lens.experiments.noise_arms import (
    BUDGETS,
    CLEAN,
    ELSEWHERE,
    STOPPED,
    Kind,
    LatentNoise,
    after_step,
    by_stop,
    contrasts,
    frames_of,
    gather,
    heal,
    in_frame,
)
from dit_lens.experiments.options import ScoredOptions
from dit_lens.experiments.outcomes import BOUNDS, family, headline
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import batch_of, pairs_of, require_two_steps, steps_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.plan.plan import Placed


@dataclass
class Options(ScoredOptions):
    """Noise at a step, and noise in a frame."""

    noise: Kind = "replace"
    """What noise does to latents: replace (the paper's), add, or renoise (keep x0 and the noise level)."""
    scale: float = 1.0
    """Standard deviation of the noise, in units of the clean latents' (which are scaled to about 1). With renoise 1."""
    cka_layers: str = "auto"
    """Layers whose states are compared: all, auto (5 of them), none, or a list such as 0,4,9."""
    cka_tokens: int = 2048
    """Tokens of a state that are compared, at most: drawn by --draw, the same ones everywhere."""
    stops: str = "auto"
    """Steps after which noise in a frame stops: all, auto (5 of them), none, or a list such as 0,4,9."""
    out: Path = Path("runs/noise_sensitivity")

    PAPER: ClassVar[dict[str, Any]] = {"noise": "replace", "steps": 50}


def main(options: Options) -> int:
    """Run all arms on every sample, compare, draw, save."""
    options = options.with_preset()
    if options.noise == "renoise" and options.scale != 1:
        raise TaskError(
            f"--noise renoise --scale {options.scale}: it keeps the noise level, so its scale is 1."
        )
    benchmark.refuse_unscored(options, needs_scorer=False)
    refuse_few_tokens(options.cka_tokens)
    lens = options.load()
    require_two_steps(options, lens)
    layers_of(lens, options)
    stops_of(steps_of(options, lens) - 1, options)
    measured = study(
        options,
        "noise_sensitivity",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: runs_of_arms(batch, list(arms_of(batch, options).values())),
        one_length=True,
    )
    return max(measured.exit_code, conclude(measured, options))


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run the clean arm, an arm for each step, and arms for each frame: by budget, and by kind and stop."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    arms, after = arms_of(batch, options), batch.steps - 1
    stops, hit = stops_of(after, options), frames_of(batch)
    states = MovedStates(batch, layers_of(lens, options), after, options.cka_tokens, options.draw)
    edits = list(arms.values())
    clean, ended = run_arms(batch, edits, states.watch, states.look, "noise", states.compare_clean)
    healed = heal(clean, ended[after:], hit)
    data = gather(batch, clean, ended, healed, stops, noise_of(options).budgets).merge(states.dataset())
    data["latent_std"] = ("pair", batch.generated(clean).float().flatten(1).std(1).cpu().numpy())
    if options.noise == "add":
        energies = noise_of(options).energies(len(hit), after)
        data["noise_energy"] = ("kind", list(energies.values()))
        data = data.assign_coords(kind=np.array(list(energies), np.dtypes.StringDType()))
    out = by_sample(data.assign_coords(sigma=("step", batch.sigmas)), pairs)
    if options.score == "vbvr":
        latents = dict(zip(arms, ended, strict=True)) | {
            arm + ELSEWHERE: one for arm, one in zip(list(arms)[after:], healed, strict=True)
        }
        written = {
            arm: benchmark.write_arm(options, arm, batch, one)
            for arm, one in {CLEAN: clean, **latents}.items()
        }
        written[benchmark.FLOOR] = benchmark.write_floor(options, pairs, batch.rates)
        out["video"] = benchmark.videos_of(pairs, written)
    return out


def noise_of(options: Options) -> LatentNoise:
    """Return the noise that all arms have."""
    return LatentNoise(options.noise, options.scale)


def arms_of(batch: Batch, options: Options) -> dict[str, list[Placed]]:
    """Return the arms; those with noise in a frame are of the frames that are generated.

    Raises:
        TaskError: fewer than 2 frames are.
    """
    hit, after = frames_of(batch), batch.steps - 1
    if len(hit) < 2:
        raise TaskError(
            f"Noise in a frame needs 2 latent frames that are generated, and there are {len(hit)}; raise --num-frames."
        )
    return noise_of(options).arms(hit, after, stops_of(after, options))


def layers_of(lens: dl.Lens, options: Options) -> list[int]:
    """Return the layers whose states are compared."""
    return [] if options.cka_layers == "none" else choose(options.cka_layers, lens.layers, "cka-layers")


def stops_of(after: int, options: Options) -> list[int]:
    """Return the steps after which noise in a frame stops, where noise comes after so many."""
    return [] if options.stops == "none" else choose(options.stops, after, "stops")


def conclude(measured: Measured, options: Options) -> int:
    """Summarise, draw, save; return the exit code of the benchmark's scores."""
    results = measured.results
    outcome = "score" if "step_score" in results else "distance"
    limits = BOUNDS.get(outcome)
    baseline = results[f"clean_{outcome}"]

    def against(name: str, clean: xr.DataArray = baseline, **how: Any) -> xr.Dataset:
        return analysis.effect(results[name], clean, bounds=limits, **how)

    def distance(name: str) -> Any:
        return headline(analysis.mean(results[name], bounds=BOUNDS["distance"]))

    step = against(f"step_{outcome}", along="after_step")
    summary = {
        "outcome": outcome,
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "noise": options.noise,
        "noise_std": options.scale,
        "clean_latent_std": float(results.latent_std.mean()),
        "clean": headline(analysis.mean(baseline, bounds=limits)),
        "effect of noise after a step": headline(step),
        "effect of noise in a frame": headline(against(f"frame_{outcome}", along="frame")),
        "effect of noise in a frame, elsewhere": headline(
            against(f"frame_{outcome}_elsewhere", along="frame")
        ),
        "distance in all frames, noise after a step": distance("step_distance"),
        "distance elsewhere, noise in a frame": distance("frame_distance_elsewhere"),
        "distance of the latents right after the noise": distance("moved"),
        **contrasts(results, outcome, limits),
        **of_states(results),
    }
    if options.noise == "add":
        energies = zip(results.kind.values.tolist(), results.noise_energy.values.tolist(), strict=True)
        summary["noise_energy"] = dict(energies)
    report = on_benchmark(results, options) if options.score == "vbvr" else None
    write_summary(
        options, summary | ({} if report is None else report.summary), measured.left_out, step.attrs
    )
    draw(results, outcome, limits, options)
    return 0 if report is None else report.exit_code


def on_benchmark(results: xr.Dataset, options: Options) -> benchmark_table.Report:
    """Let the official evaluator judge every arm, and compare steps with frames as `contrasts` does."""
    steps, frames = results.after_step.values.tolist(), results.frame.values.tolist()
    means, pairs = {"mean over steps": [after_step(s) for s in steps]}, []
    stops = results.stop.values.tolist() if "stop" in results.dims else []
    rivals = {budget: "mean over steps" for budget in results.budget.values.tolist()}
    rivals |= {f"{kind} {stop}": after_step(stop) for kind in STOPPED for stop in stops}
    for how, rival in rivals.items():
        for judged in ("", ELSEWHERE):
            mean = f"mean over frames, {how}{judged}"
            means[mean] = [in_frame(f, how) + judged for f in frames]
            pairs.append((rival, mean))
    curves = {
        "after_step": {after_step(s): s for s in steps},
        "frame": {in_frame(f, BUDGETS[0]): f for f in frames},
    }
    return benchmark_table.conclude(options, results.video, CLEAN, means, pairs, curves)


def draw(results: xr.Dataset, outcome: str, limits: tuple[float, float] | None, options: Options) -> None:
    """Draw the outcome against step, frame and stop, and the heat map of the states."""
    clean = analysis.mean(results[f"clean_{outcome}"], bounds=limits)

    def curves(values: xr.DataArray, along: str, name: str, what: str, **how: Any) -> None:
        means = analysis.mean(values, bounds=limits, along=along)
        title = f"Noise {what} · {options.source}"
        figure = plot.curves(means, along, value_label=outcome, title=title, reference=clean, **how)
        plot.save(figure, options.out / f"{outcome}_by_{name}.png")

    by_step = results[f"step_{outcome}"]
    curves(
        by_step.assign_coords(sigma=sigma_after(results)),
        "after_step",
        "step",
        f"in all frames, after one step ({options.noise})",
    )
    by_frame = results[f"frame_{outcome}"]
    elsewhere = results[f"frame_{outcome}_elsewhere"]
    both = [
        by_frame,
        elsewhere.assign_coords(budget=[f"{b}, judged elsewhere" for b in noise_of(options).budgets]),
    ]
    joined = xr.concat([b.rename("score") for b in both], "budget").rename(budget="noise")
    curves(joined, "frame", "frame", f"in one frame, after every step ({options.noise})")
    if "stop" in results.dims:
        curves(
            by_stop(results, outcome),
            "after_step",
            "stop",
            f"that last comes after a step ({options.noise})",
            marks=True,
        )
    if results.sizes["layer"]:
        plot.save(sensitivity(results, options), options.out / "sensitivity.png")
        moved = results.dissimilarity.mean(("sample", "seed"))
        title = f"How far noise after a step moves the states · {options.source}, {results.sizes['sample']} samples"
        figure = plot.heatmap(
            moved.transpose("layer", "after_step", "step"),
            value_label="1 − CKA to the clean run",
            title=title,
        )
        plot.save(figure, options.out / "dissimilarity.png")


def sensitivity(results: xr.Dataset, options: Options) -> Figure:
    """Draw how far noise after each step moves the states, beside two runs of one sample, and of two."""
    lines = {"noise": results.dissimilarity.mean(("step", "layer")).clip(min=0)}
    lines |= {f"another {name}": values for name, values in references(results).items()}
    means = {
        name: analysis.mean(v.rename("dissimilarity"), along="after_step", bounds=BOUNDS["distance"])
        for name, v in lines.items()
    }
    return plot.curves(
        family("run", means).assign_coords(sigma=sigma_after(results)),
        "after_step",
        value_label="1 − CKA to the clean run, mean over later steps",
        title=f"How far noise moves the states ({options.noise}) · {options.source}",
    )


def sigma_after(results: xr.Dataset) -> xr.DataArray:
    """Return the noise level at which noise after each step comes: that of the next step."""
    later = results.sigma.values[1:]
    return xr.DataArray(later, dims="after_step")


if __name__ == "__main__":
    run_script(main, Options)
