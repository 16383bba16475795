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
  halfway from chance. For it where the interval ends before, against it where it begins after.

An interval that lies on neither side is no verdict: "undecided", with what was measured, so that the next one knows how many
samples it takes. The second claim is the frames' own; a positive control (`--control organism-causal`, which sees no later
frame) shows whether the experiment could have found it.

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
from dit_lens.experiments.crossings import NO_INTERVAL
from dit_lens.experiments.options import StudyOptions
from dit_lens.experiments.samples import require_scorer
from dit_lens.experiments.script import run_script
from dit_lens.models.options import Unset

HERE = Path(os.path.relpath(Path(__file__).parent))
MARGIN_RATE = 0.05
"""Share of right answers that counts as none."""
MARGIN_SLOPE = 0.1
"""Steps a latent frame that count as no order."""
LEAST = 10
"""Samples that a verdict takes: of fewer that agree, an interval has no width."""
EARLY = 0.25
"""Share of the steps within which a plan is early."""
Interval = tuple[float, float, float]
"""Estimate, low, high."""


@dataclass
class Options(StudyOptions):
    """Decide between steps and frames."""

    control: Unset[str] = None
    """A model that reasons along frames by construction, such as organism-causal; `steps_or_frames` runs on it, too."""
    out: Path = Path("runs/referee")

    OWN: ClassVar[tuple[str, ...]] = ("control", "out", "model", "paper", "steps")
    """Options that are not handed on as they are."""


def main(options: Options) -> int:
    """Run the experiments, and write the card."""
    if options.scene_count < LEAST:
        raise TaskError(f"--samples {options.scene_count}: a verdict takes {LEAST} samples or more.")
    require_scorer(options)
    steps = 20 if options.steps is None else options.steps
    runs = {
        "step_count": ["--counts", "1", str(steps)],
        "steps_or_frames": ["--steps", str(steps)],
        "causal_commitment": ["--steps", str(steps)],
    }
    found = {name: run(name, options.model, more, options, options.out / name) for name, more in runs.items()}
    control = None
    if options.control is not None:
        out = options.out / "control"
        control = run("steps_or_frames", options.control, runs["steps_or_frames"], options, out)
    rows = card(found, control, steps)
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
    return 0


def run(name: str, model: str, more: list[str], options: Options, out: Path) -> dict[str, Any]:
    """Run a script, and return its summary.

    Raises:
        DitLensError: it failed.
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
    code = subprocess.run(command).returncode
    if not (out / "summary.json").exists() or code:
        raise DitLensError(f"{name} ended with exit code {code}: {shlex.join(command)}")
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
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


def card(found: dict[str, Any], control: dict[str, Any] | None, steps: int) -> list[dict[str, Any]]:
    """Return a row for each claim: what was measured, its interval, the control, and the verdict."""
    rows = [
        row(
            "more steps, more right answers",
            "right answers, all steps minus one",
            gained(found["step_count"]),
            MARGIN_RATE,
        ),
        row("frames settle in order", "steps a latent frame", slope(found["steps_or_frames"]), MARGIN_SLOPE),
        row(
            "going back along steps rescues more",
            "share of wrong runs, steps minus frames",
            rescued(found["steps_or_frames"]),
            0.0,
        ),
        early(found["causal_commitment"], steps),
    ]
    if control is not None:
        rows[1]["control"] = row("", "", slope(control), MARGIN_SLOPE)
    return rows


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
    claim, found = "the answer stands within the first quarter of the steps", summary["commitment"]
    if "not measured" in found:
        return {
            "claim": claim,
            "measured": f"step of {steps}",
            "verdict": f"not measured: {found['not measured']}",
        }
    if NO_INTERVAL in found:
        reason = f"not measured: no interval, for {found[NO_INTERVAL]}"
        return {"claim": claim, "measured": f"step of {steps}", "verdict": reason}
    ends = [found[name]["step"] for name in ("value", "low", "high")]
    value, low, high = (float("inf") if step is None else step for step in ends)
    bound = EARLY * steps
    verdict = "for" if high <= bound else "against" if low > bound else "undecided"
    numbers = {"value": value, "low": low, "high": high}
    finite = {name: number if number != float("inf") else None for name, number in numbers.items()}
    return {"claim": claim, "measured": f"step of {steps}", **finite, "verdict": verdict}


def written(rows: list[dict[str, Any]], options: Options) -> str:
    """Return the card as a table."""
    lines = [f"# Steps or frames: {options.model} on {options.source}", ""]
    lines += ["| claim | measured | value [95%] | control | verdict |", "|---|---|---|---|---|"]
    for one in rows:
        control = one.get("control")
        beside = "" if control is None else f"{number(control)}: {control['verdict']}"
        lines.append(
            f"| {one['claim']} | {one['measured']} | {number(one)} | {beside} | **{one['verdict']}** |"
        )
    return "\n".join(lines) + "\n"


def number(one: dict[str, Any]) -> str:
    """Return an estimate with its interval."""
    if "value" not in one:
        return ""
    value, low, high = (
        "never" if one[name] is None else f"{one[name]:.2f}" for name in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


if __name__ == "__main__":
    run_script(main, Options)
