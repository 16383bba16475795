"""Random weights, the control: the same in every process, in the trained codec and words."""

import shutil

import pytest
import torch
import tyro

import dit_lens as dl
import forked
from dit_lens.models import organism
from dit_lens.models.options import ModelOptions
from dit_lens.models.organism.loading import load


@pytest.mark.parametrize("name", organism.ORGANISMS)
def test_only_the_dits_are_drawn(organisms, tmp_path, name):
    one = organism.ORGANISMS[name]
    folder = organisms if name != "organism-v1" else organism.FOLDER
    shutil.copy(folder / one.frozen, tmp_path)  # no other file is needed
    trained, drawn = load(name, folder=folder), load(name, weights="random", folder=tmp_path)
    for part in ("vae", "text_encoder"):
        held = getattr(trained.pipe, part).state_dict()
        assert all(torch.equal(v, held[k]) for k, v in getattr(drawn.pipe, part).state_dict().items())
    for attribute in one.dits:
        held, new = (getattr(lens.pipe, attribute).state_dict() for lens in (trained, drawn))
        assert held.keys() == new.keys()
        assert not any(torch.equal(v, held[k]) for k, v in new.items() if "norm" not in k)
        assert new["head.head.weight"].abs().min() > 0
    assert drawn.info == {
        "name": name,
        "weights": {
            one.frozen: trained.info["weights"][one.frozen],
            **dict.fromkeys(one.dits, "random, seed 0"),
        },
        "loras": {},
    }
    assert drawn.family.call.default_steps == trained.family.call.default_steps
    run = drawn.run(dl.tasks.maze(1_000_007), steps=2, record=[dl.energy])
    assert run.complete and run.video.std() > 1


def test_experts_are_drawn_apart(organisms):
    pipe = load("organism-two-expert", weights="random", folder=organisms).pipe
    assert not torch.equal(pipe.dit.head.head.weight, pipe.dit2.head.head.weight)


def test_they_are_the_same_every_time_and_draw_nothing_of_the_users(tmp_path):
    torch.manual_seed(7)
    expected = torch.randn(3)
    torch.manual_seed(7)
    here = dl.load("organism", weights="random")
    assert torch.equal(torch.randn(3), expected)
    code = "import dit_lens as dl; print(dl.load('organism', weights='random').fingerprint())"
    (tmp_path / "script.py").write_text(code)
    done = forked.run(tmp_path / "script.py", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == here.fingerprint() != dl.load("organism").fingerprint()


@pytest.mark.parametrize("weights", ["Random", "", None, 3])
def test_other_weights_are_refused(weights):
    with pytest.raises(dl.PlanError, match=rf"weights={weights!r}: trained, random, or a .safetensors file"):
        dl.load("organism", weights=weights)


@pytest.mark.parametrize("name", ["wan2.2", "diffusers:x/y", "mine.py:make"])
def test_only_organisms_take_them(name):
    with pytest.raises(dl.PlanError, match=f"{name} takes no weights='random': trained or shuffled"):
        dl.load(name, weights="random")


def test_scripts_take_them():
    options = tyro.cli(ModelOptions, args=["--weights", "random"])
    assert options.load().info["weights"]["dit"] == "random, seed 0"
