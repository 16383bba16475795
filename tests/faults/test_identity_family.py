"""A run's name says how its model is read: sites, lists of blocks, grids, readouts; and what else was found beside weights."""

import copy
import dataclasses
import functools
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import dit_lens as dl
from dit_lens.families.site import Site
from dit_lens.plan.content import content
from dit_lens.plan.functions import describe

CHANNELS, HIDDEN = 3, 8
SAMPLE = dl.Sample(prompt="a cat", size=(4, 6), num_frames=1)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, h):
        return h + self.b(self.a(h).relu())


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Linear(CHANNELS, HIDDEN), nn.Linear(HIDDEN, CHANNELS)
        self.one, self.two = (nn.ModuleList(Layer() for _ in range(2)) for _ in range(2))

    def forward(self, x):
        h = self.into(x.flatten(2).transpose(1, 2))
        for layer in (*self.one, *self.two):
            h = layer(h)
        return self.out(h).transpose(1, 2).reshape(x.shape)


def lens_of(blocks="one", model=None, **ways):
    ways = {"grid": lambda size: size[1:], **ways}
    return dl.blocks(
        model or Model(),
        blocks,
        latent=lambda sample: (CHANNELS, 1, 4, 6),
        condition=lambda sample, branch: {},
        forward=lambda model, latents, timestep: model(latents),
        steps=2,
        cfg_scale=1.0,
        **ways,
    )


def name_of(lens, record=(), **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return lens.run(SAMPLE, record=record, **options).attrs["identity_sha256"]


READINGS = {
    "another path": ({"sites": {"q": "a"}}, {"sites": {"q": "b"}}),
    "another end": ({"sites": {"q": Site("b")}}, {"sites": {"q": Site("b", "input")}}),
    "tokens before": (
        {"before": 1, "grid": lambda size: (1, 1, 23)},
        {"after": 1, "grid": lambda size: (1, 1, 23)},
    ),
    "another grid": ({}, {"grid": lambda size: (1, 6, 4)}),
    "another list of blocks": ({"blocks": "one"}, {"blocks": "two"}),
    "another order of blocks": ({"blocks": ("one", "two")}, {"blocks": ("two", "one")}),
}


@pytest.mark.parametrize("one, other", READINGS.values(), ids=READINGS)
def test_how_a_model_is_read_is_in_the_name(one, other):
    model = Model()
    place = dl.at(site="q") if "sites" in one else dl.at()
    names = [name_of(lens_of(model=model, **ways), [(dl.energy, place)]) for ways in (one, other, one)]
    assert names[0] == names[2] != names[1]


def test_a_family_of_the_users_own_is_in_the_name(tiny_pipe, sample):
    from dit_lens.families.diffsynth.wan import WAN

    pipe = tiny_pipe()

    def scaled(factor):
        x0 = WAN.flow.x0
        flow = dataclasses.replace(WAN.flow, x0=lambda *values: factor * x0(*values))
        return dl.Lens(pipe, family=dataclasses.replace(WAN, flow=flow))

    lenses = [dl.Lens(pipe), scaled(2.0), scaled(3.0), scaled(2.0)]
    names = [lens.run(sample, steps=1).attrs["identity_sha256"] for lens in lenses]
    assert len(set(names)) == 3 and names[1] == names[3]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(2))
        self.register_buffer("bias", torch.zeros(2))


@pytest.mark.parametrize("where", ["weight", "bias"])
def test_attributes_of_a_models_tensors_are_in_its_name(where):
    model = Model()
    model.more = Scaled()
    lens = lens_of(model=model)
    names = []
    for factor in (1.0, 2.0, 1.0):
        getattr(model.more, where).scale = factor
        names.append(name_of(lens))
    assert names[0] == names[2] != names[1]


def test_a_forward_below_nnsight_is_in_the_name():
    import nnsight

    def fingerprint(factor):
        model = Model()
        layer = model.one[0].a
        if factor:
            layer.forward = lambda x: nn.Linear.forward(layer, x) * factor
        bare = lens_of(model=model).specimen.fingerprint()
        nnsight.NNsight(model)
        wrapped = lens_of(model=model).specimen.fingerprint()
        return bare, wrapped

    plain, doubled, tripled = fingerprint(0), fingerprint(2.0), fingerprint(3.0)
    assert plain[0] == plain[1] and len({plain[1], doubled[1], tripled[1]}) == 3


def test_how_a_hook_of_all_modules_is_called_is_in_the_name():
    lens, names = lens_of(), []
    for with_kwargs in (False, True, False):
        handle = nn.modules.module.register_module_forward_hook(lambda *a: None, with_kwargs=with_kwargs)
        names.append(name_of(lens))
        handle.remove()
    assert names[0] == names[2] != names[1]


def test_a_handle_of_a_hook_is_not_in_the_name():
    model = Model()
    lens, names = lens_of(model=model), []
    for _ in range(2):
        model.into.handle = model.into.register_forward_hook(lambda *a: None)
        names.append(name_of(lens))
        model.into.handle.remove()
    assert names[0] == names[1]


