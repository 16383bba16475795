"""A run's name says which model made it: every value of every component, settings, adapters, hooks, schedule."""

import copy
import functools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dit_lens as dl
from dit_lens.families.fingerprint import checksum, tensor_data
from dit_lens.plan.content import Walk

TESTS = Path(__file__).parents[1]


@pytest.fixture
def pipe(tiny_pipe):
    return tiny_pipe()


@pytest.fixture
def name(pipe, sample, tmp_path):
    """Run one step of the pipeline as it is now; return the name of the run."""

    def run(lens=None, **options):
        lens = lens or dl.Lens(pipe)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            return lens.run(options.pop("sample", sample), steps=1, store=tmp_path, **options).path.name

    return run


# ---- checksums


def test_the_checksum_is_of_type_shape_and_bytes_whatever_the_strides():
    x = torch.randn(300, 400)
    assert checksum(x) == checksum(x.clone()) == checksum(x.t().contiguous().t())
    assert checksum(x) == checksum(torch.cat([torch.zeros(1), x.flatten()])[1:].view(300, 400))
    assert checksum(x) != checksum(x.view(400, 300))
    assert checksum(x) != checksum(x.view(torch.int32))


@pytest.mark.parametrize("place", [0, 1, 77_777, 119_999, 4_000_000, 4_999_999])
@pytest.mark.parametrize("bit", [0, 13, 31])
def test_one_bit_anywhere_changes_the_checksum(place, bit):
    x = torch.randn(5_000_000)
    before = checksum(x)
    words = x.view(torch.int32)
    words[place] ^= torch.tensor(1 << bit if bit < 31 else -(1 << 31), dtype=torch.int32)
    assert checksum(x) != before


def test_signs_swapped_values_and_moved_rows_are_seen():
    x = torch.randn(1000, 1000)
    others = [-x, x.flip(0), x.roll(1), x.roll(8192), x * torch.where(torch.rand(1000) < 0.5, -1, 1)]
    assert len({checksum(t) for t in [x, *others]}) == 6


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool,
        torch.uint8,
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.complex64,
        torch.float8_e4m3fn,
        torch.int64,
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (7, 4099), (1, 2000, 2001)])
def test_every_number_type_and_shape_has_a_checksum(dtype, shape):
    x = torch.randn(shape).mul(3).to(dtype)
    assert checksum(x) == checksum(x.clone())
    if x.numel():
        other = x.clone()
        flat = other.view(-1)
        flat[-1] = (~flat[-1]) if dtype is torch.bool else (flat[-1].to(torch.complex64) + 1).real.to(dtype)
        assert checksum(x) != checksum(other)
    if len(shape) == 2:
        assert checksum(x.t()) == checksum(x.t().contiguous())


def test_unusual_tensors_are_told_apart_by_their_parts():
    dense = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    other, unnamed = torch.tensor([[0.0, 1.0], [3.0, 0.0]]), []
    for make in (
        lambda t: t.to_sparse(),
        lambda t: t.to_sparse_csr(),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    ):
        one, same, changed = (
            Walk(unnamed, checksum=tensor_data).visit(make(t)) for t in (dense, dense, other)
        )
        assert one == same != changed and unnamed == []
    with torch.inference_mode():
        inference = torch.ones(5000)
    assert checksum(inference) == checksum(torch.ones(5000))
    conjugate = torch.randn(5000, dtype=torch.complex64).conj()
    assert checksum(conjugate) == checksum(conjugate.resolve_conj()) != checksum(conjugate.conj())


# ---- what changes the name


def write_data(pipe):
    pipe.dit.blocks[1].ffn[0].weight.data[40, 3] += 1e-3


def copy_averaged_weights_in(pipe):
    for p in pipe.dit.parameters():
        p.data.copy_(p.data * 0.999)


def zero_one_heads_columns(pipe):
    pipe.dit.blocks[2].self_attn.o.weight.data[:, 32:] = 0


def write_through_numpy(pipe):
    pipe.dit.head.head.weight.detach().numpy()[0, 0] += 1


def write_a_plain_attribute(pipe):
    pipe.dit.freqs = tuple(f * 2 for f in pipe.dit.freqs)


def hook(pipe):
    pipe.dit.blocks[0].register_forward_hook(lambda module, args, out: out * 1.5)


def hook_before(pipe):
    pipe.dit.blocks[0].register_forward_pre_hook(lambda module, args: None)


def replace_forward(pipe):
    forward = pipe.dit.blocks[0].ffn.forward
    pipe.dit.blocks[0].ffn.forward = lambda x: forward(x) * 2


def keep_a_lora_beside_the_weights(pipe):
    pipe.dit.blocks[0].self_attn.q.lora_A_weights = [torch.ones(2, 64)]


