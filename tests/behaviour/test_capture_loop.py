"""A loop of one's own, told step by step, gives what the library's own loop gives."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import dit_lens as dl
from loops import SAMPLE, SCALE, SHIFT, SIGMAS, Model, own_lens, sampled

PLAN = {
    "record": [dl.energy, (dl.hidden, dl.at(layer=1)), dl.x0, dl.velocity, dl.latents],
    "edit": [
        (dl.scale(factor=0.5), dl.at(layer=2, step="1-", branch="cond")),
        (dl.add_noise(scale=0.2), dl.at(site="latents", step=1)),
        (dl.scale(factor=0.9), dl.at(site="x0", step=2)),
    ],
}


@pytest.fixture
def lens():
    return own_lens()


def test_a_loop_of_ones_own_records_what_the_librarys_own_does(lens, tmp_path):
    expected = lens.run(SAMPLE, **PLAN)
    with lens.capture(SIGMAS, branches=("cond", "uncond"), store=tmp_path, **PLAN) as loop:
        sampled(lens, loop)
    run = loop.run
    assert run.complete and set(run.names) == set(expected.names)
    for name in expected.names:
        assert run[name].dims == expected[name].dims
        assert np.array_equal(run[name].values, expected[name].values), name
    assert [float(s) for s in run["x0"].sigma.values] == SIGMAS
    assert len(list(dl.open_runs(tmp_path).children)) == 1


def test_a_loop_that_is_run_twice_is_two_runs(lens, tmp_path):
    for _ in range(2):
        with lens.capture(SIGMAS, branches=("cond", "uncond"), store=tmp_path, record=[dl.energy]) as loop:
            sampled(lens, loop)
    assert len(list(dl.open_runs(tmp_path).children)) == 2


def test_what_the_loop_leaves_out_is_an_error_and_nothing_is_left_behind(lens):
    model, x = lens.pipe.dit, torch.zeros(1, 2, 2, 4, 4)
    with pytest.raises(dl.CaptureError, match="ended after 0 of 4 steps"):
        with lens.capture(SIGMAS, record=[dl.energy]):
            pass
    with pytest.raises(dl.CaptureError, match="without its velocity"):
        with lens.capture(SIGMAS, record=[dl.energy]) as loop:
            with loop.step(x) as step, step.call("cond"):
                model(step.latents, torch.tensor([step.timestep]), 0.0)
    with pytest.raises(dl.CaptureError, match=r"branches \['uncond'\] never ran"):
        with lens.capture(SIGMAS, branches=("cond", "uncond"), record=[dl.energy]) as loop:
            with loop.step(x) as step:
                with step.call("cond"):
                    v = model(step.latents, torch.tensor([step.timestep]), 0.0)
                step.velocity(v)
    with pytest.raises(dl.CaptureError, match="nothing was captured at step=0, branch=cond"):
        with lens.capture(SIGMAS, record=[dl.energy]) as loop:
            with loop.step(x) as step:
                with step.call("cond"):
                    pass
                step.velocity(x)
    with pytest.raises(dl.CaptureError, match="the run is there after"):
        loop.run  # noqa: B018
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_loop_is_refused_before_it_starts(lens):
    for sigmas, words in (([], "0 sigmas"), ([1.5, 0.5], r"not all in \[0, 1\]")):
        with pytest.raises(dl.PlanError, match=words):
            lens.capture(sigmas)
    with pytest.raises(dl.PlanError, match="out of range"):
        lens.capture(SIGMAS, record=[(dl.energy, dl.at(layer=9))])


def test_a_loop_that_hands_the_model_something_else_is_refused(lens):
    model, x = lens.pipe.dit, torch.randn(1, 2, 2, 4, 4)
    told = torch.tensor([1000.0])
    noise = [(dl.add_noise(scale=0.5), dl.at(site="latents"))]
    with pytest.raises(dl.CaptureError, match=r"as they were before their edit: hand it step\.latents"):
        with lens.capture(SIGMAS, record=[dl.energy], edit=noise) as loop:
            with loop.step(x) as step, step.call("cond"):
                model(x, told, 0.0)
    with pytest.raises(dl.CaptureError, match="has 2 rows, and the call of cond has 1"):
        with lens.capture(SIGMAS, record=[dl.energy]) as loop:
            with loop.step(x) as step, step.call("cond"):
                model(step.latents.repeat(2, 1, 1, 1, 1), told, 0.0)
    with pytest.raises(dl.CaptureError, match=r"velocity \(1, 2\)"):
        with lens.capture(SIGMAS) as loop:
            with loop.step(x) as step:
                with step.call("cond"):
                    model(step.latents, told, 0.0)
                step.velocity(torch.zeros(1, 2))
    with pytest.raises(dl.PlanError, match="give numbers"):
        lens.capture(["a"])
    assert lens.capture(SIGMAS, branches="cond").branches == ("cond",)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


EDITED = [(dl.add_noise(scale=0.5), dl.at(site="latents"))]


def go_round(lens, hand, edit, keep=True):
    """Run a loop; `hand` says what the model is given, `keep` whether the edited velocity is stepped with."""
    model, x = lens.pipe.dit, torch.randn(1, 2, 2, 4, 4)
    told = torch.tensor([1000.0])
    with torch.no_grad(), lens.capture(SIGMAS, edit=edit, record=[dl.energy]) as loop:
        for n in range(len(SIGMAS)):
            with loop.step(x) as step:
                with step.call():
                    velocity = model(hand(step, x), told, 0.0)
                edited = step.velocity(velocity)
            following = SIGMAS[n + 1] if n + 1 < len(SIGMAS) else 0.0
            x = step.latents + (following - step.sigma) * (edited if keep else velocity)
    return loop.run


def test_a_loop_that_ignores_an_edit_is_refused(lens):
    go_round(lens, lambda step, x: step.latents, EDITED)
    for hand in (lambda step, x: 1.000001 * x, lambda step, x: x.flip(-1)):
        with pytest.raises(dl.CaptureError, match="its call never asked for them"):
            go_round(lens, hand, EDITED)
    for site in ("velocity", "x0"):
        halved = [(dl.scale(factor=0.5), dl.at(site=site))]
        go_round(lens, lambda step, x: step.latents, halved)
        with pytest.raises(dl.CaptureError, match="went on with the velocity of video from before"):
            go_round(lens, lambda step, x: step.latents, halved, keep=False)


def test_what_a_loop_keeps_is_its_own(lens):
    frames = np.full((40, 64, 64, 3), 7, np.uint8)
    for _ in range(3):
        frames[:] = 7
        with torch.no_grad(), lens.capture([1.0], record=[dl.energy]) as loop:
            with loop.step(torch.randn(1, 2, 2, 4, 4)) as step:
                with step.call():
                    velocity = lens.pipe.dit(step.latents, torch.tensor([1000.0]), 0.0)
                step.velocity(velocity)
            loop.keep(video=frames)
            frames[:] = 9
        assert (loop.run.video == 7).all()


def test_one_buffer_for_the_latents_is_right_and_does_not_hide_an_edit_that_is_ignored(lens):
    model, told = lens.pipe.dit, torch.tensor([1000.0])

    def go(edit, ignore):
        x = torch.randn(1, 2, 2, 4, 4)
        with torch.no_grad(), lens.capture(SIGMAS, edit=edit, record=[dl.energy]) as loop:
            for n in range(len(SIGMAS)):
                with loop.step(x) as step:
                    x.copy_(step.latents)
                    with step.call():
                        velocity = model(x, told, 0.0)
                    edited = step.velocity(velocity)
                following = SIGMAS[n + 1] if n + 1 < len(SIGMAS) else 0.0
                x.add_((following - step.sigma) * (velocity if ignore else edited))

    go(EDITED, False)
    halved = [(dl.scale(factor=0.5), dl.at(site="velocity"))]
    go(halved, False)
    with pytest.raises(dl.CaptureError, match="went on with the velocity"):
        go(halved, True)


def test_a_region_is_edited_also_where_the_width_of_the_states_is_not_told(lens):
    run = lens.run(SAMPLE, steps=2, edit=[(dl.zero(), dl.at(site="latents", frame=0))], record=[dl.latents])
    assert (run["latents"].isel(frame=0) == 0).all()
    with pytest.raises(dl.PlanError, match="say how wide its states are"):
        lens.estimate([dl.hidden], SAMPLE)


def test_unedited_latents_are_known_in_a_merged_batch_and_in_another_type(lens):
    blank = torch.zeros(1)
    twice, beside = lambda x: torch.cat([x, x]), lambda x: torch.cat([x, torch.zeros_like(x)], 1)
    for merged in (twice, beside, lambda x: x.double(), lambda x: twice(x).bfloat16()):
        x = torch.randn(1, 2, 2, 4, 4)
        with pytest.raises(dl.CaptureError, match="as they were before their edit"):
            with torch.no_grad(), lens.capture(SIGMAS, branches=("cond", "uncond"), edit=EDITED) as loop:
                with loop.step(x) as step:
                    step.latents  # noqa: B018  (for the sampler's own use)
                    with step.call(("cond", "uncond")):
                        lens.pipe.dit(merged(x), blank, 0.0)


@pytest.mark.parametrize("case", ["rounded", "a frame put back"])
def test_an_ignored_velocity_is_known_also_where_steps_round_or_put_a_frame_back(lens, case):
    edit, told = [(dl.scale(factor=0.5), dl.at(site="velocity", step=0))], torch.tensor([1000.0])

    def go(ignore):
        x = torch.randn(1, 2, 2, 4, 4)
        first = x[:, :, :1].clone()
        with torch.no_grad(), lens.capture(SIGMAS, edit=edit, record=[dl.energy]) as loop:
            for n in range(len(SIGMAS)):
                with loop.step(x.bfloat16().float() if case == "rounded" else x) as step:
                    with step.call():
                        velocity = lens.pipe.dit(step.latents, told, 0.0)
                    edited = step.velocity(velocity)
                following = SIGMAS[n + 1] if n + 1 < len(SIGMAS) else 0.0
                x = step.latents + (following - step.sigma) * (velocity if ignore else edited)
                if case == "a frame put back":
                    x[:, :, :1] = first

    go(False)
    with pytest.raises(dl.CaptureError, match="went on with the velocity"):
        go(True)


def test_rows_that_leave_the_loop_are_an_error(lens):
    x = torch.randn(2, 2, 2, 4, 4)
    with pytest.raises(dl.CaptureError, match=r"step 2 starts from 1 rows .* and the first step from 2"):
        with lens.capture(SIGMAS, record=[dl.x0, dl.latents]) as loop:
            for number in range(4):
                rows = x[number // 2 :]
                with loop.step(rows) as step:
                    with step.call("cond"):
                        v = lens.pipe.dit(step.latents, torch.full((len(rows),), step.timestep), 0.0)
                    step.velocity(v)


def test_a_call_that_is_not_told_is_an_error(lens):
    """The edit would not reach it, and the plan of the run would say that it did."""
    model, x = lens.pipe.dit, torch.randn(1, 2, 2, 4, 4)
    with pytest.raises(dl.CaptureError, match="outside of a call that was told"):
        with lens.capture(SIGMAS, edit=[(dl.zero(), dl.at(layer=1))], record=[dl.x0]) as loop:
            with loop.step(x) as step:
                told = torch.tensor([step.timestep])
                with step.call("cond"):
                    v = model(step.latents, told, SHIFT["cond"])
                step.velocity(v + model(step.latents, told, SHIFT["uncond"]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model(x, torch.tensor([1.0]), 0.0)


def test_the_tokens_around_the_grid_are_the_familys_own():
    class WithText(Model):
        def forward(self, x, t, shift):
            h = self.into(x.flatten(2).transpose(1, 2)) + shift + (t / 1000)[:, None, None]
            h = torch.cat([torch.ones_like(h[:, :2]), h, torch.zeros_like(h[:, :1])], 1)
            for block in self.blocks:
                h = block(h)
            return self.out(h[:, 2:-1]).transpose(1, 2).reshape(x.shape)

    torch.manual_seed(0)
    lens = dl.blocks(
        WithText().eval().requires_grad_(False),
        "blocks",
        latent=lambda sample: (2, 2, 4, 4),
        grid=lambda latent: latent[1:],
        before=2,
        after=1,
        condition=lambda sample, branch: {"shift": torch.tensor([[[SHIFT[branch]]]])},
    )
    plan = {"record": [dl.hidden], "edit": [(dl.zero(), dl.at(layer=1, frame=0))]}
    expected = lens.run(SAMPLE, steps=4, cfg_scale=SCALE, **plan)
    with lens.capture(SIGMAS, branches=("cond", "uncond"), **plan) as loop:
        sampled(lens, loop)
    assert np.array_equal(loop.run["hidden"].values, expected["hidden"].values)
    with pytest.raises(dl.CaptureError, match="5 tokens before it and 1 after it"):
        with lens.capture(SIGMAS, record=[dl.energy]) as loop:
            with loop.step(torch.zeros(1, 2, 2, 4, 4)) as step, step.call(before=5):
                lens.pipe.dit(step.latents, torch.tensor([1.0]), 0.0)


@pytest.mark.parametrize(
    ("latents", "says"),
    [
        (
            torch.zeros(1, 2, 4, 4),
            r"\(1, 2, 4, 4\) of the stream 'video'.*get their frame by x\[:, :, None\]",
        ),
        (torch.zeros(1, 16, 2), r"\(1, 16, 2\).*\[row, channel, frame, y, x\].*unpacked first"),
        (np.zeros((1, 2, 2, 4, 4)), "ndarray of the stream 'video': give a tensor"),
        ([torch.zeros(2, 2, 4, 4)], "list of the stream 'video': give a tensor"),
        ({"latents": torch.zeros(1, 2, 2, 4, 4)}, "the streams 'latents': give the latents of 'video'"),
    ],
)
def test_latents_of_another_form_are_refused_with_the_form_that_is_wanted(lens, latents, says):
    with pytest.raises(dl.PlanError, match=f"step 0 starts from .*{says}"):
        with lens.capture(SIGMAS, record=[dl.x0]) as loop, loop.step(latents):
            pass
    with pytest.raises(dl.CaptureError, match="was told a velocity ndarray of video"):
        with lens.capture(SIGMAS) as loop, loop.step(torch.zeros(1, 2, 2, 4, 4)) as step:
            step.velocity(np.zeros((1, 2, 2, 4, 4)))
    with pytest.raises(dl.CaptureError, match="a velocity of 'audio', and it starts from video"):
        with lens.capture(SIGMAS) as loop, loop.step(torch.zeros(1, 2, 2, 4, 4)) as step:
            step.velocity(torch.zeros(1), stream="audio")


@pytest.mark.parametrize("where", [{"layer": 1, "frame": 2, "step": 3}, {"site": "x0", "y": 4, "step": 3}])
def test_a_region_outside_of_the_grid_is_refused_before_the_first_step(lens, where):
    with pytest.raises(dl.PlanError, match=r"edit zero\(?.*at\(.*step=3.*is out of range"):
        with lens.capture(SIGMAS, edit=[(dl.zero(), dl.at(**where))]) as loop:
            with loop.step(torch.zeros(1, 2, 2, 4, 4)):
                pytest.fail("the step began")


@dl.keeps()
def norm(h):
    return h.norm()


def interval(lens, loop, guided):
    """Euler's steps with guidance at some steps alone."""
    model, x, v = lens.pipe.dit, torch.randn(1, 2, 2, 4, 4, generator=torch.Generator().manual_seed(0)), {}
    for number, after in enumerate([*SIGMAS[1:], 0.0]):
        branches = ("cond", "uncond") if number in guided else "cond"
        with torch.no_grad(), loop.step(x, branches=branches) as step:
            for branch in step.branches:
                with step.call(branch):
                    v[branch] = model(step.latents, torch.tensor([step.timestep]), SHIFT[branch])
            velocity = v["cond"]
            if number in guided:
                velocity = v["uncond"] + SCALE * (v["cond"] - v["uncond"])
            velocity = step.velocity(velocity)
        x = step.latents + velocity * (after - step.sigma)
    return x


