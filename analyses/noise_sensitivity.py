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
from typing import Any, ClassVar, Literal

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from torch import Tensor

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.analysis.cka_sampled import kernel_cka, sample_tokens, unit_kernel
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.engine.stepped import Stepped
from dit_lens.engine.sweep import Now, run_arms
from dit_lens.errors import TaskError
from dit_lens.experiments import benchmark, benchmark_table
from dit_lens.experiments.cost import runs_of_arms
from dit_lens.experiments.crossings import place_of
from dit_lens.experiments.options import ScoredOptions
from dit_lens.experiments.outcomes import BOUNDS, arms_as, family, headline, unfold
from dit_lens.experiments.partners import partners
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import batch_of, pairs_of, require_two_steps
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, study
from dit_lens.experiments.summary import write_summary
from dit_lens.plan.plan import Placed

BUDGETS = ("same scale", "same energy")
"""Of noise in a frame after every step: as strong as that at a step, or as much in all, which only added noise can be."""
STOPPED = ("up to step", "at step")
"""Of the noise in a frame that comes last when that at a step does: spread over the steps before, or at once."""

CLEAN = "clean run"
"""The arm without noise."""
ELSEWHERE = ", elsewhere"
"""What an arm is called by that is judged with the latents of the frame that was hit from the clean run."""


@dataclass
class Options(ScoredOptions):
    """Noise at a step, and noise in a frame."""

    noise: Literal["replace", "add", "renoise"] = "replace"
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

    @property
    def budgets(self) -> tuple[str, ...]:
        """How much noise a frame gets after every step."""
        return BUDGETS if self.noise == "add" else BUDGETS[:1]


def main(options: Options) -> int:
    """Run all arms on every sample, compare, draw, save."""
    options = options.with_preset()
    if options.noise == "renoise" and options.scale != 1:
        raise TaskError(
            f"--noise renoise --scale {options.scale}: it keeps the noise level, so its scale is 1."
        )
    benchmark.refuse_unscored(options, needs_scorer=False)
    lens = options.load()
    require_two_steps(options, lens)
    measured = study(
        options,
        "noise_sensitivity",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda batch: runs_of_arms(batch, list(arms_of(options, *sizes(batch, options)).values())),
        one_length=True,
    )
    return max(measured.exit_code, conclude(measured, options))


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run the clean arm, an arm for each step, and arms for each frame: by budget, and by kind and stop."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    frames, after, stops = sizes(batch, options)
    if frames < 2:
        raise TaskError(f"{frames} latent frames: noise in a frame needs another frame; raise --num-frames.")
    layers = [] if options.cka_layers == "none" else choose(options.cka_layers, lens.layers, "cka-layers")
    arms = arms_of(options, frames, after, stops)
    states = Moved(batch, layers, after, options)
    edits = list(arms.values())
    clean, ended = run_arms(batch, edits, states.watch, states.look, "noise", states.compare_clean)
    healed = heal(clean, ended[after:])
    data = gather(batch, clean, ended, healed, stops, options.budgets).merge(states.dataset())
    data["latent_std"] = ("pair", clean.float().flatten(1).std(1).cpu().numpy())
    if options.noise == "add":
        # Variances that each arm adds to a row of latents, summed over frames and steps.
        energy = options.scale**2 * np.array([frames, after, frames, frames, frames])
        data["noise_energy"] = ("kind", energy)
        data = data.assign_coords(kind=np.array(["step", *BUDGETS, *STOPPED], np.dtypes.StringDType()))
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


def sizes(batch: Batch, options: Options) -> tuple[int, int, list[int]]:
    """Return how many latent frames there are, after how many steps noise comes, and after which it stops in a frame."""
    frames, after = batch.noise.shape[2], batch.steps - 1
    return frames, after, choose(options.stops, after, "stops") if options.stops != "none" else []


