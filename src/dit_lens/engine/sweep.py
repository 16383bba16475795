"""Arms of an experiment, side by side: every sample under every set of edits, beside its clean run.

An arm is a set of edits. Up to its first edit an arm *is* the clean run, so it joins there: a sweep over the
step of a perturbation costs half of what whole runs cost.

`sweep` is `lens.sweep`: pairs and named arms to a table of outcomes. `run_arms` is what it, and the scripts in `analyses/`,
stand on: latents of every arm, and a look at the states on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from dit_lens.engine.arm_runs import ArmRuns
from dit_lens.engine.batch import Batch
from dit_lens.engine.batch_rows import parts
from dit_lens.engine.outcomes import by_sample, in_order, outcomes
from dit_lens.engine.request import seed_of, verify_of
from dit_lens.engine.rows import Row, Shared
from dit_lens.errors import PlanError
from dit_lens.families.latents import apart
from dit_lens.plan.plan import Entry, Placed, Plan
from dit_lens.tasks.pairs import Pair, by_shape, label, numbers, together
from dit_lens.tasks.sample import Sample

if TYPE_CHECKING:
    from dit_lens.engine.stepped import Stepped
    from dit_lens.engine.visitor import Place
    from dit_lens.families.specimen import Specimen

CLEAN = "clean"
"""Name of the arm without edits."""

Arm = Sequence[Placed] | Callable[[int], Sequence[Placed]]
"""Edits of an arm: the same for every pair, or by the pair's number; a pair without any stays clean."""


def sweep(
    specimen: Specimen,
    pairs: Sequence[Pair],
    arms: Mapping[str, Iterable[Entry] | Entry],
    *,
    steps: int | None = None,
    cfg_scale: float | None = None,
    at_once: int = 64,
    record: Iterable[Entry] | Entry = (),
    store: Path | str | None = None,
    encoding: str | None = None,
    verify: str = "first",
    progress: bool = False,
    **arguments: Any,
) -> xr.Dataset:
    """Run every (sample, noise seed) clean and under every arm, and judge what comes out; see `Lens.sweep`."""
    verify_of(verify)
    if "edit" in arguments:
        raise PlanError('edit=... in a sweep: what it edits are its arms, as arms={"name": [(edit, place)]}.')
    pairs = list(pairs)
    gathered = together([_whole_seed(pair) for pair in pairs])
    _check_scorers([sample for sample, _ in gathered])
    edits = {_arm(name): Plan.of((), entries).edits for name, entries in arms.items()}
    records = Plan.of(record).records
    plans: dict[int | None, Plan] = {n: Plan(records, placed) for n, placed in enumerate(edits.values())}
    plans[None] = Plan(records)
    memory = _Memory(
        Plan(records), Plan((), tuple(edit for placed in edits.values() for edit in placed)), len(pairs)
    )
    if store is None and records:
        raise PlanError(
            "record=... in a sweep goes with store=..., the folder that its runs are written into."
        )
    seeds = {label(sample): noise for sample, noise in gathered}
    batches = []
    for same in by_shape([sample for sample, _ in gathered]):
        rows = [(sample, seed) for sample in same for seed in seeds[label(sample)]]
        batch = Batch(specimen, rows, steps, cfg_scale, at_once, verify=verify, **arguments)
        batch.check_codec()
        for edit in (edit for entries in edits.values() for edit in entries):
            batch.binding(edit)  # what cannot be carried out is refused before anything runs
        for placed in records:
            batch.binding(placed, is_edit=False)
        batches.append(batch)
    tables = []
    for batch in batches:
        rows = batch.pairs
        shown = "arms" if progress else None
        run = partial(run_arms, batch, list(edits.values()), progress=shown, check=memory.check)
        if store is None:
            clean, ended = run()
        else:
            with ArmRuns(batch, plans, store, encoding) as runs:
                clean, ended = run(runs=runs)
        judged = outcomes(batch, torch.cat([clean[None], ended]), clean)
        tables.append(by_sample(judged, rows))
    text = np.dtypes.StringDType()
    table = xr.concat(tables, "sample", data_vars="all", coords="minimal", compat="override", join="exact")
    table = table.sel(sample=list(seeds)).transpose("arm", "sample", "seed")
    written = ["", *("; ".join(map(str, e)) for e in edits.values())]
    labels = {"arm": np.array([CLEAN, *edits], text), "edits": ("arm", np.array(written, text))}
    table = table.assign_coords(labels)
    table = in_order(table)
    table.attrs = {"steps": batch.steps, "cfg_scale": float(batch.cfg_scale)}
    return table