def test_guidance_in_an_interval_records_what_ran(lens, tmp_path):
    record = [dl.energy, (dl.hidden, dl.at(layer=1)), (norm, dl.at(branch="uncond")), dl.x0]
    edit = [(dl.zero(), dl.at(layer=0, branch="uncond", step="0-2"))]
    both = {"branches": ("cond", "uncond"), "record": record, "edit": edit}
    with lens.capture(SIGMAS, store=tmp_path, **both) as loop:
        interval(lens, loop, guided=(1, 2))
    run = loop.run
    assert run.complete and dl.store.status(run.path).complete
    for name in ("energy", "hidden"):
        missing = run[name].isnull().all([d for d in run[name].dims if d not in ("step", "branch", "layer")])
        of = missing.sel(layer=1)
        assert not of.sel(branch="cond").any() and [*of.sel(branch="uncond").values] == [
            True,
            False,
            False,
            True,
        ]
    assert [*run["norm"].step.values] == [1, 2] and [*run["norm"].branch.values] == ["uncond"]
    assert not run["norm"].isnull().any() and not run["x0"].isnull().any()
    assert (run["energy"].sel(layer=0, branch="uncond", step=[1, 2]) == 0).all()
    with lens.capture(SIGMAS, **both) as loop:
        interval(lens, loop, guided=range(4))
    assert not loop.run["hidden"].isnull().any() and loop.run["hidden"].layer.values.tolist() == [1]