def test_noise_levels_set_by_hand_are_in_the_name(tiny_pipe):
    pipe = tiny_pipe()
    scheduler, lens = pipe.scheduler, dl.Lens(pipe)
    scheduler.set_timesteps(2)
    found = []
    for replaced in (False, True):
        if replaced:
            scheduler.set_timesteps = lambda *a, **k: None
        for levels in ([1.0, 0.8], [1.0, 0.3]):
            scheduler.sigmas = torch.tensor(levels)
            found.append(lens.specimen.identity([])["components"]["scheduler"])
    assert found[0] == found[1] and len({*found[1:]}) == 3


def test_a_compiled_component_is_unnamed(tiny_pipe):
    pipe = tiny_pipe()
    pipe.vae.compile(backend="eager")
    unnamed = []
    dl.Lens(pipe).specimen.identity(unnamed)
    assert "a module that is compiled" in unnamed[0]


@pytest.mark.parametrize("depth", [2000])
def test_what_is_nested_too_deeply_is_unnamed(depth):
    model, value = Model(), []
    for _ in range(depth):
        value = [value, object]
    model.deep = value
    unnamed = []
    lens_of(model=model).specimen.identity(unnamed)
    assert "nested too deeply" in unnamed[0]


def test_settings_of_precision_by_torchs_new_names_are_read():
    lens, before = lens_of(), torch.backends.mkldnn.matmul.fp32_precision
    name = name_of(lens)
    try:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        assert name_of(lens) != name
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert name_of(lens) == name


def test_memory_that_was_given_back_is_not_read():
    model = Model()
    model.register_buffer("gone", torch.ones(4))
    model.gone.untyped_storage().resize_(0)
    unnamed = []
    lens_of(model=model).specimen.identity(unnamed)
    assert "whose memory was freed" in unnamed[0]


def test_what_a_cache_calls_counts_below_wraps():
    def decorated(k):
        def inner(n):
            return n

        @functools.wraps(inner)
        @functools.lru_cache
        def cached(n):
            return inner(n) * k

        return lambda h, at: h * cached(1)

    assert describe(decorated(2.0)) != describe(decorated(3.0))


def test_padding_of_a_tokenizer_on_its_own_counts():
    tokenizers = pytest.importorskip("tokenizers")
    one = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a"))
    other = copy.deepcopy(one)
    other.enable_truncation(3)
    assert content(one, []) != content(other, [])


def test_all_of_a_sample_that_a_condition_reads_is_in_the_name():

    lens, names = lens_of(), []
    for value in (10, 200, 10):
        truth = np.full((1, 4, 6, 3), value, np.uint8)
        names.append(lens.run(SAMPLE.with_(truth=truth)).attrs["identity_sha256"])
    assert names[0] == names[2] != names[1]


class Memory:
    """A hook that keeps the first thing that it saw."""

    def __init__(self):
        self.first, self.calls = None, 0

    def __call__(self, module, inputs, output):
        self.calls += 1
        if self.calls == 4:
            raise OSError("the power went")
        if self.first is None:
            self.first = output.clone()
        return output + self.first


def test_a_run_whose_hooks_keep_something_is_not_resumed(tmp_path):
    whole = lens_of()
    memory = Memory()
    memory.calls = 10
    whole.dits["dit"].one[0].register_forward_hook(memory)
    expected = whole.run(SAMPLE, steps=6)["latents"].values
    for attempt in range(2):
        lens, memory = lens_of(), Memory()
        memory.calls = 10 * attempt
        lens.dits["dit"].one[0].register_forward_hook(memory)
        if attempt == 0:
            with pytest.raises(OSError, match="the power went"):
                lens.run(SAMPLE, steps=6, store=tmp_path)
        else:
            assert (lens.run(SAMPLE, steps=6, store=tmp_path)["latents"].values == expected).all()


class Freeze:
    """An edit that keeps the first value that it saw."""

    def __init__(self):
        self.first = None

    def __call__(self, h, at):
        self.first = h.clone() if self.first is None else self.first
        return h + self.first


def test_rows_do_not_share_what_an_edit_keeps(tmp_path):
    lens = lens_of()
    pairs = [(SAMPLE, 0), (SAMPLE, 1)]
    with pytest.raises(dl.PlanError, match="keeps something from call to call"):
        lens.batch(pairs, edit=[(Freeze(), dl.at(layer=0))], store=tmp_path).run()
    with pytest.raises(dl.PlanError, match="keeps something from call to call"):
        lens.sweep(pairs, arms={"frozen": [(Freeze(), dl.at(layer=0))]})
    lens.batch(pairs[:1], edit=[(Freeze(), dl.at(layer=0))]).run()


def test_what_a_sample_was_given_later_is_in_the_name():
    lens, names = lens_of(), []
    for value in (1.0, 2.0, 1.0):
        sample = SAMPLE.with_()
        object.__setattr__(sample, "more", value)
        names.append(lens.run(sample).attrs["identity_sha256"])
    assert names[0] == names[2] != names[1]


def test_attributes_of_an_array_in_a_file_are_in_the_name():
    import zarr

    names = []
    for scale in (1.5, 3.0, 1.5):
        array = zarr.create_array(zarr.storage.MemoryStore(), data=np.ones(3))
        array.attrs["scale"] = scale
        names.append(content(array, []))
    assert names[0] == names[2] != names[1]
