"""What the user's modules and functions in a model keep from call to call, and a pipeline of its run."""

import operator
import os
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import dit_lens as dl

SAMPLE = dl.tasks.maze(1_000_007)
ASKED = {"steps": 8, "cfg_scale": 1.0}


class Counter:
    """Counts calls: another value from the seventh on."""

    def __init__(self):
        self.calls = 0

    def __call__(self, value):
        return counts(self)(value)


class Counting(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.counter = inner, Counter()

    def forward(self, x):
        return self.counter(self.inner(x))


class CountingLinear(nn.Linear):
    def forward(self, x):
        return self.counter(super().forward(x))


def projection(lens):
    return lens.pipe.dit.blocks[4].self_attn.o


@contextmanager
def in_a_module(lens):
    lens.pipe.dit.blocks[4].self_attn.o = Counting(projection(lens))
    yield


@contextmanager
def in_a_forward(lens):
    plain, counter = projection(lens).forward, Counter()
    projection(lens).forward = lambda x: counter(plain(x))
    yield


@contextmanager
def in_a_class(lens):
    projection(lens).__class__, projection(lens).counter = CountingLinear, Counter()
    yield


@contextmanager
def in_the_function_of_the_model(lens):
    plain, counter = lens.pipe.model_fn, Counter()
    lens.pipe.model_fn = lambda *args, **keywords: counter(plain(*args, **keywords))
    yield


@contextmanager
def in_a_hook(lens):
    counter = Counter()
    projection(lens).register_forward_hook(lambda module, inputs, output: counter(output))
    yield


@contextmanager
def in_a_hook_of_all_modules(lens):
    counter, projection(lens).is_counted = Counter(), True

    def hook(module, inputs, output):
        return counter(output) if hasattr(module, "is_counted") else None

    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def counts(holder, name="calls"):
    """Return a counter whose number stands in an attribute of another object, where only that object shows it."""

    def counted(value):
        calls = int(getattr(holder, name))
        if str(calls) == os.environ.get("POWER_GOES_AT"):
            raise OSError("the power went")
        setattr(holder, name, calls + 1)
        return value * (0.5 if calls + 1 > 6 else 1)

    return counted


@contextmanager
def in_an_attribute_by_a_hook(lens):
    projection(lens).calls = 0
    projection(lens).register_forward_hook(lambda module, inputs, output: counts(module)(output))
    yield


@contextmanager
def in_a_buffer_by_a_hook(lens):
    projection(lens).register_buffer("calls", torch.zeros(()), persistent=False)

    def hook(module, inputs, output):
        out = counts(Number(module.calls))(output)
        return out

    projection(lens).register_forward_hook(hook)
    yield


class Number:
    """A number that stands in a tensor, written in place."""

    def __init__(self, tensor):
        object.__setattr__(self, "tensor", tensor)

    def __getattr__(self, name):
        return self.tensor.item()

    def __setattr__(self, name, value):
        self.tensor.fill_(value)


class WithParameter(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.count = inner, nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x):
        return counts(Number(self.count))(self.inner(x))


@contextmanager
def in_a_parameter(lens):
    lens.pipe.dit.blocks[4].self_attn.o = WithParameter(projection(lens))
    yield


@contextmanager
def in_another_method(lens):
    dit = lens.pipe.dit
    plain, counter = dit.unpatchify, Counter()
    dit.unpatchify = lambda *args: counter(plain(*args))
    yield


@contextmanager
def in_an_object_of_a_module(lens):
    projection(lens).gate = Counter()
    projection(lens).register_forward_hook(lambda module, inputs, output: module.gate(output))
    yield


@contextmanager
def in_a_list_of_a_module(lens):
    projection(lens).seen = []

    def hook(module, inputs, output):
        if str(len(module.seen)) == os.environ.get("POWER_GOES_AT"):
            raise OSError("the power went")
        module.seen.append(float(output.mean()))
        return output * (0.5 if len(module.seen) > 6 else 1)

    projection(lens).register_forward_hook(hook)
    yield


class CountsInItsClass(nn.Module):
    calls = 0

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return counts(CountsInItsClass)(self.inner(x))


@contextmanager
def in_the_class_of_a_module(lens):
    CountsInItsClass.calls = 0
    lens.pipe.dit.blocks[4].self_attn.o = CountsInItsClass(projection(lens))
    yield


KINDS = [
    *(in_a_module, in_a_forward, in_a_class, in_the_function_of_the_model, in_a_hook),
    *(in_a_hook_of_all_modules, in_an_attribute_by_a_hook, in_a_buffer_by_a_hook, in_a_parameter),
    *(in_another_method, in_an_object_of_a_module, in_a_list_of_a_module, in_the_class_of_a_module),
]


@pytest.mark.parametrize("counting", KINDS)
def test_an_interrupted_run_whose_model_counts_is_begun_anew(counting, tmp_path, monkeypatch):
    def run(store):
        lens = dl.load("organism")
        with counting(lens):
            return lens.run(SAMPLE, store=store, **ASKED)

    whole = run(tmp_path / "whole")
    monkeypatch.setenv("POWER_GOES_AT", "5")
    with pytest.raises(OSError, match="the power went"):
        run(tmp_path / "interrupted")
    monkeypatch.delenv("POWER_GOES_AT")
    again = run(tmp_path / "interrupted")
    assert again.path.name == whole.path.name  # it was the same run
    np.testing.assert_array_equal(again["latents"].values, whole["latents"].values)
    with pytest.warns(UserWarning, match="a module of yours kept something"):
        run(tmp_path / "whole")


@pytest.mark.parametrize("counting", KINDS)
def test_a_batch_whose_model_counts_is_warned_of(counting):
    lens = dl.load("organism")
    with counting(lens), pytest.warns(UserWarning, match="keeps something from call to call"):
        lens.batch([(SAMPLE, 0)], **ASKED)


def test_the_step_before_kept_by_a_hook_begins_the_run_anew(tmp_path, monkeypatch):
    """The tensor that it keeps may stand where the one before it stood."""

    def run(store):
        lens = dl.load("organism")

        def smoothed(module, inputs, output):
            if getattr(module, "last", None) is not None and output.shape != module.last.shape:
                raise AssertionError
            last = getattr(module, "last", None)
            module.last = output.detach().clone()
            return output if last is None else (output + last) / 2

        projection(lens).register_forward_hook(smoothed)
        return lens.run(SAMPLE, store=store, edit=[(stopping, dl.at(layer=2))], **ASKED)

    whole = run(tmp_path / "whole")
    monkeypatch.setenv("POWER_GOES_AT", "5")
    with pytest.raises(OSError, match="the power went"):
        run(tmp_path / "again")
    monkeypatch.delenv("POWER_GOES_AT")
    again = run(tmp_path / "again")
    np.testing.assert_array_equal(again["latents"].values, whole["latents"].values)


class Half(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 0.5 * self.inner(x)


def stopping(h, at):
    if str(at.step) == os.environ.get("POWER_GOES_AT"):
        raise OSError("the power went")
    return h


def test_a_module_that_keeps_nothing_is_resumed_and_not_warned_of(tmp_path, monkeypatch):
    def run():
        lens = dl.load("organism")
        lens.pipe.dit.blocks[4].self_attn.o = Half(projection(lens))
        return lens.run(SAMPLE, store=tmp_path, edit=[(stopping, dl.at(layer=2))], **ASKED)

    monkeypatch.setenv("POWER_GOES_AT", "5")
    with pytest.raises(OSError, match="the power went"):
        run()
    monkeypatch.delenv("POWER_GOES_AT")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first = run()
        again = run()
        dl.load("organism").batch([(SAMPLE, 0)], **ASKED)
    assert first.path == again.path


def readers(lens):
    """Edits that read the noise levels of the pipeline's scheduler, each in another way."""
    pipe, scheduler = lens.pipe, lens.pipe.scheduler

    class Held:
        def __init__(self, pipe):
            self.held = {"pipe": pipe}

        def __call__(self, h, at):
            return h * float(self.held["pipe"].scheduler.sigmas[at.step])

    def renoised(h, at):
        return pipe.scheduler.add_noise(h, torch.ones_like(h), torch.tensor(at.timestep * 0.7))

    return [
        lambda h, at: h * float(pipe.scheduler.sigmas[at.step]),
        lambda h, at: h * float(lens.pipe.scheduler.sigmas[at.step]),
        lambda h, at: h * float(scheduler.timesteps[at.step]) / 1000,
        lambda h, at: h * float(operator.attrgetter("scheduler.sigmas")(pipe)[at.step]),
        Held(pipe),
        renoised,
    ]


@pytest.mark.parametrize("reader", range(6))
def test_in_a_batch_the_scheduler_stands_where_it_does_in_a_run(reader):
    """Whatever run came before it would have left its own noise levels there."""
    lens = dl.load("organism")
    placed = [(readers(lens)[reader], dl.at(site="x0", step=2))]
    truth = lens.run(SAMPLE, edit=placed, record=[dl.latents], **ASKED)["latents"].values
    batch = lens.batch([(SAMPLE, 0), (SAMPLE, 1)], edit=placed, record=[dl.latents], **ASKED)
    lens.run(SAMPLE, steps=3)
    levels = lens.pipe.scheduler.sigmas
    np.testing.assert_allclose(batch.run()[0]["latents"].values, truth, rtol=0, atol=2e-5)
    assert lens.pipe.scheduler.sigmas is levels  # as it was before
    table = lens.sweep([(SAMPLE, 0), (SAMPLE, 1)], arms={"read": placed}, **ASKED)
    lens.batch([(SAMPLE, 0)], steps=3)
    again = lens.sweep([(SAMPLE, 0)], arms={"read": placed}, **ASKED)
    assert again.distance.values[1, 0, 0] == pytest.approx(table.distance.values[1, 0, 0], abs=1e-5) != 0


class Damp:
    """Holds the model, and has attributes of its own that are named like those of a scheduler or a tokenizer."""

    def __init__(self, lens):
        self.lens, self.verbose, self.sigmas = lens, False, (0.3, 0.9)

    def __call__(self, h, at):
        if self.verbose:
            print(at)
        return h * self.sigmas[0] * self.lens.layers


def test_other_things_of_the_pipeline_are_read_in_a_batch():
    lens = dl.load("organism")
    pipe = lens.pipe

    def scaled(h, at):
        width = pipe.dit.blocks[0].self_attn.o.weight.shape[0]
        return h * (at.sigma + at.timestep / 1000) / width * pipe.vae.upsampling_factor

    for edit in (scaled, Damp(lens)):
        lens.batch([(SAMPLE, 0)], edit=[(edit, dl.at(layer=1, step=0))], **ASKED).run()
