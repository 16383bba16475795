"""A capture takes x0 for what a flow's velocity says, where the pipeline's own scheduler does too."""

import pytest

import dit_lens as dl
from dit_lens.errors import PlanError


@pytest.mark.parametrize("name", ["cogvideox", "mochi", "pixart"])
def test_x0_is_refused_beside_a_scheduler_of_another_kind(parts, name):
    lens = dl.Lens(parts.Case(name).pipe)
    for plan in ({"record": [dl.x0]}, {"edit": [(dl.scale(factor=2.0), dl.at(site="x0"))]}):
        with pytest.raises(PlanError, match="a capture takes x0 for x_s - sigma v"):
            lens.capture([1.0, 0.5], **plan)
    lens.capture([1.0, 0.5], record=[dl.velocity, dl.latents])


@pytest.mark.parametrize("name", ["wan", "flux"])
def test_x0_is_known_beside_a_flow(parts, name):
    dl.Lens(parts.Case(name).pipe).capture([1.0, 0.5], record=[dl.x0])
