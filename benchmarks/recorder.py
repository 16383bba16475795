"""What ran, seen independently of the library: plain hooks, and the arguments of `model_fn`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

import dit_lens as dl
from real_models import Model


class Recorder:
    """Energies of every block in every call of a bare run, under labels read off the pipeline itself.

    Args:
        pipe: the pipeline.
        model: how plain hooks read it.

    Attributes:
        energies: (timestep, branch, layer, stream) to the energy [token].
        calls: (timestep, branch, expert) of every call, in order.
        refused: what a hook that takes a block's output for a tensor ends with; "" where it is one.
    """

    def __init__(self, pipe: Any, model: Model) -> None:
        self.pipe, self.model, self.refused = pipe, model, ""
        self.energies: dict[tuple[float, str, int, str], Tensor] = {}
        self.calls: list[tuple[float, str, str]] = []

    def watch(self, bare: Callable[[], Any]) -> None:
        """Run the bare pipeline, and keep the energy of every block's streams in every call."""
        dits = {expert: getattr(self.pipe, name) for expert, name in self.model.experts.items()}
        names = {id(dit): expert for expert, dit in dits.items()}
        model_fn = self.pipe.model_fn

        def called(**keywords: Any) -> Any:
            timestep = round(float(keywords["timestep"].flatten()[0]), 3)
            self.calls.append((timestep, self.model.branch(keywords), names[id(keywords["dit"])]))
            return model_fn(**keywords)

        handles = [
            block.register_forward_hook(lambda _, __, output, layer=layer: self._keep(layer, output))
            for dit in dits.values()
            for layer, block in enumerate(getattr(dit, self.model.blocks))
        ]
        self.pipe.model_fn = called
        try:
            bare()
        finally:
            self.pipe.model_fn = model_fn
            for handle in handles:
                handle.remove()

    def _keep(self, layer: int, output: Any) -> None:
        try:
            output.detach()
        except AttributeError as error:
            self.refused = f"{type(error).__name__}: {error}"
        timestep, branch, _ = self.calls[-1]
        for stream, state in self.model.states(output).items():
            key = timestep, branch, layer, stream
            assert key not in self.energies, key
            self.energies[key] = dl.energy(state[0]).cpu()

    def agrees(self, run: dl.Run) -> int:
        """Return how many energies were compared; every one must be equal, bit for bit, under its label."""
        maps = {stream: run[energy_of(stream)] for stream in {key[-1] for key in self.energies}}
        assert len(self.energies) == sum(
            m.sizes["step"] * m.sizes["branch"] * m.sizes["layer"] for m in maps.values()
        )
        experts = {timestep: expert for timestep, _, expert in self.calls}
        for (timestep, branch, layer, stream), values in self.energies.items():
            energy = maps[stream]
            step = int(np.abs(energy.timestep.values - timestep).argmin())
            mine = energy.sel(step=step, branch=branch, layer=layer)
            assert np.array_equal(mine.values.ravel(), values.numpy()), (step, branch, layer, stream)
            assert str(mine.expert.values) == experts[timestep], step
        return len(self.energies)


def energy_of(stream: str) -> str:
    """Return the variable that holds a stream's energy."""
    return "energy" if stream == "video" else f"energy_{stream}"
