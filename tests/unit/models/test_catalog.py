"""The catalogue is whole, and the page for users says what it says."""

import importlib
from pathlib import Path

import pytest

from dit_lens.models import catalog

PAGE = (Path(__file__).parents[3] / "docs/models.md").read_text()


@pytest.mark.parametrize("name", catalog.MODELS)
def test_a_model_and_its_files_are_on_the_page(name):
    model = catalog.MODELS[name]
    assert f"`{name}`" in PAGE
    assert all(part.repo in PAGE for part in model.parts)
    for known in model.known_loras.values():
        assert set(known) == set(model.loras)
        assert all(part.repo in PAGE and f"`{part.pattern}`" in PAGE for part in known.values())


@pytest.mark.parametrize("name", catalog.MODELS)
def test_a_models_pipeline_is_there_and_has_what_loras_go_into(name):
    import torch

    model = catalog.MODELS[name]
    for package in model.needs:
        pytest.importorskip(package)
    module, kind = model.pipeline.rsplit(".", 1)
    pipe = getattr(importlib.import_module(module), kind)(device="cpu", torch_dtype=torch.float32)
    assert all(hasattr(pipe, attribute) for attribute in model.loras.values())
    assert callable(pipe.from_pretrained)