def test_a_branch_that_a_step_leaves_out(lens):
    edit = [(dl.zero(), dl.at(layer=0, branch="uncond", step="1-2"))]
    both = {"branches": ("cond", "uncond"), "record": [dl.energy], "edit": edit}
    with pytest.raises(
        dl.CaptureError, match=r"zero.*never fired in this run: its branch ran in none of its steps"
    ):
        with lens.capture(SIGMAS, **both) as loop:
            interval(lens, loop, guided=(0,))
    with pytest.raises(dl.CaptureError, match="branch 'uncond' ran unasked"):
        with (
            lens.capture(SIGMAS, **both) as loop,
            loop.step(torch.zeros(1, 2, 2, 4, 4), branches="cond") as step,
        ):
            with step.call("uncond"):
                pass
    with pytest.raises(dl.CaptureError, match=r"\['uncond'\] never ran; .* loop.step\(x, branches="):
        with lens.capture(SIGMAS, **both) as loop:
            sampled_without(lens, loop)
    with pytest.raises(dl.PlanError, match="no branch 'negative', only cond, uncond"):
        with lens.capture(SIGMAS, **both) as loop, loop.step(torch.zeros(1, 2, 2, 4, 4), branches="negative"):
            pass


def sampled_without(lens, loop):
    with loop.step(torch.zeros(1, 2, 2, 4, 4)) as step:
        with step.call("cond"):
            v = lens.pipe.dit(step.latents, torch.tensor([step.timestep]), 0.0)
        step.velocity(v)