class _Memory:
    """Refuses records and edits that keep something, where several rows of a sweep share them."""

    def __init__(self, records: Plan, edits: Plan, pairs: int) -> None:
        self.records, self.edits, self.edited = records, edits, 0
        self.shares = pairs > 1
        self.before = records.state(), edits.state()

    def check(self, edited: int) -> None:
        """Look again, once some more edited rows have run.

        Raises:
            PlanError: what one row left came, or could have come, into another.
        """
        self.edited += edited
        if self.shares or self.edited:
            self.records.refuse_kept(self.before[0])
        if self.edited > 1:
            self.edits.refuse_kept(self.before[1])


def _whole_seed(pair: Any) -> Any:
    """Return a pair with its seed as a Python int; what is no pair as it is, which `together` refuses."""
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    return (pair[0], seed_of(pair[1])) if is_pair else pair


def _arm(name: Any) -> str:
    """Return the name of an arm.

    Raises:
        PlanError: it is no text, or that of the arm without edits.
    """
    if not isinstance(name, str) or not name.strip():
        raise PlanError(f"arms: {name!r} is no name; give a text.")
    if name == CLEAN:
        raise PlanError(f"arms: {CLEAN!r} is the name of the arm without edits; give yours another.")
    return name


def _check_scorers(samples: Sequence[Sample]) -> None:
    """Refuse samples of which only some can be judged: a table holds a number for each."""
    with_scorer = [label(s) for s in samples if s.scorer is not None]
    without = [label(s) for s in samples if s.scorer is None]
    if with_scorer and without:
        raise PlanError(
            f"{with_scorer[0]} has a scorer and {without[0]} has none: sweep them apart, or give one with "
            "sample.with_(scorer=f)."
        )


@dataclass
class Now:
    """What `run_arms` has at one step: the clean rows, and the edited rows of one forward.

    Attributes:
        step: number of the step.
        clean: the clean rows, one for each pair.
        rows: (arm, pair) of each edited row: of those that have left the clean run, as many as go through the model at once.
        edited: those rows.
    """

    step: int
    clean: Stepped
    rows: list[tuple[int, int]]
    edited: Stepped


