"""Does a model work its answers out along the denoising steps, or along the frames? A card, by rules that stand here beforehand.

Chain-of-Steps (arXiv 2603.16870) says along the steps; arXiv 2606.13861 finds a search over frames, arXiv 2603.30043 a plan that
stands after the first steps. Four experiments, each with its controls, decide by intervals, never by estimates alone:

- More steps, more right answers (`step_count.py`): all steps minus one, from the same noise. For it above 0, against it below
  `MARGIN_RATE`.
- Frames settle in order (`steps_or_frames.py`): the slope over frames, minus the ideal denoiser's. For it above 0, against it
  below `MARGIN_SLOPE`.
- Going back along steps rescues more than holding frames (`steps_or_frames.py`): of wrong runs, the middle way of each, paired,
  at equal compute: back along steps is repeated until the steps of one run are used up. For it above 0, against it below 0.
- The answer stands within the first quarter of the steps (`causal_commitment.py`): where forks come to give one answer,
  halfway from chance. For it where the interval ends there, against it where it begins there or later. Runs are forked at the
  last step of the quarter, too, and from step 1 on: a quarter that is over before is not measured.

An interval that lies on neither side is no verdict: "undecided", with what was measured, so that the next one knows how many
samples it takes. A study that leaves samples out still counts, where enough are left; the card says how many. The second claim
is the frames' own; a positive control (`--control organism-causal`, which sees no later frame) shows whether the experiment could
have found it.

    python analyses/referee.py --task arrows --samples 32 --control organism-causal --out runs/referee
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from dit_lens.errors import DitLensError, TaskError
from dit_lens.experiments.cache import save_json
from dit_lens.experiments.crossings import AT_OR_BEFORE, NO_INTERVAL
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.pictures import choose
from dit_lens.experiments.samples import require_scorer
from dit_lens.experiments.script import run_script
from dit_lens.models.options import Unset

HERE = Path(os.path.relpath(Path(__file__).parent))
MARGIN_RATE = 0.05
"""Share of right answers that counts as none."""
MARGIN_SLOPE = 0.1
"""Steps a latent frame that count as no order."""
LEAST = 10
"""Samples that a verdict takes."""
EARLY = 0.25
"""Share of the steps within which a plan is early."""
FIRST_FORK = 1
"""Step at which runs are forked first: before it there is no x0 to keep."""
CONTROL = "control"
Interval = tuple[float, float, float]
"""Estimate, low, high."""


@dataclass
class Options(StudyOptions):
    """Decide between steps and frames."""

    steps: int = 20
    """Scheduler steps of all experiments, 2 or more; the first compares them with one."""
    control: Unset[str] = None
    """A model that reasons along frames by construction, such as organism-causal; `steps_or_frames` runs on it, too."""
    out: Path = Path("runs/referee")

    OWN: ClassVar[tuple[str, ...]] = ("control", "out", "model", "paper", "steps")
    """Options that are not handed on as they are."""


def main(options: Options) -> int:
    """Run the experiments, and write the card."""
    if options.scene_count < LEAST:
        raise TaskError(f"--samples {options.scene_count}: a verdict takes {LEAST} samples or more.")
    if (steps := options.steps) < 2:
        raise TaskError(f"--steps {steps}: they are compared with one step; give 2 or more.")
    require_scorer(options)
    # What refuses the most comes first: nothing is computed for a card that cannot be written.
    runs = {
        "steps_or_frames": ["--steps", str(steps)],
        "step_count": ["--counts", "1", str(steps)],
        "causal_commitment": ["--steps", str(steps), "--at", ",".join(map(str, forked_at(steps)))],
    }
    found = {name: run(name, options.model, more, options, options.out / name) for name, more in runs.items()}
    if options.control is not None:
        more, out = runs["steps_or_frames"], options.out / CONTROL
        found[CONTROL] = run("steps_or_frames", options.control, more, options, out)
    rows = card(found, steps)
    data = {
        "command": shlex.join(["python", *sys.argv]),
        "model": options.model,
        "task": options.source,
        "claims": rows,
    }
    save_json(data, options.out / "summary.json")
    text = written(rows, options)
    (options.out / "card.md").write_text(text)
    print(text)
    return int(any(summary["samples left out"] for summary in found.values()))


def forked_at(steps: int) -> list[int]:
    """Return the steps at which runs are forked: evenly spread ones, and the last one that is early."""
    even = choose("auto", steps, "at", auto=7, first=FIRST_FORK)
    return sorted({*even, max(last_early(steps), FIRST_FORK)})


def last_early(steps: int) -> int:
    """Return the last step that is early, out of so many."""
    return int(EARLY * steps)


def run(name: str, model: str, more: list[str], options: Options, out: Path) -> dict[str, Any]:
    """Run a script, and return its summary.

    Raises:
        DitLensError: it failed. One that leaves samples out has exit code 1, too, and a summary that says how many.
    """
    command = [
        sys.executable,
        str(HERE / f"{name}.py"),
        "--model",
        model,
        *handed_on(options),
        *more,
        "--out",
        str(out),
    ]
    written_to = out / "summary.json"
    written_to.unlink(missing_ok=True)  # an earlier command's is not this one's
    code = subprocess.run(command).returncode
    summary: dict[str, Any] = json.loads(written_to.read_text()) if written_to.exists() else {}
    if not summary or code not in (0, 1) or (code and not summary["samples left out"]):
        raise DitLensError(f"{name} ended with exit code {code}: {shlex.join(command)}")
    return summary


def handed_on(options: Options) -> list[str]:
    """Return the options that are not the defaults, as they are written on a command line."""
    out: list[str] = []
    for field in fields(options):
        value = getattr(options, field.name)
        default = field.default if field.default is not MISSING else None
        if field.name in Options.OWN or value == default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            out.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            out += [f"--{flag}", *map(str, value if isinstance(value, tuple | list) else [value])]
    return out


def card(found: dict[str, dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    """Return a row for each claim: what was measured, its interval, the control, and the verdict.

    Args:
        found: the summary of each script, and that of the control, if there is one.
        steps: of all runs but the ones of one step.
    """
    rows = {
        "step_count": [
            row(
                "more steps, more right answers",
                "right answers, all steps minus one",
                gained(found["step_count"]),
                MARGIN_RATE,
            )
        ],
        "steps_or_frames": [
            row(
                "frames settle in order",
                "steps a latent frame",
                slope(found["steps_or_frames"]),
                MARGIN_SLOPE,
            ),
            row(
                "going back along steps rescues more",
                "share of wrong runs, steps minus frames",
                rescued(found["steps_or_frames"]),
                0.0,
            ),
        ],
        "causal_commitment": [early(found["causal_commitment"], steps)],
    }
    out = [counted(one, found[name]) for name, several in rows.items() for one in several]
    if CONTROL in found:
        out[1]["control"] = counted(row("", "", slope(found[CONTROL]), MARGIN_SLOPE), found[CONTROL])
    return out


def counted(one: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its number of samples, and of those that were left out; of too few there is no verdict."""
    counts = {name: summary[name] for name in ("samples", "samples left out")}
    few = {"verdict": f"not measured: {counts['samples']} samples are left, and a verdict takes {LEAST}"}
    return {**one, **counts, **(few if counts["samples"] < LEAST else {})}