@pytest.mark.parametrize("where", ["in the call", "after the calls", "after the velocity"])
def test_a_step_that_an_exception_ended_is_taken_again(lens, where, tmp_path):
    model, plan = lens.pipe.dit, {"record": [dl.hidden, dl.energy, dl.x0, dl.latents]}
    with lens.capture(SIGMAS, **plan) as loop:
        interval(lens, loop, guided=())
    expected, tries = loop.run, 0
    x = torch.randn(1, 2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), lens.capture(SIGMAS, store=tmp_path, **plan) as loop:
        number = 0
        while number < 4:
            try:
                with loop.step(x if tries != 2 else 2 * x) as step:  # what a try began from does not count
                    tries += 1
                    with step.call():
                        v = model(step.latents, torch.tensor([step.timestep]), SHIFT["cond"])
                        if where == "in the call" and tries in (1, 3):
                            raise MemoryError
                    if where == "after the calls" and tries in (1, 3):
                        raise MemoryError
                    v = step.velocity(v)
                    if where == "after the velocity" and tries in (1, 3):
                        raise MemoryError
            except MemoryError:
                continue
            x = step.latents + v * ([*SIGMAS[1:], 0.0][number] - step.sigma)
            number += 1
    for name in expected.names:
        assert np.array_equal(loop.run[name].values, expected[name].values), name
    assert dl.store.status(loop.run.path).complete and not list(dl.store.verify(loop.run.path))
    assert not [*loop.run.path.rglob("*.partial")]


