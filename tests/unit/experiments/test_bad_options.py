"""An option that names what is not there is refused before a step is taken, and what an earlier command came to stays."""

import pytest

import dit_lens as dl
from dit_lens.engine.batch import Batch
from dit_lens.models.options import ModelOptions
from scripts import script

pytestmark = pytest.mark.slow
SMALL = {"samples": 2, "steps": 3}
BAD = [
    ("causal_commitment", {"at": "9"}, "--at 9"),
    ("causal_commitment", {"forks": 1}, "--forks 1"),
    ("cross_step_similarity", {"cka_layers": "99", "steps": 4}, "--cka-layers 99"),
    ("cross_step_similarity", {"cka_steps": "9", "steps": 4}, "--cka-steps 9"),
    ("cross_step_similarity", {"cka_tokens": 2, "steps": 4}, "--cka-tokens 2"),
    ("cross_step_similarity", {"steps": 1}, "1 steps, --cka-steps"),
    ("decode_steps", {"vis_steps": "9"}, "--vis-steps 9"),
    ("depth_lens", {"layers": "99"}, "--layers 99"),
    ("depth_lens", {"vis_steps": "9"}, "--vis-steps 9"),
    ("depth_lens", {"ridge": -1.0}, "--ridge -1"),
    ("early_selection", {"at": "9"}, "--at 9"),
    ("emergent", {"probe_scenes": 1}, "--probe-scenes 1"),
    ("frame_count", {"counts": (0, 13)}, "--counts 0 13"),
    ("layer_roles", {"task": "circle", "layers": "99"}, "--layers 99"),
    ("layer_roles", {"task": "circle", "vis_steps": "9"}, "--vis-steps 9"),
    ("layer_swap", {"task": "circle", "layers": "99"}, "--layers 99"),
    ("layer_swap", {"task": "circle", "map_steps": "9"}, "--map-steps 9"),
    ("layer_swap", {"task": "circle", "sites": "nose"}, "nose"),
    ("massive_channels", {"layers": "99"}, "--layers 99"),
    ("massive_channels", {"vis_steps": "9"}, "--vis-steps 9"),
    ("massive_channels", {"edit_layer": 99}, "--edit-layer 99"),
    ("massive_channels", {"k": 0}, "--k 0"),
    ("massive_channels", {"cka_tokens": 2}, "--cka-tokens 2"),
    ("noise_sensitivity", {"stops": "9"}, "--stops 9"),
    ("noise_sensitivity", {"cka_layers": "99"}, "--cka-layers 99"),
    ("noise_sensitivity", {"cka_tokens": 2}, "--cka-tokens 2"),
    ("noise_sensitivity", {"steps": 1}, "--steps 1"),
    ("plan_commitment", {"at": "9"}, "--at 9"),
    ("revision", {"task": "loop", "steps": 1}, "--steps 1"),
    ("scratch_space", {"at_steps": "9"}, "--at-steps 9"),
    ("scratch_space", {"layers": "99"}, "--layers 99"),
    ("scratch_space", {"contents": "gold"}, "gold"),
    ("seed_ensemble", {"layers": "99"}, "--layers 99"),
    ("seed_ensemble", {"at_steps": "9"}, "--at-steps 9"),
    ("seed_ensemble", {"ks": (0,)}, "--ks"),
    ("step_count", {"counts": (0, 2), "steps": None}, "--counts"),
    ("steps_or_frames", {"back_to": "9"}, "--back-to 9"),
    ("steps_or_frames", {"hold": "9"}, "--hold 9"),
    ("surprise", {"task": "occlude", "at": "9"}, "--at 9"),
    ("surprise", {"task": "occlude", "comparisons": ("ghost",)}, "ghost"),
    ("token_maps", {"vis_steps": "9"}, "--vis-steps 9"),
    ("token_maps", {"layers": "99"}, "--layers 99"),
    ("token_maps", {"branch": "left"}, "no branch 'left'"),
    ("what_to_average", {"at_steps": "9"}, "--at-steps 9"),
    ("what_to_average", {"layers": "99"}, "--layers 99"),
    ("what_to_average", {"until": "2"}, "--until 2"),
]


@pytest.mark.parametrize(("name", "bad", "says"), BAD, ids=lambda value: str(value).replace("/", "-"))
def test_what_is_not_there_is_refused_and_earlier_results_stay(name, bad, says, lens, tmp_path, monkeypatch):
    module = script(name)
    monkeypatch.setattr(ModelOptions, "load", lambda _: lens)
    # Whether a batch is the pipeline's own loop, which takes steps, is not asked here.
    monkeypatch.setattr("dit_lens.engine.batch.check_against_pipeline", lambda _: False)
    for method in ("advance", "run"):
        monkeypatch.setattr(Batch, method, lambda *_, **__: pytest.fail("a step is taken"))
    monkeypatch.setattr(type(lens), "run", lambda *_, **__: pytest.fail("a run is made"))
    earlier = {"summary.json": "{}", "manifest.json": "{}"}
    for file, text in earlier.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(dl.DitLensError, match=says):
        module.main(module.Options(**{**SMALL, **bad, "out": tmp_path}))
    assert {file: (tmp_path / file).read_text() for file in earlier} == earlier
