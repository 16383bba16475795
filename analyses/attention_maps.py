"""What looks at what: words at the video, frames at frames, and which heads follow objects and tell frames apart.

Maps come from the queries and keys that the model's own attention is given, a head at a time, in clean runs, on the first branch:

1. Words. Do the places of the object that a word names look at the word more than other places do? The chance that one of them
   does (AUC; 0.5 for a map that does not know the object). Primary: the object's word minus all other words of the prompt
   together, both on that object: what an object draws from any word drops out. Beside it the object's word on the other
   objects; masks moved by half of the board; special tokens and padding, each on its own; and how much each gets on the object,
   over the whole video: its lift.
2. Frames. Which share of a frame's attention stays in it, goes to earlier frames, to later ones, to the first, and how far;
   beside what an even spread has. `--model organism-causal` is the positive control: its future share is exactly 0.
3. Correspondence (arXiv 2506.17220). From the centre of a moving object in one frame, the token of another frame with the
   largest q.k: the share within `--radius` tokens of where the object is then (PCK), by distance in frames. Beside it the place
   that does not move, and a token drawn from the frame. Primary: of pairs between which the object has moved farther than the
   radius, minus chance. Tracks are those of the right video, so runs count that are solved by the same answer; with
   `--shown truth` the model is shown the right video at every step, under its noise, and all runs count.
4. Heads. Variance of a head's outputs between frames, over their total variance (the formula and its source stand in
   `dit_lens.experiments.attended`); beside what tokens have that are drawn alike in all frames.

The best heads of 1, 3 and 4 are chosen on every second sample, and reported on the others. The null of all four is a model that
has learned nothing: the same command with `--weights random`; as that solves nothing, both with `--shown truth`. Samples of
--eval-root have no masks: of them there are frames, heads, and what each kind of words gets.

    python analyses/attention_maps.py --task arrows --samples 32 --out runs/attention_maps
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

import dit_lens as dl
from dit_lens import analysis, plot
from dit_lens.engine.batch import Batch
from dit_lens.engine.outcomes import by_sample, outcomes
from dit_lens.errors import TaskError
from dit_lens.experiments.attention_findings import (
    more_than_other_words,
    of_frames,
    of_matches,
    of_separation,
    of_words,
    rates,
)
from dit_lens.experiments.attention_pictures import (
    few,
    frame_matrices,
    token_of,
    token_sheet,
    view_run,
    word_sheet,
)
from dit_lens.experiments.halves import measured_samples
from dit_lens.experiments.inversion import require_flow
from dit_lens.experiments.looks import COORDS, Looks, require_attention
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.readings import Readings, read_runs
from dit_lens.experiments.samples import batch_of, draw, pairs_of, require_scorer, steps_of
from dit_lens.experiments.script import run_script
from dit_lens.experiments.study import Measured, once, study
from dit_lens.experiments.summary import write_summary
from dit_lens.models.options import Unset
from dit_lens.plan.places import TEXT
from dit_lens.plan.plan import Placed
from dit_lens.tasks.pairs import label

LABELS = np.dtypes.StringDType()


@dataclass
class Options(StudyOptions):
    """Read what looks at what."""

    task: str = "arrows"
    """The task. Of arrows, bounce, circle, choose, occlude and roll the prompt names an object; of circle nothing moves."""
    layers: str = "all"
    """Layers that are read: all, auto (5 of them), or a list such as 0,4,9."""
    vis_steps: str = "auto"
    """Steps that are read: all, auto (5 of them), or a list such as 0,5,19. Shares are means over them."""
    heads: str = "all"
    """Heads that are read: all, or a list such as 0,3."""
    shown: Literal["run", "truth"] = "run"
    """What a step starts from: the run itself, or the right video under the noise of the step."""
    best: int = 3
    """How many of the best heads are listed."""
    radius: float = 0.75
    """Of correspondence, in tokens: within 0.75 is always the nearest token, and few others."""
    threshold: float = 0.05
    """Share of a token's pixels from which on it is an object's."""
    word: Unset[str] = None
    """Word whose map is drawn over the first sample's video. Default: the object's, or the last one of the prompt."""
    token: Unset[str] = None
    """Token whose view is drawn, as FRAME,Y,X. Default: a moving object in the middle, or the middle of the video."""
    out: Path = Path("runs/attention_maps")


def main(options: Options) -> int:
    """Read, compare, draw, save."""
    if options.best < 1 or options.radius <= 0 or not 0 < options.threshold <= 1:
        raise TaskError(
            f"--best {options.best} --radius {options.radius} --threshold {options.threshold}: give 1 or more heads, a radius "
            "over 0, and a share over 0 and up to 1."
        )
    lens = options.load()
    require_attention(lens, "attention")
    choose(options.vis_steps, steps_of(options, lens), "vis-steps")
    choose(options.layers, lens.layers, "layers")
    choose(options.heads, lens.specimen.carried["video", "attention"].heads, "heads")
    if options.shown == "truth":
        require_scorer(options)
        require_flow(lens)
    refuse_views(lens, options)
    measured = study(
        options,
        "attention_maps",
        lens,
        lambda part: measure(lens, part, options),
        runs=lambda _: 1,
    )
    conclude(measured, options)
    if measured.results.sizes["sample"] > 1:
        draw_numbers(measured.results, options)
    draw_views(lens, measured.results, options)
    return measured.exit_code


def refuse_views(lens: dl.Lens, options: Options) -> None:
    """Refuse a word or a token that the first sample does not have, before anything is computed.

    Raises:
        TaskError: the token is not on the grid.
        PlanError: the word is not in the prompt, or its tokens are not known.
    """
    if options.word is None and options.token is None:
        return
    batch = batch_of(lens, pairs_of([next(iter(draw(options, lens)))], options)[:1], options)
    token_of(options.token, Looks.of(batch, 0, False, options.threshold))
    if options.word is not None:
        branch = batch.layout.branches[0]
        batch.binding(
            Placed(dl.attention(to="text"), dl.at(text_token=options.word, branch=branch)), is_edit=False
        )


def places(batch: Batch, options: Options) -> dict[str, list[int]]:
    """Return the steps, layers and heads that are read."""
    heads = batch.layout.carried["video", "attention"].heads
    return {
        "step": choose(options.vis_steps, batch.steps, "vis-steps"),
        "layer": choose(options.layers, batch.layout.layers, "layers"),
        "head": choose(options.heads, heads, "heads"),
    }


def measure(lens: dl.Lens, samples: list[dl.Sample], options: Options) -> xr.Dataset:
    """Run every pair clean, and read its attention."""
    pairs = pairs_of(samples, options)
    batch = batch_of(lens, pairs, options)
    where = places(batch, options)
    if batch.grid[0] < 2:
        raise TaskError(f"{batch.grid[0]} latent frame: frames are compared; raise --num-frames.")
    has_text = "cross_attention" in lens.attentions["video"] and TEXT in batch.grids
    looks = [Looks.of(batch, n, has_text, options.threshold) for n in range(len(pairs))]
    records = [one.records(**where, branch=batch.layout.branches[0]) for one in looks]
    readings = [Readings(where["step"], where["layer"], where["head"]) for _ in pairs]
    shown = right_videos(lens, batch) if options.shown == "truth" else None
    is_judged = shown is None and any(one.tracks.places for one in looks)
    last = batch.steps if is_judged else 1 + where["step"][-1]
    latents = read_runs(batch, records, readings, "attention", shown, last)
    rows = [one.measured(reading, options.radius) for one, reading in zip(looks, readings, strict=True)]
    data: dict[str, Any] = {
        name: (("pair", *dims), np.stack([row[name][1] for row in rows]))
        for name, (dims, _) in rows[0].items()
    }
    data["follows"] = (
        "pair",
        follows(batch, latents, looks) if is_judged else [shown is not None] * len(pairs),
    )
    coords = {name: np.array(labels, LABELS) for name, labels in COORDS.items()}
    sigma = ("step", [batch.sigmas[step] for step in where["step"]])
    coords |= {**where, "sigma": sigma, "apart": np.arange(1, batch.grid[0])}
    return by_sample(xr.Dataset({**data, "grid": ("axis", list(batch.grid))}, coords), pairs)


def right_videos(lens: dl.Lens, batch: Batch) -> Tensor:
    """Return the latents of the right videos, [pair, channel, frame, y, x].

    Raises:
        TaskError: one is not known.
    """
    if missing := [label(sample) for sample, _ in batch.pairs if sample.truth is None]:
        raise TaskError(f"--shown truth: the right video of {missing[0]} is not known; give --shown run.")
    return torch.stack([lens.encode(sample.truth).permute(3, 0, 1, 2) for sample, _ in batch.pairs]).to(
        batch.noise
    )


def follows(batch: Batch, latents: Tensor, looks: Sequence[Looks]) -> list[bool]:
    """Say which runs are solved by the answer of the right video, whose tracks are known."""
    tracked = [
        bool(one.tracks.places) and s.truth is not None
        for one, (s, _) in zip(looks, batch.pairs, strict=True)
    ]
    judged = outcomes(batch, latents[None], latents) if any(tracked) else {}
    if "solved" not in judged:
        return [False] * len(tracked)
    truths = {label(s): s.score(s.truth).answer for s, _ in batch.pairs if s.truth is not None}
    return [
        bool(is_tracked and solved and answer == truths[label(sample)])
        for is_tracked, solved, answer, (sample, _) in zip(
            tracked, judged["solved"].values[0], judged["answer"].values[0], batch.pairs, strict=True
        )
    ]


# ---- what comes of it


def conclude(measured: Measured, options: Options) -> None:
    """Say where words, frames and tokens look, and which heads stand out; save."""
    results = measured.results
    summary: dict[str, Any] = {
        "samples": results.sizes["sample"],
        "seeds": results.sizes["seed"],
        "weights": options.weights,
        "shown": options.shown,
        "steps": results.step.values.tolist(),
        "tokens (frame, y, x)": results.grid.values.reshape(-1, 3)[0].tolist(),
    }
    if results.sizes["sample"] < 2:
        return write_summary(
            options, summary | {"not measured": "one sample has no interval"}, measured.left_out
        )
    summary |= {
        "words": of_words(results, options.best),
        "frames": of_frames(results),
        "correspondence": of_matches(results, options.best, options.radius),
        "heads that tell frames apart": of_separation(results, options.best),
    }
    attrs = analysis.mean(results.separation.mean(("step", "layer", "head"))).attrs
    write_summary(options, summary, measured.left_out, attrs)


def draw_numbers(results: xr.Dataset, options: Options) -> None:
    """Draw attention between frames by layer and step, words and separation by layer and head, PCK by layer."""
    title, count = f"{options.source}, {results.sizes['sample']} samples", ("sample", "seed")
    figure = frame_matrices(results.frame_map.mean(count), f"Attention from frame to frame · {title}")
    plot.save(figure, options.out / "frames.png")
    words = measured_samples(more_than_other_words(results))
    maps = {"separation": ("between frames over total variance", results.separation.mean(("step", *count)))}
    maps |= {"words": ("AUC, the object's word minus others", words.mean("sample"))} if words.size else {}
    for name, (what, values) in maps.items():
        figure = plot.heatmap(
            values.transpose("layer", "head"), value_label=what, title=title, diverging=name == "words"
        )
        plot.save(figure, options.out / f"{name}_by_layer_and_head.png")
    moved = measured_samples(rates(results, "hits", "moved").mean("head"))
    if moved.sizes["sample"] > 1:
        by_chance = measured_samples(rates(results, "chance", "moved")).sel(sample=moved["sample"])
        figure = plot.curves(
            analysis.mean(moved, bounds=(0, 1), along="layer"),
            "layer",
            value_label=f"PCK within {options.radius:g} tokens, moved objects",
            title=f"Matches by q.k, mean over heads · {title}",
            reference=float(by_chance.mean()),
            reference_label="chance",
        )
        plot.save(figure, options.out / "matches_by_layer.png")


def draw_views(lens: dl.Lens, results: xr.Dataset, options: Options) -> None:
    """Draw a word's map over the first sample's video, and where a token looks."""
    sample = next(iter(draw(options, lens)))
    where = {dim: few(results[dim].values.tolist()) for dim in ("step", "layer")}
    where["head"] = results["head"].values.tolist()

    def view() -> xr.Dataset:
        batch = batch_of(lens, pairs_of([sample], options)[:1], options)
        looks = Looks.of(batch, 0, False, options.threshold)
        return view_run(lens, batch, looks, where, options.word, options.token)

    seen = once(options, "views", lens, [sample], view)
    token = ",".join(map(str, seen.attrs["token"]))
    figure = token_sheet(seen, f"Where token {token} looks · {label(sample)}")
    plot.save(figure, options.out / "token.png")
    if "word_map" in seen:
        plot.save(word_sheet(seen, f"“{seen.attrs['word']}” · {label(sample)}"), options.out / "word.png")


if __name__ == "__main__":
    run_script(main, Options)
