"""Inside of an attention: its sites hold what the module computes with, and the map that is computed anew is its own.

Every check is against plain hooks and plain products, on the real classes.
"""

import numpy as np
import pytest
import torch

import dit_lens as dl
from dit_lens.attention_records import mass, weights
from dit_lens.families.attention import Heard

LAYER = 2


@pytest.fixture(scope="module", params=["organism-v1", "organism-causal"])
def lens(request):
    return dl.load(request.param)


@pytest.fixture(scope="module")
def sample():
    return dl.tasks.maze(seed=1_000_007)


def block_of(lens):
    return lens.specimen.blocks(lens.specimen.dits["dit"])[LAYER]


class Plain:
    """What plain hooks see of one block in the first call of a run: arguments and outputs of its modules, by path."""

    def __init__(self, block, *paths):
        self.seen, self.handles = {}, []
        for path in paths:
            module = block.get_submodule(path)
            self.handles.append(module.register_forward_hook(self.keep(path), with_kwargs=True))

    def keep(self, path):
        def hook(module, args, kwargs, output):
            self.seen.setdefault(path, ([a.clone() for a in args], output.clone()))

        return hook

    def __enter__(self):
        return self.seen

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


def kept(part):
    """Return a record of an attention that keeps one of its parts."""

    @dl.keeps("token", "head", "channel_of_head")
    def record(a):
        return getattr(a, part)

    record.reads_attention, record.__name__ = True, part
    return record


def at(**place):
    return dl.at(layer=LAYER, step=0, **place)


def test_queries_keys_and_heads_are_those_of_the_module(lens, sample):
    block = block_of(lens)
    record = [
        (dl.hidden, at(site=s)) for s in ("attn_q", "attn_k", "attn_v", "heads", "cross_q", "cross_heads")
    ]
    record += [(dl.hidden, at(site=s, stream="text")) for s in ("cross_k", "cross_v")]
    with Plain(block, "self_attn.attn", "cross_attn.attn", "self_attn.o", "cross_attn.o") as seen:
        run = lens.run(sample, steps=1, record=record)
    for module, names in (
        ("self_attn.attn", "attn_q attn_k attn_v"),
        ("cross_attn.attn", "cross_q cross_k cross_v"),
    ):
        for name, expected in zip(names.split(), seen[module][0][:3], strict=True):
            stored = run[f"hidden_{name}" + ("_text" if name in ("cross_k", "cross_v") else "")].values
            heads = expected[0].unflatten(-1, (stored.shape[3], -1)).transpose(0, 1).numpy()
            assert np.array_equal(stored[0, 0, 0].reshape(heads.shape), heads), name
    for path, name in (("self_attn.o", "heads"), ("cross_attn.o", "cross_heads")):
        heads = run[f"hidden_{name}"].values[0, 0, 0]  # [head, frame, y, x, channel]
        joined = torch.from_numpy(np.moveaxis(heads, 0, 3).reshape(-1, block.dim))
        assert torch.equal(joined, seen[path][0][0][0])
        projected = block.get_submodule(path)(joined)
        assert torch.equal(projected, seen[path][1][0])


@pytest.mark.parametrize("site", ["attention", "cross_attention"])
def test_the_map_times_the_values_is_what_the_module_returns(lens, sample, site):
    def made(a):
        every = torch.arange(a.q.shape[0])
        return torch.einsum("hqk,khc->qhc", weights(a, every), a.v)

    made = dl.keeps("token", "head", "head_width")(made)
    made.reads_attention = True
    path = "self_attn.attn" if site == "attention" else "cross_attn.attn"
    with Plain(block_of(lens), path) as seen:
        run = lens.run(sample, steps=1, record=[(made, at(site=site))])
    stored = run["made_" + site].values[0, 0, 0]
    assert np.allclose(stored.reshape(len(stored), -1), seen[path][1][0].numpy(), atol=2e-6)


def whole_map(lens, sample, site="attention"):
    """Return an attention [head, query, key] by plain products, from what a plain hook sees."""
    block = block_of(lens)
    path = "self_attn.attn" if site == "attention" else "cross_attn.attn"
    with Plain(block, path) as seen:
        lens.run(sample, steps=1)
    q, k, _, *mask = seen[path][0]
    q, k = (
        part[0].unflatten(-1, (block.self_attn.num_heads, -1)).transpose(0, 1).double() for part in (q, k)
    )
    logits = q @ k.mT / q.shape[-1] ** 0.5
    if mask:
        logits = logits.masked_fill(~mask[0], -torch.inf)
    return logits.softmax(-1).numpy()