def replace_the_model_function(pipe):
    model_fn = pipe.model_fn

    def model_fn_wan_video(*args, **keywords):
        return model_fn(*args, **keywords) * 1.0

    pipe.model_fn = model_fn_wan_video


CHANGES = {
    "a .data write": write_data,
    "an average copied in": copy_averaged_weights_in,
    "one head's columns": zero_one_heads_columns,
    "a write through numpy": write_through_numpy,
    "tensors in a plain attribute": write_a_plain_attribute,
    "a norm's eps": lambda pipe: setattr(pipe.dit.blocks[0].norm1, "eps", 1e-3),
    "a flag": lambda pipe: setattr(pipe.dit, "seperated_timestep", True),
    "training mode of a part": lambda pipe: pipe.dit.blocks[0].train(),
    "a hook": hook,
    "a hook before": hook_before,
    "another forward": replace_forward,
    "a LoRA in a list": keep_a_lora_beside_the_weights,
    "a buffer of the codec": lambda pipe: pipe.vae.first_mean.add_(0.5),
    "the codec's plain attribute": lambda pipe: setattr(pipe.vae, "tile", 3),
    "the text encoder": lambda pipe: pipe.text_encoder.table.data[3, 0].add_(1),
    "a part of the pipeline removed": lambda pipe: pipe.units.pop(),
    "the model's function": replace_the_model_function,
    "the scheduler's template": lambda pipe: setattr(
        pipe.scheduler, "set_timesteps_fn", functools.partial(type(pipe.scheduler).set_timesteps_wan)
    ),
    "an attribute of the scheduler": lambda pipe: setattr(pipe.scheduler, "num_train_timesteps", 900),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_model_changes_the_name(change, pipe, name):
    before = name()
    assert name() == before
    CHANGES[change](pipe)
    assert name() != before


def test_a_model_put_in_after_the_lens_was_made_is_another(pipe, tiny_pipe, name):
    lens = dl.Lens(pipe)
    before, fingerprint = name(lens), lens.fingerprint()
    pipe.dit = tiny_pipe(seed=1).dit
    assert lens.fingerprint() != fingerprint
    assert name(dl.Lens(pipe)) != before


def test_states_of_a_model_whose_weights_changed_are_refused(pipe, sample):
    lens = dl.Lens(pipe)
    states = lens.run(sample, steps=1, record=[dl.hidden])["hidden"]
    lens.run(sample, steps=1, edit=[(dl.patch(states), dl.at(layer=0))])
    zero_one_heads_columns(pipe)
    with pytest.raises(dl.PlanError, match="another model"):
        lens.run(sample, steps=1, edit=[(dl.patch(states), dl.at(layer=0))])


def test_hooks_and_methods_of_the_library_itself_do_not_count(pipe, name):
    lens = dl.Lens(pipe)
    before = name(lens)
    assert lens.nnsight is not None  # wraps every module
    assert name(lens) == before


def test_a_user_hook_that_reads_the_lens_has_an_end(pipe, name):
    lens = dl.Lens(pipe)
    pipe.dit.blocks[0].register_forward_hook(lambda module, args, out: out * len(lens.dits))
    assert name(lens) == name(lens)


# ---- arguments and samples


def test_pictures_of_equal_indices_and_other_palettes_are_told_apart(sample, name):
    pixels = Image.fromarray(np.arange(48 * 32, dtype=np.uint8).reshape(48, 32) % 4)

    def picture(colours):
        image = pixels.copy()
        image.putpalette(colours)
        return image

    one, other = picture([0, 0, 0, 9, 9, 9]), picture([255, 0, 0, 9, 9, 9])
    from dit_lens.plan.content import content

    assert content(one, []) == content(picture([0, 0, 0, 9, 9, 9]), []) != content(other, [])
    assert content(pixels, []) != content(pixels.convert("RGB"), [])


def test_callbacks_made_in_a_loop_are_told_apart(sample, pipe, tmp_path):
    def bar(scale):
        return lambda steps: [s for s in steps if scale]

    from dit_lens.plan.content import content

    callbacks = [bar(scale) for scale in (1, 2, 3)]
    assert len({str(content(c, [])) for c in callbacks}) == 3


# ---- diffusers


@pytest.fixture
def video_pipe():
    from unit.families.conftest import wan

    torch.manual_seed(0)
    return wan().to("cpu")


def diffusers_name(pipe, tmp_path):
    from unit.families.conftest import SHORT, VIDEO

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "This run gets a name")
        return dl.Lens(pipe).run(dl.Sample(**VIDEO), steps=2, store=tmp_path, **SHORT).path.name


def other_scheduler(pipe):
    from diffusers import UniPCMultistepScheduler

    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=4.0)