def arms_of(options: Options, frames: int, after: int, stops: list[int]) -> dict[str, list[Placed]]:
    """Return the arms: all frames after each step; each frame by budget; each frame by kind and stop."""
    is_added = options.noise == "add"
    arms = {after_step(s): noise(options, step=s + 1) for s in range(after)}
    # (a) gives every element noise once; (b) gives the elements of one frame noise after each step but the last.
    for budget, share in zip(options.budgets, (1.0, frames / after), strict=False):
        arms |= {in_frame(f, budget): noise(options, share, step="1-", frame=f) for f in range(frames)}
    for kind in STOPPED:
        for stop in stops:
            times, when = (stop + 1, f"1-{stop + 1}") if kind == "up to step" else (1, str(stop + 1))
            share = frames / times if is_added else 1.0
            how = f"{kind} {stop}"
            arms |= {in_frame(f, how): noise(options, share, step=when, frame=f) for f in range(frames)}
    return arms


def after_step(step: int) -> str:
    """Return how the arm with noise in all frames after a step is called."""
    return f"after step {step}"


def in_frame(frame: int, how: str) -> str:
    """Return how the arm with noise in one frame is called."""
    return f"frame {frame}, {how}"


def noise(options: Options, share: float = 1.0, **where: Any) -> list[Placed]:
    """Return an arm: noise in the latents, at a place, of a share of the variance."""
    kinds = {
        "add": lambda: dl.add_noise(scale=options.scale * share**0.5),
        "replace": lambda: dl.noise(scale=options.scale),
        "renoise": dl.renoise,
    }
    return [Placed(kinds[options.noise](), dl.at(site="latents", **where))]


class Moved:
    """How far noise after a step moves latents and states, beside how far runs are apart by themselves.

    Args:
        batch: the pairs.
        layers: whose states are compared.
        after: number of arms with noise after a step, which come first.
        options: of the script.
    """

    def __init__(self, batch: Batch, layers: list[int], after: int, options: Options) -> None:
        self.batch, self.layers, self.arms = batch, layers, after
        self.watch = [("block", batch.layout.branches[0], layer) for layer in layers]
        count = int(np.prod(batch.grid))
        self.tokens = sample_tokens(count, options.cka_tokens, options.draw) if layers else []
        self.others = sample_tokens(count, options.cka_tokens, options.draw + 1) if layers else []
        pairs, shape = len(batch.pairs), (batch.steps, len(layers))
        self.latents = np.zeros((pairs, after), np.float32)
        self.states = np.full((pairs, after, *shape), np.nan, np.float32)
        self.again = np.full((pairs, after, *shape), np.nan, np.float32)
        self.partners = partners(batch)
        self.apart = {name: np.full((pairs, *shape), np.nan, np.float32) for name in ("seed", "sample")}

    def look(self, now: Now) -> None:
        """Compare the edited rows of a forward with their clean ones."""
        rows = [(i, arm, pair) for i, (arm, pair) in enumerate(now.rows) if arm < self.arms]
        sigma = self.batch.sigmas[now.step]
        for i, arm, pair in rows:
            if arm + 1 == now.step:  # what the step starts from is x0 + sigma v
                starts = [x.x0[n] + sigma * x.velocity[n] for x, n in ((now.clean, pair), (now.edited, i))]
                self.latents[pair, arm] = float((starts[1] - starts[0]).float().square().mean().sqrt())
        for j, place in enumerate(self.watch):
            for pair in {pair for _, _, pair in rows}:
                known = now.clean.states[place][pair]
                clean = unit_kernel(known, self.tokens)
                for i, arm, _ in (row for row in rows if row[2] == pair):
                    state = now.edited.states[place][i]
                    edited = unit_kernel(state, self.tokens)
                    self.states[pair, arm, now.step, j] = 1 - kernel_cka(clean, edited)
                    if pair == 0 and self.tokens != self.others:
                        kernels = (unit_kernel(x, self.others) for x in (known, state))
                        self.again[pair, arm, now.step, j] = 1 - kernel_cka(*kernels)

    def compare_clean(self, step: int, clean: Stepped) -> None:
        """Compare each clean run with another seed of its sample, and with another sample, where the batch has one."""
        for j, place in enumerate(self.watch):
            kernels = [unit_kernel(state, self.tokens) for state in clean.states[place]]
            for name, others in self.partners.items():
                for pair, other in others.items():
                    self.apart[name][pair, step, j] = 1 - kernel_cka(kernels[pair], kernels[other])

    def dataset(self) -> xr.Dataset:
        """Return what was measured, by pair."""
        steps, curve = ("step", "layer"), ("pair", "after_step", "step", "layer")
        return xr.Dataset(
            {
                "moved": (("pair", "after_step"), self.latents),
                "dissimilarity": (curve, self.states),
                "dissimilarity_again": (curve, self.again),
                **{f"dissimilarity_{n}": (("pair", *steps), values) for n, values in self.apart.items()},
                "tokens": ("of", [len(self.tokens), int(np.prod(self.batch.grid))]),
            },
            {
                "step": np.arange(self.batch.steps),
                "layer": np.array(self.layers, int),
                "of": np.array(["compared", "all"], np.dtypes.StringDType()),
            },
        )