def test_reductions_are_those_of_the_whole_map(lens, sample):
    record = [
        *(dl.attention(to=to) for to in ("self", "first_frame")),
        dl.attention(over="frames", heads="all"),
        dl.attention(from_=[(1, 2, 3), (3, 5, 0)]),
        dl.attention(entropy=True, heads="all"),
        dl.attention(to="text"),
    ]
    run = lens.run(sample, steps=1, record=[(one, at()) for one in record])
    grid = (frames, y, x) = run["attention_to_self"].shape[-3:]
    self_attention, cross = (whole_map(lens, sample, s) for s in ("attention", "cross_attention"))
    heads, each = len(self_attention), y * x

    def stored(name):
        return run[name].values[0, 0, 0]

    mean = self_attention.mean(0)
    by_frames = self_attention.reshape(heads, frames, each, frames, each)
    expected = {
        "attention_to_self": mean.diagonal().reshape(grid),
        "attention_to_first_frame": mean[:, :each].sum(1).reshape(grid),
        "attention_over_frames": by_frames.sum(-1).mean(2),
        "attention_from": mean[[each + 2 * x + 3, 3 * each + 5 * x]].reshape(2, *grid),
        "attention_entropy": -np.where(
            self_attention > 0, self_attention * np.log(np.maximum(self_attention, 1e-300)), 0
        )
        .sum(-1)
        .reshape(heads, *grid),
        "attention_to_text": cross.mean(0).reshape(*grid, -1),
    }
    for name, values in expected.items():
        assert np.allclose(stored(name), values, atol=2e-6), name
    assert run["attention_over_frames"].dims[-3:] == ("head", "frame", "key_frame")
    assert run["attention_to_text"].dims[-1] == "text_token"


def test_heads_and_words_that_are_selected_are_those(lens, sample):
    cross, own = (whole_map(lens, sample, s) for s in ("cross_attention", "attention"))
    place = at(text_token=["maze", "solve"], head=[1, 3])
    run = lens.run(
        sample,
        steps=1,
        record=[(dl.attention(to="text", heads="all"), place), (dl.attention(to="self"), at(head=2))],
    )
    words = [text for text, _ in run.text_tokens["cond"]]
    assert words[:3] == ["solve", "the", "maze"]
    got = run["attention_to_text"]
    assert got.text_token.values.tolist() == [0, 2] and got.sizes["head"] == 2
    for n, head in enumerate((1, 3)):
        assert np.allclose(got.values[0, 0, 0, n].reshape(-1, 2), cross[head][:, [0, 2]], atol=2e-6)
    assert np.allclose(run["attention_to_self"].values.ravel(), own[2].diagonal(), atol=2e-6)
    kinds = [kind for _, kind in run.text_tokens["cond"]]
    assert kinds == ["word"] * 3 + ["special"] + ["padding"] * 4


def test_queries_that_are_sampled_are_those_and_the_others_nan(lens, sample):
    record = [dl.attention(entropy=True), dl.attention(over="frames")]
    every = lens.run(sample, steps=1, record=[(r, at()) for r in record])
    some = lens.run(
        sample,
        steps=1,
        record=[
            (dl.attention(entropy=True, queries=4), at()),
            (dl.attention(over="frames", queries=10_000), at()),
        ],
    )
    few, all_of = some["attention_entropy"].values[0, 0, 0], every["attention_entropy"].values[0, 0, 0]
    assert np.isfinite(few).reshape(len(few), -1).sum(1).tolist() == [4] * len(few)
    assert np.array_equal(few[np.isfinite(few)], all_of[np.isfinite(few)])
    assert np.array_equal(some["attention_over_frames"], every["attention_over_frames"])


def test_an_edit_of_queries_and_of_heads_reaches_what_follows_and_one_head_alone(lens, sample):
    plain = lens.run(sample, steps=1, record=[(dl.hidden, at(site=s)) for s in ("heads", "self_attn")])
    edits = {
        "attn_v": [(dl.zero(), at(site="attn_v", head=1))],
        "heads": [(dl.zero(), at(site="heads", head=1))],
    }
    for edit in edits.values():
        run = lens.run(
            sample, steps=1, record=[(dl.hidden, at(site=s)) for s in ("heads", "self_attn")], edit=edit
        )
        before, after = (r["hidden_heads"].values[0, 0, 0] for r in (plain, run))
        assert np.array_equal(np.delete(before, 1, 0), np.delete(after, 1, 0)) and not after[1].any()
        weight = block_of(lens).self_attn.o.weight.detach().unflatten(1, (len(before), -1))[:, 1].numpy()
        lost = before[1] @ weight.T
        changed = plain["hidden_self_attn"].values - run["hidden_self_attn"].values
        assert np.allclose(changed[0, 0, 0], lost, atol=1e-5)


