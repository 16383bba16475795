"""The command `dit-lens`: `demo` shows everything on the organism, `info` says what a store holds."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from dit_lens.errors import DitLensError, StoreError

SCENES = {"maze": 1_000_109}
"""Scenes that the demo shows where it is not the first: picked because x0 holds several paths there at first."""
MAPPED = ("maze", "latin")
"""Tasks of which the demo draws what the layers held."""


def demo(out: Path = Path("runs/demo"), steps: int = 20, seed: int = 0) -> None:
    """Generate one sample of every task with the organism, and show what the model believed at every step.

    Args:
        out: folder to write into.
        steps: scheduler steps.
        seed: of the initial noise.
    """
    from tqdm import tqdm

    import dit_lens as dl
    from dit_lens.experiments import pictures as report
    from dit_lens.models import organism
    from dit_lens.tasks.canvas import EVAL_SEED

    start = time.time()
    print("loading the organism (diffsynth takes a few seconds to import)")
    lens = dl.load("organism")
    store = out / "store.zarr"
    lines = []
    for task in tqdm(organism.TASKS, desc="tasks"):
        sample = dl.tasks.make(task, SCENES.get(task, EVAL_SEED))
        mapped = task in MAPPED
        record = [dl.energy, dl.x0, *([dl.hidden] if mapped else [])]
        run = lens.run(sample, seed, record=record, steps=steps, store=store)
        folder = out / task
        said = report.believed(run, lens.decode, sample, folder)
        if mapped:
            report.held(
                run, folder / "maps", report.choose("auto", steps, "step", auto=3), [lens.layers // 2]
            )
        score = sample.score(run.video)
        first = next((s for s, ok in zip(said["step"], said["solved"], strict=True) if ok), None)
        when = f"x0 first right at step {first}" if first is not None else "x0 never right"
        lines.append(
            f"  {task:8s} {sample.id}  {'solved' if score.solved else 'not solved':10s}  score {score.score:.2f}  {when}"
        )
    print(f"\nwhat the organism made of one scene of each task, noise seed {seed}, {steps} steps:")
    print("\n".join(lines))
    print(
        f"\nlook at {out}/latin/steps.png (what the model believed), {out}/latin/maps/ (what its layers held),"
    )
    print(f"{out}/*/video.mp4 (what the model made) and {out}/*/x0/ (what it believed, as videos)")
    print(f"all of it, for xarray: xarray.open_datatree('{store}', engine='zarr', consolidated=False)")
    print(f"took {time.time() - start:.0f} s")


def info(store: Annotated[Path, tyro.conf.Positional]) -> None:
    """Say what a store holds: its runs, whether each is complete, what it lacks, and its size.

    Args:
        store: a store, a folder of stores, or one run.
    """
    from dit_lens.store.reader import look

    sights = list(look(store))
    if not sights:
        raise StoreError(f"{store}: no run stands there; give a store, a folder of stores, or one run.")
    problems = 0
    for sight in sights:
        try:
            if sight.problem:
                raise StoreError(sight.problem)
            lines = ["a copy that xarray saved; its values are as they lie there"]
            lines = lines if sight.is_copy else _held(sight.path)
            print("\n  ".join([f"{sight.path}: {lines[0]}", *lines[1:]]))
        except StoreError as error:
            problems += 1
            print(f"{sight.path}: damaged: {error}")
    if problems:
        raise StoreError(f"{problems} of {len(sights)} runs are damaged, see above")


def _held(path: Path) -> list[str]:
    """Say what a run holds and what it lacks: one line for it, and one for each variable."""
    from dit_lens.store import status
    from dit_lens.units import human

    state = status(path)
    units = sum(len(missing) for missing in state.missing.values())
    lacking = f", {units} units missing" if units else ""
    lacking += f"; {state.damage}: copy it again, or make it again" if state.damage else ""
    size = human(sum(state.bytes.values()))
    lines = [f"{state.status}, {len(state.committed_steps)} steps, {size}{lacking}"]
    for name in sorted(state.bytes.keys() | state.missing.keys()):
        missing = f", {len(state.missing[name])} units missing" if name in state.missing else ""
        nan, inf = state.nan.get(name, 0), state.inf.get(name, 0)
        odd = f", {nan} NaN, {inf} Inf" if nan or inf else ""
        lines.append(f"{name}: {human(state.bytes.get(name, 0))}{missing}{odd}")
    return lines


def main() -> None:
    """Run the command line."""
    try:
        try:
            tyro.extras.subcommand_cli_from_dict({"demo": demo, "info": info})
        finally:
            sys.stdout.flush()
    except DitLensError as error:
        sys.exit(f"dit-lens: {error}")
    except BrokenPipeError:
        # Whoever reads has seen enough. What is left in the buffer goes nowhere, so that the exit says nothing either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