@pytest.mark.parametrize("site", ["latents", "x0", "velocity"])
@pytest.mark.parametrize("factor", [1.05, 2.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["heun", "midpoint", "clamped"])
def test_a_loop_that_steps_otherwise_than_euler_is_not_refused_for_its_edit(lens, kind, dtype, factor, site):
    """Heun's corrector goes on from where its predictor began; a clamp leaves values where they were."""
    torch.manual_seed(3)
    model = lens.pipe.dit.to(dtype)
    even = [1 - n / 6 for n in range(6)]
    then = dict(zip(even, [*even[1:], 0.0], strict=True))
    inner = {"heun": lambda s: then[s], "midpoint": lambda s: (s + then[s]) / 2, "clamped": lambda s: 0.0}[
        kind
    ]
    sigmas = [t for s in even for t in (s, inner(s)) if t > 0]
    x = torch.randn(1, 2, 2, 4, 4).to(dtype)
    with torch.no_grad(), lens.capture(sigmas, edit=[(dl.scale(factor=factor), dl.at(site=site))]) as loop:

        def velocity_at(x):
            with loop.step(x) as step:
                with step.call():
                    v = model(step.latents, torch.tensor([step.timestep]).to(dtype), SHIFT["cond"])
                return step.latents, step.velocity(v)

        for sigma in even:
            start, first = velocity_at(x)
            length = then[sigma] - sigma
            if kind == "clamped":
                x = (start + length * first).clamp(-1.5, 1.5)
                continue
            if inner(sigma) == 0:
                break
            _, second = velocity_at(start + (inner(sigma) - sigma) * first)
            x = start + length * (second if kind == "midpoint" else (first + second) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", ["of the velocity", "of x0", "clamped"])
def test_eulers_step_without_the_edit_is_known_in_every_form(lens, dtype, form):
    model, sigmas = lens.pipe.dit.to(dtype), [1 - n / 20 for n in range(20)]

    def go(site, ignore):
        torch.manual_seed(1)
        x = torch.randn(1, 2, 2, 4, 4).to(dtype)
        with torch.no_grad(), lens.capture(sigmas, edit=[(dl.scale(factor=1.3), dl.at(site=site))]) as loop:
            for after in [*sigmas[1:], 0.0]:
                with loop.step(x) as step:
                    with step.call():
                        told = model(step.latents, torch.tensor([step.timestep]).to(dtype), SHIFT["cond"])
                    v = step.velocity(told)
                start = x if ignore and site == "latents" else step.latents
                v = told if ignore and site == "velocity" else v
                x = start + (after - step.sigma) * v
                if form == "of x0":
                    x = (1 - after) * (start - step.sigma * v) + after * (start + (1 - step.sigma) * v)
                if form == "clamped":
                    x = x.clamp(-1.5, 1.5)

    for site in ("latents", "velocity"):
        go(site, ignore=False)
        with pytest.raises(dl.CaptureError, match=f"went on with the {site} of video from before the edit"):
            go(site, ignore=True)


def test_latents_that_are_no_numbers_or_of_another_grid_are_held_against_no_edit(lens):
    for following in (torch.full((1, 2, 2, 4, 4), torch.nan), torch.zeros(1, 2, 1, 4, 4)):
        with torch.no_grad(), lens.capture(SIGMAS[:2], edit=EDITED) as loop:
            for x in (torch.zeros(1, 2, 2, 4, 4), following):
                with loop.step(x) as step:
                    with step.call():
                        v = lens.pipe.dit(step.latents, torch.tensor([step.timestep]), 0.0)
                    step.velocity(v)
        assert loop.run.complete


# ---- gradients


@pytest.mark.parametrize("start", [0.0, 0.1])
@pytest.mark.parametrize("site", ["block", "latents", "velocity", "x0"])
def test_gradients_pass_an_edit_also_where_it_moves_nothing_yet(site, start):
    torch.manual_seed(0)
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])})
    lens = dl.blocks(model, "layers", latent=lambda s: (4, 2, 3, 3), grid=lambda size: size[1:])
    sigmas, x = [1.0, 0.5, 0.0], torch.randn(1, 4, 2, 3, 3)
    vector = torch.full((4,), start, requires_grad=True)

    def velocity(x, steer=None):
        h = x.flatten(2).mT
        for n, layer in enumerate(model["layers"]):
            h = torch.tanh(layer(h)) if steer is None or n != 1 else torch.tanh(layer(h) + steer)
        return h.mT.reshape(x.shape)

    place = dl.at(layer=1) if site == "block" else dl.at(site=site)
    shown, by_hand = x.clone(), x.clone()
    with lens.capture(sigmas[:2], edit=[(lambda h, at: h + vector, place)]) as loop:
        for now, after in itertools.pairwise(sigmas):
            with loop.step(shown) as step:
                with step.call("cond"):
                    v = velocity(step.latents)
                shown = step.latents + (after - now) * step.velocity(v)
    moved = vector.view(1, 4, 1, 1, 1)
    for now, after in itertools.pairwise(sigmas):
        by_hand = by_hand + moved if site == "latents" else by_hand
        v = velocity(by_hand, vector if site == "block" else None)
        v = v + moved if site == "velocity" else v - moved / now if site == "x0" else v
        by_hand = by_hand + (after - now) * v
    torch.testing.assert_close(shown, by_hand)
    (one,) = torch.autograd.grad(shown.square().sum(), vector)
    (other,) = torch.autograd.grad(by_hand.square().sum(), vector)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("site", ["block", "latents", "velocity", "x0"])
def test_identity_edits_leave_a_loop_with_gradients_bit_identical(site, dtype):
    torch.manual_seed(0)
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])}).to(dtype)
    lens = dl.blocks(model, "layers", latent=lambda s: (4, 2, 3, 3), grid=lambda size: size[1:])
    sigmas, start = [1.0, 0.5, 0.05, 0.0], torch.randn(1, 4, 2, 3, 3, dtype=dtype)

    def loop(edit):
        x = start.clone()
        with lens.capture(sigmas[:3], edit=edit, record=[dl.latents]) as told:
            for now, after in itertools.pairwise(sigmas):
                with told.step(x) as step:
                    with step.call("cond"):
                        h = step.latents.flatten(2).mT
                        for layer in model["layers"]:
                            h = torch.tanh(layer(h))
                    x = step.latents + (after - now) * step.velocity(h.mT.reshape(x.shape))
        return x

    place = dl.at(layer=1) if site == "block" else dl.at(site=site)
    assert torch.equal(loop([(lambda h, at: h * 1, place)]), loop([]))