def test_a_record_of_attention_reads_what_the_edits_leave(lens, sample):
    edit = [(dl.zero(), at(site="attn_q", head=0))]
    run = lens.run(sample, steps=1, record=[(dl.attention(over="frames", heads="all"), at())], edit=edit)
    plain = lens.run(sample, steps=1, record=[(dl.attention(over="frames", heads="all"), at())])
    got, before = (r["attention_over_frames"].values[0, 0, 0] for r in (run, plain))
    assert np.array_equal(got[1:], before[1:])
    alike = (
        np.tril(np.ones((len(got[0]),) * 2)) if "causal" in str(lens.info) else np.ones((len(got[0]),) * 2)
    )
    assert np.allclose(got[0], alike / alike.sum(1, keepdims=True), atol=1e-6)


def test_a_word_is_taken_away_alone(lens, sample):
    record = [(dl.hidden, at(site="cross_v", stream="text"))]
    run = lens.run(
        sample,
        steps=1,
        record=record,
        edit=[(dl.zero(), at(site="cross_v", stream="text", text_token="maze"))],
    )
    plain = lens.run(sample, steps=1, record=record)
    before, after = (r["hidden_cross_v_text"].values[0, 0, 0] for r in (plain, run))
    assert not after[:, 2].any() and np.array_equal(np.delete(before, 2, 1), np.delete(after, 2, 1))


def test_channels_of_a_state_are_edited_and_read_alone(lens, sample):
    record = [(dl.hidden, at()), (dl.energy, at(channel=[3, 7]))]
    run = lens.run(sample, steps=1, record=record, edit=[(dl.replace(value=2.0), at(channel="3-4"))])
    plain = lens.run(sample, steps=1, record=[(dl.hidden, at())])
    before, after = (r["hidden"].values[0, 0, 0] for r in (plain, run))
    assert (after[..., 3:5] == 2).all() and np.array_equal(
        np.delete(before, [3, 4], -1), np.delete(after, [3, 4], -1)
    )
    assert np.allclose(run["energy"].values[0, 0, 0], np.hypot(2.0, after[..., 7]), atol=1e-5)
    assert "channel=3,7" in run["energy"].attrs["long_name"]


def test_a_batch_records_and_edits_what_a_run_does(lens, sample):
    record = [
        dl.attention(over="frames", heads="all"),
        (dl.attention(to="text"), dl.at(text_token="maze")),
        (dl.hidden, dl.at(site="heads", head=[0, 2], layer=[1])),
    ]
    edit = [(dl.scale(factor=0.5), dl.at(site="attn_v", head=1, layer="1-3"))]
    pairs = [(sample, 0), (dl.tasks.maze(seed=1_000_008), 1)]
    batch = lens.batch(pairs, steps=2, record=record, edit=edit)
    for (one, seed), got in zip(pairs, batch.run(), strict=True):
        expected = lens.run(one, seed, steps=2, record=record, edit=edit)
        for name in ("attention_over_frames", "attention_to_text", "hidden_heads"):
            assert np.allclose(got[name], expected[name], atol=3e-5), name
            assert got[name].dims == expected[name].dims