def run_arms(
    batch: Batch,
    arms: Sequence[Arm],
    watch: Sequence[Place] = (),
    look: Callable[[Now], None] | None = None,
    progress: str | None = None,
    clean_first: Callable[[int, Stepped], None] | None = None,
    runs: ArmRuns | None = None,
    check: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run every pair of a batch clean and under every arm.

    Edits over seeds see together the pairs of one sample that carry them; a sample's pairs stand side by side.

    Args:
        batch: the samples and seeds.
        arms: edits of each.
        watch: states that `look` and `clean_first` want, by (site, branch, layer). They are held for the clean rows
            and for the rows of one forward, at one step: never for all arms.
        look: called after every forward of edited rows.
        progress: name of a progress bar over the steps. Default: no bar.
        clean_first: called at every step with the clean rows, before an edited row takes it: for edits that put in
            what a clean run holds at that step.
        runs: where the runs of all arms are written; they are complete in the end.
        check: called with the number of edited rows, before the runs are complete.

    Returns:
        The last latents of the clean runs, [pair, channel, frame, y, x], and of the arms, [arm, pair, ...].

    Raises:
        PlanError: an edit cannot be carried out.
    """
    pairs = list(range(len(batch.pairs)))
    edits = [[list(arm(pair) if callable(arm) else arm) for pair in pairs] for arm in arms]
    meets = any(_meets(batch, row) for arm in edits for row in arm)
    sample_of = numbers(batch.pairs) if meets else []
    recorded = [] if runs is None else [record.placed for record in runs.records]
    placed = [recorded for _ in pairs] + [[*row, *recorded] for arm in edits for row in arm if row]
    shared = Shared(placed)
    clean = clean_x0 = batch.noise  # no edit takes x0 at step 0
    edited = edited_x0 = clean[:0]
    rows: list[tuple[int, int]] = []
    for step in tqdm(range(batch.steps), desc=progress, disable=progress is None, leave=False):
        new = [(a, p) for a in range(len(arms)) for p in pairs if _begin(batch, edits[a][p]) == step]
        rows, joined = rows + new, [p for _, p in new]
        order = sorted(range(len(rows)), key=rows.__getitem__)  # the pairs of a sample side by side
        rows = [rows[i] for i in order]
        edited = torch.cat([edited, clean[joined]])[order]
        edited_x0 = torch.cat([edited_x0, clean_x0[joined]])[order]
        left = set(rows)
        following = [[a for a in range(len(arms)) if (a, p) not in left] for p in pairs]
        members = [
            Row(
                batch.pairs[p][1],
                records=() if runs is None else runs.records,
                recorders=[] if runs is None else runs.recorders((None, p), *((a, p) for a in following[p])),
            )
            for p in pairs
        ]
        now = batch.advance(step, clean, pairs, members, watch, shared)
        if clean_first is not None:
            clean_first(step, now)
        taken = list(
            _step(batch, step, now, edited, edited_x0, rows, edits, sample_of, watch, look, runs, shared)
        )
        edited, edited_x0 = (
            torch.cat([before[:0], *(getattr(part, name) for part in taken)])
            for name, before in (("latents", edited), ("x0", edited_x0))
        )
        clean, clean_x0 = now.latents, now.x0
    if check is not None:
        check(len(rows))
    left_clean = {key: n for n, key in enumerate(rows)}
    by_arm = [
        torch.cat(
            [
                edited[n : n + 1] if (n := left_clean.get((a, p))) is not None else clean[p : p + 1]
                for p in pairs
            ]
        )
        for a in range(len(arms))
    ]
    if runs is not None:
        runs.close(clean, by_arm)
    videos = [apart(latents)["video"] for latents in by_arm]
    return clean, torch.stack(videos) if videos else apart(clean)["video"][None][:0]


def _step(
    batch: Batch,
    step: int,
    clean: Stepped,
    edited: Tensor,
    x0: Tensor,
    rows: list[tuple[int, int]],
    edits: Sequence[Sequence[Sequence[Placed]]],
    sample_of: Sequence[int],
    watch: Sequence[Place],
    look: Callable[[Now], None] | None,
    runs: ArmRuns | None,
    shared: Shared,
) -> Iterator[Stepped]:
    """Take a step with the edited rows, a forward's worth at a time; yield the latents and x0 that it gives."""
    groups = [a * len(batch.pairs) + sample_of[p] if _meets(batch, edits[a][p]) else None for a, p in rows]
    for part in parts(groups, batch.at_once):
        members = [
            Row(
                batch.pairs[p][1],
                [batch.binding(edit) for edit in edits[a][p]],
                () if runs is None else runs.records,
                [] if runs is None else runs.recorders((a, p)),
                group=group,
            )
            for (a, p), group in zip(rows[part], groups[part], strict=True)
        ]
        pairs = [p for _, p in rows[part]]
        watched = watch if look is not None else ()
        out = batch.advance(step, edited[part], pairs, members, watched, shared, x0[part])
        if look is not None:
            look(Now(step, clean, rows[part], out))
        yield replace(out, states={})  # those of all rows would not fit


def _meets(batch: Batch, edits: Sequence[Placed]) -> bool:
    """Say whether rows with some edits see the rows of other seeds."""
    return any(batch.binding(edit).over_seeds for edit in edits)


def _begin(batch: Batch, edits: Sequence[Placed]) -> int | None:
    """Return the first step at which edits change anything."""
    return min((min(batch.binding(edit).steps) for edit in edits), default=None)


__all__ = ["Arm", "Now", "run_arms", "sweep"]
