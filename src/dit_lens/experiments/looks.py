"""What the study of attention maps reads of a run: words on regions, frames, matches between frames, and heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_lens.analysis.frame_shares import SHARES, frame_shares
from dit_lens.attention_records import attention
from dit_lens.errors import PlanError
from dit_lens.experiments.attended import MEASURES, best_matches, frame_separation, words_in_regions
from dit_lens.experiments.prompted import REGIONS, WORDS, Prompted, groups_of, prompted, regions_to_look_from
from dit_lens.experiments.tracks import WHICH, Tracks, count_matches, tracks_of
from dit_lens.plan.places import TEXT
from dit_lens.plan.plan import Placed
from dit_lens.plan.selectors import at

if TYPE_CHECKING:
    from dit_lens.engine.batch import Batch
    from dit_lens.experiments.readings import Readings
    from dit_lens.lens import Lens
    from dit_lens.plan.text import TextToken

PLACE = ("step", "layer", "head")
Variables = dict[str, tuple[tuple[str, ...], NDArray[Any]]]
"""Dimensions and values by name."""


def require_attention(lens: Lens, *sites: str) -> None:
    """Refuse a model of which an attention that is read is not known, before anything is computed.

    Raises:
        PlanError: it names the attentions that are known, and the remedy.
    """
    known = lens.attentions.get("video", [])
    if missing := [site for site in sites if site not in known]:
        raise PlanError(
            f"This study reads {', '.join(missing)} of the video's tokens, and of this model ({lens.family.name}) the attentions "
            f"{', '.join(known) or 'none'} are known: take another model, or name them by lens.with_sites(...)."
        )


def tokens_of(batch: Batch, pair: int) -> Sequence[TextToken] | None:
    """Return the tokens of a pair's prompt on the first branch; None where which they are is not known."""
    known = batch.requests[pair].stages[0].layout.text().get(batch.layout.branches[0], ())
    return known if TEXT in batch.grids and len(known) == batch.grids[TEXT][2] else None


@dataclass(frozen=True)
class Looks:
    """What is read of one sample's runs.

    Attributes:
        named: the object that the prompt names.
        regions: `REGIONS` of tokens.
        groups: group of each token of the prompt; None where they are not known, or there is no attention to it.
        tracks: moving objects.
        grid: (frame, y, x) of the tokens.
    """

    named: Prompted | None
    regions: NDArray[np.bool_]
    groups: tuple[int, ...] | None
    tracks: Tracks
    grid: tuple[int, int, int]

    @classmethod
    def of(cls, batch: Batch, pair: int, has_text: bool, threshold: float) -> Looks:
        """Return what is read of a pair.

        Args:
            batch: the pairs.
            pair: its number.
            has_text: whether the model's attention to the prompt is known.
            threshold: share of a token's pixels from which on it is an object's.
        """
        sample, grid = batch.pairs[pair][0], batch.grid
        named = prompted(sample)
        tokens = tokens_of(batch, pair) if has_text else None
        return cls(
            named,
            regions_to_look_from(named, grid, threshold),
            None if tokens is None else groups_of(tokens, None if named is None else named.word),
            tracks_of({} if sample.scene is None else sample.masks, grid),
            grid,
        )

    def records(self, **where: Any) -> list[Placed]:
        """Return the records at some steps, layers and heads, on one branch."""
        place = at(**where)
        records = [Placed(attention(over="frames", heads="all"), place), Placed(frame_separation, place)]
        if self.groups is not None:
            words = words_in_regions(regions=self.regions, groups=self.groups, count=len(WORDS))
            records.append(Placed(words, place))
        if self.tracks.places:
            records.append(Placed(best_matches(places=self.tracks.places), place))
        return records

    def measured(self, reading: Readings, radius: float) -> Variables:
        """Return what was read of a run, by name; NaN, and counts of 0, where there was nothing to read."""
        size = len(reading.steps), len(reading.layers), len(reading.heads)
        frames = xr.DataArray(reading.values["attention_over_frames"], dims=(*PLACE, "frame", "key_frame"))
        shares = frame_shares(frames)
        nothing = np.full((*size, len(REGIONS), len(WORDS), len(MEASURES)), np.nan)
        words = reading.values.get("words_in_regions", nothing)
        counts = self._counts(reading, radius)
        return {
            "frame_share": ((*PLACE, "share"), np.stack([shares[name].values for name in SHARES], -1)),
            "frame_map": (("step", "layer", "frame", "key_frame"), frames.mean("head").values),
            "separation": (PLACE, reading.values["frame_separation"]),
            **{
                f"word_{name}": ((*PLACE, "region", "word"), words[..., n]) for n, name in enumerate(MEASURES)
            },
            "hits": ((*PLACE, "apart", "which"), counts.pop("hits")),
            **{name: (("apart", "which"), values) for name, values in counts.items()},
        }

    def _counts(self, reading: Readings, radius: float) -> dict[str, NDArray[np.float64]]:
        size = len(reading.steps), len(reading.layers), len(reading.heads)
        found = reading.values.get("best_matches", np.full((*size, 0, self.grid[0], 2), np.nan))
        return count_matches(found.astype(np.float64), self.tracks, self.grid, radius)


COORDS = {"share": SHARES, "region": REGIONS, "word": WORDS, "which": WHICH}
"""Labels of the dimensions of what is measured."""

__all__ = ["COORDS", "PLACE", "Looks", "require_attention", "tokens_of"]