def test_mass_is_a_sum_of_weights_in_bfloat16_too():
    torch.manual_seed(0)
    from dit_lens.families.site import Tokens

    q, k = torch.randn(1, 12, 3, 8), torch.randn(1, 20, 3, 8)
    groups = torch.arange(20) % 11  # more than the channels of a head
    groups[3] = -1
    for dtype, close in ((torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        heard = Heard(q.to(dtype), k.to(dtype), k.to(dtype), None, 0.3)
        a = heard.of_row(0, Tokens((1, 1, 8), before=1, after=3), Tokens((1, 1, 20)))
        every = weights(a, torch.arange(1, 9))
        expected = torch.stack([every[..., groups == g].sum(-1) for g in range(11)], -1)
        assert torch.allclose(mass(a, groups, 11), expected, atol=close)


@pytest.mark.parametrize(
    ("placed", "words"),
    [
        ((dl.hidden, dl.at(site="attention")), "reads a value, and attention is one.*dl.attention"),
        (
            (dl.attention(to="self"), dl.at(site="block")),
            "reads an attention, and block is none.*attention, cross",
        ),
        ((dl.energy, dl.at(head=0)), "block does not have its heads apart.*attn_q"),
        ((dl.energy, dl.at(site="heads", head=9)), "head=9 is out of range"),
        ((dl.energy, dl.at(text_token=0)), "holds no tokens of the prompt"),
        ((dl.energy, dl.at(channel=5000)), "channel=5000 is out of range"),
        ((dl.hidden, dl.at(channel=5)), "select channel afterwards"),
        ((dl.attention(to="text"), dl.at(text_token="dragon")), "has no such word, only 'solve the maze'"),
        ((dl.attention(to="text"), dl.at(text_token=99)), "text_token=99 is out of range"),
        (
            (dl.attention(entropy=True), dl.at(site="cross_attention", text_token=0)),
            "select text_token afterwards",
        ),
        ((dl.attention(from_=[(0, 0, 99)]), dl.at()), r"\(0, 0, 99\) is not on the grid"),
        ((dl.attention(to="image"), dl.at()), "unknown site 'image_attention'"),
        (
            (dl.attention(to="self"), dl.at(site="cross_attention")),
            "looks at text, and this is a record of attention to itself",
        ),
        (
            (dl.attention(over="frames"), dl.at(site="cross_attention")),
            "looks at text.*itself or another stream's frames",
        ),
        ((dl.attention(to="first_frame"), dl.at(site="cross_attention")), "looks at text"),
        ((dl.attention(to="image"), dl.at(site="cross_attention")), "looks at text.*attention to image"),
        ((dl.attention(to="text"), dl.at(site="attention")), "looks at video.*attention to text"),
        ((dl.attention(from_=[(0, 0, 0)]), dl.at(site="cross_attention")), "looks at text"),
    ],
)
def test_what_is_not_there_says_what_is(lens, sample, placed, words):
    with pytest.raises(dl.DitLensError, match=words):
        lens.run(sample, steps=1, record=[placed])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"to": "text", "entropy": True},
        {"to": "sky"},
        {"over": "rows"},
        {"to": "text", "queries": 3},
        {"to": "self", "queries": 0},
        {"from_": [(1, 2)]},
        {"from_": [(0.9, 1, 2)]},
        {"from_": [(True, 1, 2)]},
        {"entropy": True, "heads": 3},
    ],
)
def test_a_record_of_attention_takes_one_reduction(options):
    with pytest.raises(dl.PlanError):
        dl.attention(**options)


def test_an_attention_is_not_edited_as_a_whole(lens, sample):
    with pytest.raises(dl.PlanError, match=r"never held.*queries"):
        lens.run(sample, steps=1, edit=[(dl.zero(), dl.at(site="attention"))])


def test_a_site_of_ones_own_stands_beside_the_others(lens, sample):
    own = lens.with_sites({"gelu": dl.Site("ffn.1", channels=block_of(lens).ffn[0].out_features)})
    run = own.run(sample, steps=1, record=[(dl.energy, at(site="gelu", channel="-1"))])
    assert run["energy_gelu"].shape[-3:] == run["latents"].shape[1:2] + run["energy_gelu"].shape[-2:]
    assert "gelu" not in lens.sites and own.identity() != lens.identity()
    with pytest.raises(dl.PlanError, match="has a site 'ffn' already"):
        lens.with_sites({"ffn": "ffn"})
    with pytest.raises(dl.PlanError, match="should be blocks"):
        lens.with_sites({"gelu": "ffn.gelu"})


def test_the_estimate_counts_heads_and_maps(lens, sample):
    record = [
        (dl.hidden, dl.at(site="heads", head=0)),
        dl.attention(to="text", heads="all"),
        (dl.energy, dl.at(site="cross_k", stream="text")),
    ]
    found = {line.variable: line for line in lens.estimate(record, sample, steps=2).lines}
    run = lens.run(sample, steps=2, record=record)
    for name in ("attention_to_text", "energy_cross_k_text"):
        assert found[name].bytes == run.dataset[name].nbytes, name
    assert found["hidden_heads"].bytes > run.dataset["hidden_heads"].nbytes  # and the indices of its shards


