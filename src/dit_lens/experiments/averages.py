"""What runs of several noise seeds may average, at which steps, and what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dit_lens as dl
from dit_lens.edits import Edit
from dit_lens.experiments.ensembles import ranges
from dit_lens.experiments.pictures import choose
from dit_lens.plan.plan import Placed

MEDOID = "medoid of x0"
"""Name of the average that is none: x0 of the seed that is nearest to all others."""


@dataclass(frozen=True)
class Average:
    """Something of K runs that becomes one in all of them.

    Attributes:
        name: in tables.
        edit: over seeds.
        site: where the value stands.
        layers: after which layers, for states.
    """

    name: str
    edit: Edit
    site: str
    layers: tuple[int, ...] = ()

    def averaged(self, steps: Sequence[int]) -> Placed:
        """Return the edit at some steps."""
        return Placed(self.edit, dl.at(site=self.site, step=steps, layer=self.layers or None))

    def placebo(self, steps: Sequence[int]) -> Placed:
        """Return an edit that changes each token by as much, in a random direction.

        Of states it stands after the first layer alone. In blocks of one stream the average acts there, and after later layers it
        finds all runs equal; a placebo would find its own changes there.
        """
        return Placed(
            dl.controls.placebo(self.edit), dl.at(site=self.site, step=steps, layer=self.layers[:1] or None)
        )

    def cost(self, steps: Sequence[int], count: int, seeds: int) -> float:
        """Return how many runs it costs if one run goes on alone after the last edited step: 1 + (K - 1)(s + 1) / S.

        Runs whose latents are averaged are one before their first edited step begins.

        Args:
            steps: that are edited.
            count: of a whole run's steps, S.
            seeds: of the runs that are averaged, K.
        """
        together = steps[0] if self.site == "latents" else steps[-1] + 1
        return 1 + (seeds - 1) * together / count


def averages(what: Sequence[str], layers: str, count: int) -> list[Average]:
    """Return averages by their names.

    Args:
        what: "states", "medoid", or a site on the latent grid: "velocity", "x0", "latents".
        layers: ranges of layers for states, as `ranges` takes them; an average for each.
        count: how many layers there are.

    Raises:
        PlanError: there are no such layers.
    """
    named: dict[str, list[Average]] = {
        "states": [
            Average(f"states, {name}", dl.mean_over_seeds(), "block", tuple(choose(text, count, "layers")))
            for name, text in ranges(layers, count).items()
        ],
        "medoid": [Average(MEDOID, dl.medoid_over_seeds(), "x0")],
    }
    return [
        average for name in what for average in named.get(name, [Average(name, dl.mean_over_seeds(), name)])
    ]


def intervals(
    chosen: Sequence[int], until: Sequence[float], sigmas: Sequence[float]
) -> Mapping[str, list[int]]:
    """Return steps at which runs are averaged, by name: the chosen ones, and from the first down to some noise levels.

    Args:
        chosen: steps.
        until: noise levels.
        sigmas: noise level of each step.

    Returns:
        Each set of steps once, few of them first.
    """
    places = [dl.at(sigma=(level, 1.0)) for level in until]
    sets = [list(chosen), *([s for s, sigma in enumerate(sigmas) if p.holds_sigma(sigma)] for p in places)]
    return {_spelt(steps): steps for steps in sorted(sets, key=len) if steps}


def _spelt(steps: Sequence[int]) -> str:
    """Return the name of a set of steps: 4, 0-4, or 0,2,5."""
    if len(steps) > 1 and list(steps) == list(range(steps[0], steps[-1] + 1)):
        return f"{steps[0]}-{steps[-1]}"
    return ",".join(map(str, steps))


__all__ = ["MEDOID", "Average", "averages", "intervals"]
