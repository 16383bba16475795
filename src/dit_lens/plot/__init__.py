"""Pictures of analyses. Every function takes arrays and returns a matplotlib `Figure`; nothing is shown.

>>> figure = plot.energy_frames(run["energy"].sel(step=3, branch="cond", layer=6))  # doctest: +SKIP
>>> plot.save(figure, "energy.png")  # doctest: +SKIP
"""

from dit_lens.plot.channels import channel_importance, top_channels
from dit_lens.plot.curves import curves
from dit_lens.plot.depth import depth_sheet
from dit_lens.plot.frames import energy_frames, layer_grid, pca_frames
from dit_lens.plot.heatmap import heatmap
from dit_lens.plot.overlay import overlay
from dit_lens.plot.profiles import energy_across_layers, energy_vs_step
from dit_lens.plot.response import response
from dit_lens.plot.save import save
from dit_lens.plot.schedule import schedule
from dit_lens.plot.sheet import contact_sheet
from dit_lens.plot.strip import commitment_steps
from dit_lens.plot.temporal import temporal_energy, temporal_heatmap
from dit_lens.video import read_video, write_video

__all__ = [
    "channel_importance",
    "commitment_steps",
    "contact_sheet",
    "curves",
    "depth_sheet",
    "energy_across_layers",
    "energy_frames",
    "energy_vs_step",
    "heatmap",
    "layer_grid",
    "overlay",
    "pca_frames",
    "read_video",
    "response",
    "save",
    "schedule",
    "temporal_energy",
    "temporal_heatmap",
    "top_channels",
    "write_video",
]