def test_own_heads_put_back_change_nothing_and_others_do(lens, sample):
    record = [
        (dl.hidden, dl.at(site="heads", layer=[1, 2])),
        (dl.hidden, dl.at(site="cross_v", stream="text", layer=[1, 2])),
    ]
    plain = lens.run(sample, steps=2, record=[*record, dl.x0])
    places = dl.at(site="heads", layer=[1, 2]), dl.at(site="cross_v", stream="text", layer=[1, 2])
    sources = [plain[name].load() for name in ("hidden_heads", "hidden_cross_v_text")]
    edits = [(dl.patch(source), place) for source, place in zip(sources, places, strict=True)]
    again = lens.run(sample, steps=2, record=[dl.x0], edit=edits)
    assert np.array_equal(plain["x0"], again["x0"])
    other = dl.patch(sources[0].assign_coords(head=np.roll(sources[0]["head"].values, 1)))
    swapped = lens.run(
        sample,
        steps=2,
        record=[*record[:1], dl.x0],
        edit=[(other, dl.at(site="heads", layer=1, head=0, step=1))],
    )
    got = swapped["hidden_heads"].sel(step=1, layer=1).values
    expected = sources[0].sel(step=1, layer=1).values
    assert np.array_equal(got[0, 0], expected[0, 1]) and np.array_equal(got[0, 1:], expected[0, 1:])


def test_noise_of_a_head_is_of_that_head(lens, sample):
    edit = [
        (dl.replace(value=0.0), dl.at(site="heads", layer=LAYER)),
        (dl.add_noise(scale=1.0), dl.at(site="heads", layer=LAYER)),
    ]
    drawn = lens.run(sample, steps=1, record=[(dl.hidden, at(site="heads"))], edit=edit)[
        "hidden_heads"
    ].values[0, 0, 0]
    assert abs(np.corrcoef(drawn[0].ravel(), drawn[1].ravel())[0, 1]) < 0.1 and 0.9 < drawn.std() < 1.1


def test_states_of_another_model_of_one_architecture_are_taken_where_it_is_said(lens, sample):
    if "causal" in str(lens.info):
        pytest.skip("one pair is enough")
    other = dl.load("organism-v1", weights="random")
    source = other.run(sample, steps=1, record=[(dl.hidden, dl.at(layer=LAYER))])["hidden"].load()
    with pytest.raises(dl.PlanError, match="other_model=True"):
        lens.run(sample, steps=1, edit=[(dl.patch(source), at())])
    run = lens.run(
        sample, steps=1, record=[(dl.hidden, at())], edit=[(dl.patch(source, other_model=True), at())]
    )
    assert np.array_equal(run["hidden"].values, source.values)
    larger = (
        dl.load("organism").run(sample, steps=1, record=[(dl.hidden, dl.at(layer=LAYER))])["hidden"].load()
    )
    with pytest.raises(dl.PlanError, match=r"of another architecture \(wan: dit WanModel of"):
        lens.run(sample, steps=1, edit=[(dl.patch(larger, other_model=True), at())])


def test_what_is_read_out_under_an_edit_of_heads_is_what_the_edited_network_says(lens, sample):
    """The depth lens of a run whose heads are patched: the last block's state reads out as the edited x0, earlier ones do not."""
    batch = lens.batch([(sample, 0)], steps=2)
    edit = [(dl.zero(), dl.at(site="heads", layer=LAYER, head=[0, 1]))]
    last, before = batch.layout.layers - 1, LAYER - 1
    watch = [("block", "cond", layer) for layer in (before, LAYER, last)]
    clean, edited = (batch.step(0, batch.noise, edits=[edits], watch=watch) for edits in ([], edit))
    assert not torch.equal(clean.x0, edited.x0)
    for stepped in (clean, edited):
        read = {
            n: batch.readout(0, {"cond": stepped.states["block", "cond", n]}, batch.noise)
            for n in (before, last)
        }
        assert torch.allclose(read[last], stepped.x0, atol=1e-5) and not torch.allclose(
            read[before], stepped.x0, atol=1e-2
        )
    states = [one.states["block", "cond", before] for one in (clean, edited)]
    assert torch.equal(*states)  # before the heads nothing has changed
    run = lens.run(sample, steps=2, record=[(dl.hidden, dl.at(layer=last, step=0))], edit=edit)
    state = torch.from_numpy(
        run["hidden"].values[0, 0]
    )  # [layer, frame, y, x, channel]: recorded under the edit
    assert torch.allclose(batch.readout(0, {"cond": state}, batch.noise), edited.x0, atol=1e-4)