def other_processor(pipe):
    processor = type(pipe.transformer.blocks[0].attn1.processor)

    class Doubled(processor):
        def __call__(self, *args, **keywords):
            return 2 * super().__call__(*args, **keywords)

    pipe.transformer.blocks[0].attn1.processor = Doubled()


DIFFUSERS = {
    "tiling of the codec": lambda pipe: pipe.vae.enable_tiling(),
    "slicing of the codec": lambda pipe: pipe.vae.enable_slicing(),
    "the text encoder": lambda pipe: pipe.text_encoder.shared.weight.data[1].add_(1),
    "the scheduler": other_scheduler,
    "an attribute of the scheduler": lambda pipe: setattr(pipe.scheduler, "disable_corrector", [0]),
    "the processor of one attention": other_processor,
    "another transformer": lambda pipe: setattr(pipe, "transformer", copy.deepcopy(pipe.transformer).eval()),
    "the tokenizer": lambda pipe: pipe.tokenizer.add_tokens(["zebra"]),
    "where the second expert takes over": lambda pipe: pipe.register_to_config(boundary_ratio=0.5),
    "an eps": lambda pipe: setattr(pipe.transformer.norm_out, "eps", 1e-2),
}


@pytest.mark.parametrize("change", DIFFUSERS)
def test_what_changes_a_diffusers_pipeline_changes_the_name(change, video_pipe, tmp_path):
    before = diffusers_name(video_pipe, tmp_path)
    assert diffusers_name(video_pipe, tmp_path) == before
    DIFFUSERS[change](video_pipe)
    assert diffusers_name(video_pipe, tmp_path) != before


def test_the_shift_of_a_flow_matching_scheduler_counts_as_it_is_set(tmp_path):
    from unit.families.conftest import SHORT, VIDEO, ltx

    torch.manual_seed(0)
    pipe = ltx()
    sample = dl.Sample(**{**VIDEO, "size": (32, 64), "num_frames": 9})

    def run():
        return dl.Lens(pipe).run(sample, steps=1, store=tmp_path, **SHORT).path.name

    before = run()
    assert run() == before
    pipe.scheduler.set_shift(6.0)
    assert run() != before


def test_adapters_count_by_scale_and_whether_they_are_on(video_pipe, tmp_path):
    peft = pytest.importorskip("peft")
    config = functools.partial(peft.LoraConfig, r=2, target_modules=["to_q"], init_lora_weights=False)
    torch.manual_seed(1)
    video_pipe.transformer.add_adapter(config(), adapter_name="style")
    video_pipe.transformer.add_adapter(config(), adapter_name="motion")
    names = []
    for change in (
        lambda: video_pipe.transformer.set_adapters(["style"], [1.0]),
        lambda: video_pipe.transformer.set_adapters(["style"], [0.2]),
        lambda: video_pipe.transformer.set_adapters(["style", "motion"], [0.2, 1.0]),
        lambda: video_pipe.transformer.disable_adapters(),
        lambda: (
            video_pipe.transformer.enable_adapters(),
            video_pipe.transformer.set_adapters(["motion"], [1.0]),
        ),
        lambda: video_pipe.transformer.fuse_lora(adapter_names=["motion"]),
    ):
        change()
        names.append(diffusers_name(video_pipe, tmp_path))
        assert diffusers_name(video_pipe, tmp_path) == names[-1]
    assert len(set(names)) == len(names)


# ---- equal names in every process

SCRIPT = """
import sys, warnings
warnings.filterwarnings("error", "This run gets a name")
import numpy as np, torch
import dit_lens as dl

words = {"a", "b", "c", "d", "e"}
table = {word: {word, "x", "y"} for word in sorted(words)}

class Push:
    names = frozenset({"k", "l", "m"})
    def __init__(self, scale): self.scale, self.words = scale, set(words)
    def __call__(self, h, at): return h * self.scale if at.branch in {"p", "q", "r"} else h

def helper(h): return h if len(words) > 3 and table else -h
def f(h, at): return helper(h)

edits = [f, Push(1.0)]

def made(kind):
    torch.manual_seed(0)
    if kind == "organism":
        return dl.load("organism"), dl.tasks.maze(seed=1_000_007), {}
    if kind == "blocks":
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        model.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
        lens = dl.blocks(
            model, "blocks", latent=lambda sample: (4, 1, 2, 2), grid=lambda size: size[1:],
            forward=lambda m, x, t: m.blocks[0](x.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(x), steps=2,
        )
        return lens, dl.Sample(prompt="p", size=(8, 8), num_frames=1), {}
    from unit.families import conftest
    pipe = getattr(conftest, kind)()
    return dl.Lens(pipe), dl.Sample(**conftest.CASES[kind][1]), conftest.CASES[kind][2]

for kind in sys.argv[2:]:
    lens, sample, more = made(kind)
    for _ in range(2):
        print(kind, lens.run(sample, steps=2, store=f"{sys.argv[1]}/{kind}", edit=edits, **more).path.name)
"""


