"""Analyses: arrays in, arrays out. No torch, no model; lazy arrays are read one state at a time.

All functions take and return `xarray` objects on the dimensions of `dit_lens.plan.places.DIMS`. NaN means "not
recorded": a state that is NaN throughout is an error that names its place.
"""

from dit_lens.analysis.at_amount import at_amount
from dit_lens.analysis.blocks import block_score
from dit_lens.analysis.channels import channel_importance, top_channels
from dit_lens.analysis.cka import cka, cka_matrix, cka_pairs
from dit_lens.analysis.commitment import commitment, corrections, revisions
from dit_lens.analysis.crossing import crossing
from dit_lens.analysis.direction import direction
from dit_lens.analysis.distance import trajectory_distance
from dit_lens.analysis.energy import energy, energy_by_layer, energy_by_step, temporal_energy
from dit_lens.analysis.frame_shares import frame_shares
from dit_lens.analysis.ideal import IdealDenoiser, ideal_denoiser
from dit_lens.analysis.leaning import leaning
from dit_lens.analysis.logistic import logistic
from dit_lens.analysis.masked import masked_energy, token_shares
from dit_lens.analysis.massive import massive_channels
from dit_lens.analysis.mixture import mixture
from dit_lens.analysis.onset import onset
from dit_lens.analysis.pca import pca_basis, pca_maps, to_rgb
from dit_lens.analysis.peak import peak
from dit_lens.analysis.psnr import psnr
from dit_lens.analysis.statistics import effect, mean

__all__ = [
    "IdealDenoiser",
    "at_amount",
    "block_score",
    "channel_importance",
    "cka",
    "cka_matrix",
    "cka_pairs",
    "commitment",
    "corrections",
    "crossing",
    "direction",
    "effect",
    "energy",
    "energy_by_layer",
    "energy_by_step",
    "frame_shares",
    "ideal_denoiser",
    "leaning",
    "logistic",
    "masked_energy",
    "massive_channels",
    "mean",
    "mixture",
    "onset",
    "pca_basis",
    "pca_maps",
    "peak",
    "psnr",
    "revisions",
    "temporal_energy",
    "to_rgb",
    "token_shares",
    "top_channels",
    "trajectory_distance",
]
