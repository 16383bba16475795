"""The codec that ships, as tests of models and of scorers use it."""

import pytest
from safetensors.torch import load_file

from dit_lens.models.organism import DEFAULT, FOLDER, LATENT_CHANNELS, ORGANISMS
from dit_lens.models.organism.modules import LinearCodec


@pytest.fixture(scope="session")
def codec():
    state = load_file(FOLDER / ORGANISMS[DEFAULT].frozen)
    codec = LinearCodec(LATENT_CHANNELS)
    codec.load_state_dict(
        {k.removeprefix("vae."): v.float() for k, v in state.items() if k.startswith("vae.")}
    )
    return codec
