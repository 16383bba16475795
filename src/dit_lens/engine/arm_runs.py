"""The runs of a sweep: one for every arm and pair, in the same store as `lens.run` writes.

Up to its first edit an arm is the clean run, so its recorder stands on the clean run's row until then. A run that stands
complete stays as it is, and is compared with what the sweep computes where it is to be checked. One writer is open for each
run that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor

from dit_lens.engine.batch import Batch
from dit_lens.engine.batch_run import open_place
from dit_lens.engine.recorder import Recorder
from dit_lens.engine.request import Request, seeds_together
from dit_lens.engine.runner import coordinates, finished, write_outputs
from dit_lens.engine.verify import Comparison, is_due, passed
from dit_lens.plan.plan import Plan
from dit_lens.store.place import RunPlace

Key = tuple[int | None, int]
"""Arm and pair, by number; no arm is the clean run."""


class ArmRuns:
    """Writes the runs of a sweep.

    Args:
        batch: the samples and seeds.
        plans: what each arm records and edits, by its number; None is the clean run.
        store: folder of runs.
        encoding: how bfloat16 states are stored.

    Attributes:
        records: what is recorded in every run.
    """

    def __init__(
        self, batch: Batch, plans: Mapping[int | None, Plan], store: Path | str, encoding: str | None = None
    ) -> None:
        self.batch = batch
        self.requests: dict[Key, Request] = {}
        for arm, plan in plans.items():
            together = seeds_together(plan, batch.pairs)
            for pair, (sample, seed) in enumerate(batch.pairs):
                self.requests[arm, pair] = Request(
                    batch.specimen,
                    sample,
                    seed,
                    plan,
                    steps=batch.steps,
                    cfg_scale=batch.cfg_scale,
                    store=store,
                    encoding=encoding,
                    arguments=batch.arguments,
                    loop="batch",
                    together=together[pair],
                )
        stage = self.requests[None, 0].stages[0]
        self.records = [batch.binding(record, is_edit=False) for record in stage.plan.records]
        self._cleanup = ExitStack()
        self._paths: set[Path] = set()
        self._places: dict[Key, RunPlace] = {}
        self._compared: dict[Key, Comparison] = {}
        self._recorders: dict[Key, Recorder] = {}

    def __enter__(self) -> Self:
        """Open the runs that are missing."""
        self.batch.name_anew(self.requests.values())
        coords = coordinates(
            self.requests[None, 0].stages[0].plan, self.batch.layout, self.batch.schedule, self.batch.grids
        )
        names = ["sweep", *(request.stages[0].name for request in self.requests.values())]
        due = is_due(self.batch.verify, self.requests[None, 0].store, self.batch.specimen)
        with ExitStack() as opened:
            for number, (key, request) in enumerate(self.requests.items(), 1):
                stage = request.stages[0]
                assert stage.path is not None
                if stage.path in self._paths:
                    continue  # two arms of equal edits are one run
                self._paths.add(stage.path)
                if (run := finished(request)) is not None:
                    if due:
                        self._compared[key] = Comparison(run, self.batch.layout, exact=False)
                        self._recorders[key] = self._compared[key].recorder()
                    continue
                manifest: dict[str, Any] = {**stage.manifest, "batch": {"row": number, "rows": names}}
                place = open_place(opened, stage.path, manifest, coords, durable=True)
                self._places[key] = place
                self._recorders[key] = Recorder(self.batch.layout, 1, place.writer, request.encoding)
            self._cleanup = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)

    def recorders(self, *keys: Key) -> list[Recorder]:
        """Return the recorders of runs that are missing."""
        return [self._recorders[key] for key in keys if key in self._recorders]

    def close(self, clean: Tensor, ended: Sequence[Tensor]) -> None:
        """Complete the runs.

        Args:
            clean: last latents of the clean runs, [pair, channel, frame, y, x].
            ended: those of the pairs under each arm.
        """

        def outputs(arm: int | None, pair: int) -> dict[str, np.ndarray]:
            return self.batch.outputs((clean if arm is None else ended[arm])[pair : pair + 1])

        for key, comparison in self._compared.items():
            comparison.end(outputs(*key))
        if self._compared:
            passed(self.requests[None, 0])
        for key, place in self._places.items():
            self._recorders[key].end_run(self.records)
            write_outputs(place.writer, outputs(*key), self.batch.rates)
            place.close()