KINDS = ["organism", "blocks", "ltx", "wan"]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Make runs of every kind in processes with other seeds of hashes; return the folder of their stores, and names by kind."""
    root, names = tmp_path_factory.mktemp("stores"), {kind: set() for kind in KINDS}
    for seed in ("0", "1", "2", "3"):
        out = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(root), *KINDS],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{TESTS.parent / 'src'}:{TESTS}", "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert out.returncode == 0, out.stderr[-2000:]
        for kind, name in (line.split() for line in out.stdout.splitlines()[-2 * len(KINDS) :]):
            names[kind].add(name)
    return root, names


@pytest.mark.parametrize("kind", KINDS)
def test_equal_runs_have_one_name_in_every_process(kind, stores):
    root, names = stores
    assert len(names[kind]) == 1 and len(list((root / kind).glob("*-*"))) == 1


# ---- settings of all of torch


def test_autocast_and_hooks_of_all_modules_are_another_model(name):
    plain = name()
    with torch.autocast("cpu", torch.bfloat16):
        assert name() != plain
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, args, out: None)
    assert name() != plain
    hook.remove()
    assert name() == plain


PROFILED = """
import warnings

from dit_lens.plan.content import content


class Gain:
    def __init__(self):
        self.factor = {factor}

    def __call__(self, state):
        return state * {factor}


print(content(Gain, []))
"""


def test_a_profiled_script_has_classes_of_its_own(tmp_path):
    said = []
    for number, factor in enumerate((2, 3)):
        path = tmp_path / f"script{number}.py"
        path.write_text(PROFILED.format(factor=factor).replace("self.factor = 3", "self.factor = 2"))
        command = [sys.executable, "-m", "cProfile", "-o", str(tmp_path / "profile"), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        said.append(done.stdout)
    assert said[0] != said[1]


# ---- what the user has given to a part of a pipeline, and what looks like a library's


def change_config(pipe):
    object.__setattr__(pipe.vae.config, "latents_std", [2 * x for x in pipe.vae.config.latents_std])


def give_scheduler(pipe):
    pipe.transformer.blocks[0].extra.set_timesteps(7)


def give_to_pipe(pipe):
    pipe.aux.set_timesteps(7)


GIVEN = {
    "a value of a configuration, as an attribute": change_config,
    "a scheduler on a block": give_scheduler,
    "a scheduler on the pipeline": give_to_pipe,
    "an attribute whose name a scheduler's state has": lambda pipe: setattr(
        pipe.transformer.blocks[0], "timestep_list", [2.0]
    ),
    "an attribute whose name says nothing elsewhere": lambda pipe: setattr(
        pipe.transformer.blocks[0], "verbose", 2.0
    ),
}


@pytest.mark.parametrize("change", GIVEN.values(), ids=GIVEN)
def test_what_was_given_to_a_pipeline_counts_with_all_that_is_in_it(video_pipe, change):
    pipe = video_pipe
    for holder, name in ((pipe.transformer.blocks[0], "extra"), (pipe, "aux")):
        tool = copy.deepcopy(pipe.scheduler)
        tool.set_timesteps(5)
        setattr(holder, name, tool)
    pipe.transformer.blocks[0].timestep_list, pipe.transformer.blocks[0].verbose = [1.0], 1.0
    lens = dl.Lens(pipe)
    before = lens.identity()
    pipe.scheduler.set_timesteps(9)
    assert lens.identity() == before
    change(pipe)
    assert lens.identity() != before


def test_a_function_that_wraps_a_librarys_is_the_users(pipe):
    tool = copy.deepcopy(pipe.scheduler)
    tool.set_timesteps(5)
    block = pipe.dit.blocks[0]
    forward = block.forward

    @functools.wraps(type(block).forward)
    def weighed(*args, **options):
        return forward(*args, **options) * tool.sigmas[1]

    block.forward = weighed
    lens = dl.Lens(pipe)
    before = lens.identity()
    tool.set_timesteps(7)
    assert lens.identity() != before


def test_truncation_counts_where_no_library_sets_it(video_pipe):
    class Words:
        def __init__(self, tokenizer):
            self._tokenizer = tokenizer

    pipe = video_pipe
    pipe.tokenizer = Words(copy.deepcopy(pipe.tokenizer._tokenizer))
    lens = dl.Lens(pipe)
    before = lens.identity()
    pipe.tokenizer._tokenizer.enable_truncation(2)
    assert lens.identity() != before