def row(claim: str, what: str, interval: Interval | None, margin: float) -> dict[str, Any]:
    """Return a claim's row: for it where the interval is above 0, against it where it is below the margin."""
    if interval is None:
        return {"claim": claim, "measured": what, "verdict": "not measured: too few such runs"}
    estimate, low, high = interval
    verdict = "for" if low > 0 else "against" if high < margin else "undecided"
    return {"claim": claim, "measured": what, "value": estimate, "low": low, "high": high, "verdict": verdict}


def gained(summary: dict[str, Any]) -> Interval:
    """Return by how much more is right with all steps than with one, from the same noise."""
    name = next(name for name in summary if name.startswith("solved, minus"))
    first = summary[name][0]
    return -first["effect"], -first["high"], -first["low"]


def slope(summary: dict[str, Any]) -> Interval:
    """Return the slope of commitment over frames, less the ideal denoiser's where that is known."""
    name = "slope of commitment over frames, model"
    found = summary.get(f"{name} minus ideal denoiser", summary[name])
    return found.get("effect", found.get("mean")), found["low"], found["high"]


def rescued(summary: dict[str, Any]) -> Interval | None:
    """Return the primary contrast of the rescues: the middle way along steps, repeated, minus the middle one along frames."""
    found = summary.get("rescued, of wrong runs, middle steps repeated minus middle frames")
    if summary.get("rescued, of wrong runs, samples", 0) < LEAST:
        return None
    return None if found is None else (found["effect"], found["low"], found["high"])


def early(summary: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the row of the plan that stands early."""
    found, last = summary["commitment"], last_early(steps)
    out = {"claim": "the answer stands within the first quarter of the steps", "measured": f"step of {steps}"}
    if reason := unmeasured(found, last):
        return {**out, "verdict": f"not measured: {reason}"}
    ends = {name: found[name] for name in ("value", "low", "high")}
    low, high = (float("inf") if (step := ends[end]["step"]) is None else step for end in ("low", "high"))
    # A bound does not say that the answer comes no sooner.
    is_late = low >= last and AT_OR_BEFORE not in ends["low"]
    out |= {name: end["step"] for name, end in ends.items()}
    bounds = {AT_OR_BEFORE: [name for name, end in ends.items() if AT_OR_BEFORE in end]}
    verdict = "for" if high <= last else "against" if is_late else "undecided"
    return {**out, **(bounds if bounds[AT_OR_BEFORE] else {}), "verdict": verdict}


def unmeasured(found: dict[str, Any], last: int) -> str | None:
    """Return why a date says nothing of what is early, up to a last step; None where it does."""
    if "not measured" in found:
        return str(found["not measured"])
    if last < FIRST_FORK:
        return (
            f"a quarter of the steps is over before runs are forked, at step {FIRST_FORK}; give more --steps"
        )
    return f"no interval, for {found[NO_INTERVAL]}" if NO_INTERVAL in found else None


def written(rows: list[dict[str, Any]], options: Options) -> str:
    """Return the card as a table."""
    lines = [f"# Steps or frames: {options.model} on {options.source}", ""]
    lines += ["| claim | measured | samples | value [95%] | control | verdict |", "|---|---|---|---|---|---|"]
    for one in rows:
        control = one.get("control")
        beside = "" if control is None else f"{sampled(control)}: {number(control)}: {control['verdict']}"
        cells = (one["claim"], one["measured"], sampled(one), number(one), beside, f"**{one['verdict']}**")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sampled(one: dict[str, Any]) -> str:
    """Return how many samples there are, and how many were left out."""
    out = one["samples left out"]
    return f"{one['samples']}, {out} left out" if out else str(one["samples"])


def number(one: dict[str, Any]) -> str:
    """Return an estimate with its interval."""
    if "value" not in one:
        return ""
    value, low, high = (
        "never"
        if one[name] is None
        else f"{AT_OR_BEFORE} " * (name in one.get(AT_OR_BEFORE, ())) + f"{one[name]:.2f}"
        for name in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    run_script(main, Options)
