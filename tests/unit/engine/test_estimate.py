"""An estimate is what the store will hold, known before anything runs."""

import pytest
import torch

import dit_lens as dl
from dit_lens.engine.estimate import estimate
from dit_lens.errors import PlanError
from dit_lens.families.family import Sizes
from dit_lens.plan.plan import Layout, Plan
from dit_lens.records import keeps

SMALL = Layout({"video": {"block": "", "q": "self_attn.q"}}, 12, 20, ("cond", "uncond"), ("dit",))
LATENT, GRID, CHANNELS = (16, 4, 12, 12), (4, 6, 6), 128
TOKENS = 4 * 6 * 6
INDEX = 4 * 6 * 16 + 4
"""Bytes of a shard's index: two numbers for each row of tokens, and a checksum."""


def of(record, dtype=torch.float32, layout=SMALL):
    return estimate(Plan.of(record), layout, {"video": Sizes(LATENT, GRID, CHANNELS)}, dtype)


def line(record, **options):
    (found,) = of(record, **options).lines
    return found


def test_the_states_of_a_14b_model_take_the_1_34_terabytes_that_the_design_states():
    layout = Layout({"video": {"block": ""}}, 40, 50, ("cond", "uncond"), ("high", "low"))
    plan = Plan.of(dl.hidden)
    sizes = {"video": Sizes((16, 21, 60, 104), (21, 30, 52), 5120)}
    out = estimate(plan, layout, sizes, torch.bfloat16)
    values, index = 32_760 * 5_120 * 2, 21 * 30 * 16 + 4
    assert out.bytes == (values + index) * 40 * 50 * 2 and index < values / 30_000
    assert out.lines[0].units == 40 * 50 * 2
    assert out.memory <= 256 * 2**20
    assert "1.3 TB" in str(out)


def test_a_state_is_a_file_for_every_step_branch_and_layer():
    whole = line(dl.hidden)
    file = TOKENS * CHANNELS * 4 + INDEX
    assert (whole.units, whole.bytes) == (20 * 2 * 12, 20 * 2 * 12 * file)
    part = line((dl.hidden, dl.at(step="0-4", layer=[5, 6], branch="cond")))
    assert (part.units, part.bytes) == (5 * 2, 5 * 2 * file)


def test_a_reduced_record_is_a_file_a_step_in_single_precision():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        out = line(dl.energy, dtype=dtype)
        assert (out.units, out.bytes, out.memory) == (20, 20 * 24 * TOKENS * 4, 24 * TOKENS * 4)
    assert line(dl.channel_mean).bytes == 20 * 24 * CHANNELS * 4


def test_states_and_latents_keep_the_number_type_of_the_model():
    for record, index in ((dl.hidden, 20 * 2 * 12 * INDEX), (dl.x0, 0)):
        single, half = (line(record, dtype=d).bytes - index for d in (torch.float32, torch.bfloat16))
        assert single == 2 * half


def test_latents_have_a_grid_of_their_own_and_neither_branch_nor_layer():
    out = line((dl.x0, dl.at(step="0-4")))
    assert (out.units, out.bytes) == (5, 5 * 16 * 4 * 12 * 12 * 4)


def test_a_reduced_record_of_the_latents_is_reduced_on_their_grid():
    assert line((dl.energy, dl.at(site="x0"))).bytes == 20 * 4 * 12 * 12 * 4


def test_shapes_come_from_the_record_itself():
    @keeps("frame", "head")
    def heads(h):
        return h.unflatten(-1, (4, -1)).amax((1, 2, 4))

    assert line(heads).bytes == 20 * 24 * 4 * 4 * 4


def test_a_record_that_returns_other_dimensions_than_it_declares_is_refused():
    @keeps("frame", "y")
    def liar(h):
        return h.mean()

    with pytest.raises(PlanError, match=r"record liar keeps \('frame', 'y'\) but returns 0 dimensions"):
        of(liar)


def test_the_whole_is_the_sum_of_its_lines_and_prints_as_a_table():
    out = of([dl.energy, (dl.hidden, dl.at(layer=3)), dl.x0])
    assert out.bytes == sum(n.bytes for n in out.lines)
    assert out.memory == sum(n.memory for n in out.lines)
    rows = str(out).splitlines()
    assert rows[0].split() == ["record", "files", "size", "memory"]
    assert [row.split()[0] for row in rows[1:]] == ["energy", "hidden", "x0", "all"]
    assert len({len(row) for row in rows}) == 1
    assert rows[1].split()[1:4] == ["20", "276.5", "kB"]


def test_nothing_recorded_is_nothing_written():
    out = of([])
    assert (out.bytes, out.memory) == (0, 0)
    assert "0 B" in str(out)