def heal(clean: Tensor, ended: Tensor) -> Tensor:
    """Return what came of noise in one frame, with this frame's latents from the clean run, [arm, pair, ...]."""
    healed = ended.clone()
    for arm in range(len(healed)):
        frame = arm % clean.shape[2]
        healed[arm, :, :, frame] = clean[:, :, frame]
    return healed


def gather(
    batch: Batch, clean: Tensor, ended: Tensor, healed: Tensor, stops: list[int], budgets: tuple[str, ...]
) -> xr.Dataset:
    """Judge the arms, and sort what came out: by step, by budget and frame, by kind, stop and frame; and clean."""
    frames, after = clean.shape[2], len(ended) - len(healed)
    others = outcomes(batch, healed, clean)
    others["distance"] = others.distance * (frames / (frames - 1)) ** 0.5  # a mean over the others
    judged = outcomes(batch, ended, clean)
    of_frames = xr.merge(
        [judged.isel(arm=slice(after, None)), others.rename({n: f"{n}_elsewhere" for n in others})]
    )
    shapes = {"frame": {"budget": list(budgets)}, "stopped": {"stopping": list(STOPPED), "stop": stops}}
    parts, start = [], 0
    for prefix, labels in shapes.items():
        labels = {**labels, "frame": list(range(frames))}
        count = int(np.prod([len(values) for values in labels.values()]))
        part = of_frames.isel(arm=slice(start, start + count)).rename({n: f"{prefix}_{n}" for n in of_frames})
        parts += [unfold(part, labels)] if count else []
        start += count
    return xr.merge(
        [
            arms_as(judged, slice(0, after), "after_step", range(after), "step"),
            arms_as(outcomes(batch, clean[None], clean), slice(0, 1), "arm", ["clean"], "clean").isel(
                arm=0, drop=True
            ),
            *parts,
        ]
    )


def conclude(measured: Measured, options: Options) -> int:
    """Summarise, draw, save; return the exit code of the benchmark's scores."""
    results = measured.results
    outcome = "score" if "step_score" in results else "distance"
    limits = BOUNDS.get(outcome)
    baseline = results[f"clean_{outcome}"]

    def against(name: str, clean: xr.DataArray = baseline, **how: Any) -> xr.Dataset:
        return analysis.effect(results[name], clean, bounds=limits, **how)

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
        "distance in all frames, noise after a step": headline(
            analysis.mean(results.step_distance, bounds=BOUNDS["distance"])
        ),
        "distance elsewhere, noise in a frame": headline(
            analysis.mean(results.frame_distance_elsewhere, bounds=BOUNDS["distance"])
        ),
        "distance of the latents right after the noise": headline(
            analysis.mean(results.moved, bounds=BOUNDS["distance"])
        ),
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


def contrasts(results: xr.Dataset, outcome: str, limits: tuple[float, float] | None) -> dict[str, Any]:
    """Compare noise at a step with noise in a frame: over the whole run, and where both stop at the same step."""
    at_step = results[f"step_{outcome}"]
    effects = {
        f"mean over steps minus mean over frames, {budget}": analysis.effect(
            at_step.mean("after_step"),
            results[f"frame_{outcome}"].sel(budget=budget, drop=True).mean("frame"),
            bounds=limits,
        )
        for budget in results.budget.values.tolist()
    }
    if "stop" in results.dims:
        at_stops = at_step.sel(after_step=results.stop.values).rename(after_step="stop")
        for suffix in ("", "_elsewhere"):
            stopped = results[f"stopped_{outcome}{suffix}"].mean("frame")
            for kind in STOPPED:
                name = f"after a step minus mean over frames{suffix.replace('_', ', ')}, {kind}"
                other = stopped.sel(stopping=kind, drop=True)
                effects[name] = analysis.effect(at_stops, other, bounds=limits, along="stop")
    return {name: headline(one) for name, one in effects.items()}


def of_states(results: xr.Dataset) -> dict[str, Any]:
    """Say after which step noise moves the states most, beside how far runs are apart by themselves.

    The sensitivity at a step is the mean dissimilarity over all later steps and the layers that were compared.
    """
    if not results.sizes["layer"]:
        return {}
    inner = ("step", "layer")
    sensitivity = results.dissimilarity.mean(inner)
    found: dict[str, Any] = {
        "sensitivity of the states": headline(analysis.mean(sensitivity, along="after_step"))
    }
    if sensitivity.sizes["after_step"] > 1:
        top = analysis.peak(sensitivity, "after_step")
        found["sensitivity peaks after step"] = place_of(top, sensitivity)
    for name, values in references(results).items():
        found[f"dissimilarity of two runs, another {name}"] = headline(analysis.mean(values))
        found[f"dissimilarity of two runs, another {name}, samples"] = values.sizes["sample"]
    found["tokens of a state"] = dict(
        zip(results.of.values.tolist(), results.tokens.values.tolist(), strict=True)
    )
    again = results.dissimilarity_again - results.dissimilarity
    if bool(again.notnull().any()):  # of two independent samples of tokens
        found["error of a dissimilarity by the tokens drawn"] = float((again**2).mean() / 2) ** 0.5
    return found


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
        elsewhere.assign_coords(budget=[f"{b}, judged elsewhere" for b in options.budgets]),
    ]
    joined = xr.concat([b.rename("score") for b in both], "budget").rename(budget="noise")
    curves(joined, "frame", "frame", f"in one frame, after every step ({options.noise})")
    if "stop" in results.dims:
        at_stops = by_step.sel(after_step=results.stop.values).rename(after_step="stop")
        in_frame = results[f"stopped_{outcome}"].mean("frame")
        away = results[f"stopped_{outcome}_elsewhere"].mean("frame")
        lines = {
            "all frames": at_stops,
            **{f"one frame, {k}": in_frame.sel(stopping=k, drop=True) for k in STOPPED},
            **{f"one frame, {k}, judged elsewhere": away.sel(stopping=k, drop=True) for k in STOPPED},
        }
        stacked = xr.concat([v.rename(outcome) for v in lines.values()], xr.Variable("noise", list(lines)))
        curves(
            stacked.rename(stop="after_step"),
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


def references(results: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return how far apart two runs are over the steps after each, [sample, seed, after_step]: of a sample, of two samples.

    A sample that has no other beside it in its block is left out.
    """
    out = {}
    for name in ("seed", "sample"):
        values = results[f"dissimilarity_{name}"].mean("layer")
        later = values.where(results.step > results.after_step).mean("step").dropna("sample")
        if later.sizes["sample"] > 1:
            out[name] = later
    return out


def sensitivity(results: xr.Dataset, options: Options) -> Figure:
    """Draw how far noise after each step moves the states, beside two runs of one sample, and of two."""
    lines = {"noise": results.dissimilarity.mean(("step", "layer"))}
    lines |= {f"another {name}": values for name, values in references(results).items()}
    means = {name: analysis.mean(v.rename("dissimilarity"), along="after_step") for name, v in lines.items()}
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
