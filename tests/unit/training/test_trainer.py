"""A training of each kind goes a few steps, stops, goes on where it was, and leaves files that load."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit_lens.models import organism
from dit_lens.models.organism import loading
from feed import Feed
from mixes import MIXES
from recipes import RECIPES
from trainer import Frozen, Options, Trainer, load_network, load_organism

FROZEN = Path(organism.__file__).with_name("frozen.safetensors")


@pytest.fixture(scope="module")
def frozen():
    return Frozen(FROZEN, "cpu")


@pytest.fixture(scope="module")
def feed(frozen):
    """Scenes by the name of a mix."""
    with ExitStack() as stack:
        opened = {}

        def of(mix):
            if mix not in opened:
                small = {"workers": 1, "held": 8, "fill": 2, "chunk": 2, "held_out": 2}
                opened[mix] = stack.enter_context(Feed(mix, frozen.codec, frozen.text, seed=0, **small))
            return opened[mix]

        yield of


@pytest.fixture
def train(frozen, feed, tmp_path):
    """Train an organism for so many steps more, and return its trainer."""

    def run(name, steps, **changes):
        recipe = replace(RECIPES[name], **changes)
        options = Options(tmp_path, "cpu", tokens=64, seed=0, every=1e9)
        trainer = Trainer(name, recipe, 1e9, options, frozen, feed(recipe.mix))
        for _ in range(steps):
            trainer.train_step()
        trainer.save()
        return trainer

    return run


def test_batches_hold_what_was_drawn(feed, frozen):
    made = feed("puzzles")
    for group in MIXES["puzzles"]:
        batch = made.batch(group, 3)
        frames, side = 1 + (group.frames - 1) // 4, 2 * group.side
        assert batch.latents.shape == (3, 48, frames, side, side)
        assert batch.context.shape == (3, 8, 32)
        again = [made.held_out_batch(group, 2).latents for _ in range(2)]
        assert torch.equal(*again)
    with_none = made.batch(MIXES["puzzles"][0], 6, dropout=1.0)
    assert torch.equal(with_none.context, frozen.text(*made.words.tokenizer([""] * 6)))


@pytest.mark.slow
def test_a_training_goes_on_where_it_was(train, tmp_path):
    first = train("full", 3)
    second = train("full", 2)
    assert (first.step, second.step) == (3, 5)
    lines = [json.loads(line) for line in (tmp_path / "full.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 5]
    assert all(loss > 0 for line in lines for loss in line["held_out"].values())
    weights = load_network(tmp_path / "full.safetensors", "cpu").state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert not torch.equal(weights["head.head.weight"], torch.zeros_like(weights["head.head.weight"]))


@pytest.mark.slow
def test_every_recipe_makes_a_file_that_loads(train, tmp_path):
    for name, recipe in RECIPES.items():
        train(name, 1, mix="puzzles")
        weights = load_file(tmp_path / f"{name}.safetensors")
        assert all(value.dtype == torch.float16 for value in weights.values())
        assert bool(recipe.rank) == any("lora_A" in key for key in weights)
    (tmp_path / "frozen.safetensors").write_bytes(FROZEN.read_bytes())
    for name in ("full", "two-expert", "base", "lora", "few4", "causal"):
        lens = loading.load(f"organism-{name}", {}, folder=tmp_path)
        assert lens.info["name"] == f"organism-{name}"


def test_what_starts_from_another_says_so_where_that_is_missing(train):
    with pytest.raises(FileNotFoundError, match=r"high starts from .*full\.safetensors, .* train full first"):
        train("high", 1, mix="puzzles")


def test_a_training_whose_checkpoint_is_lost_goes_on_from_its_averaged_weights(train, tmp_path):
    before = train("base", 2, mix="puzzles")
    (tmp_path / "base.last.pt").unlink()
    after = train("base", 0, mix="puzzles")
    assert after.step == 0
    saved = before.average["blocks.0.ffn.0.weight"].half().float()
    assert torch.equal(after.average["blocks.0.ffn.0.weight"], saved)


@pytest.mark.slow
def test_steps_say_how_long_it_trains_and_doublings_are_kept(frozen, feed, tmp_path):
    options = Options(tmp_path, "cpu", tokens=64, seed=1, every=1e9, steps=5, kept=1)
    trainer = Trainer("base", replace(RECIPES["base"], mix="puzzles"), 1e9, options, frozen, feed("puzzles"))
    trainer.run()
    assert (trainer.step, trainer.done) == (5, 1.0)
    assert trainer.learning_rate() == pytest.approx(
        2e-3 * 0.06 * 0.02
    )  # of the warm-up, and at the end of the fall
    kept = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert kept == ["base.1.safetensors", "base.2.safetensors", "base.4.safetensors", "base.safetensors"]
    early = load_organism("base.1", tmp_path, "cpu").state_dict()
    late = load_organism("base", tmp_path, "cpu").state_dict()
    assert not torch.equal(early["head.head.bias"], late["head.head.bias"])


def test_a_checkpoint_of_another_seed_or_of_more_steps_is_refused(frozen, feed, tmp_path):
    recipe = replace(RECIPES["base"], mix="puzzles")

    def trainer(**options):
        made = Options(tmp_path, "cpu", **{"tokens": 64, "seed": 0, "every": 1e9, "steps": 2, **options})
        return Trainer("base", recipe, 1e9, made, frozen, feed("puzzles"))

    trainer().run()
    log, weights = (tmp_path / f"base.{end}" for end in ("jsonl", "safetensors"))
    before = log.read_text(), weights.read_bytes()
    trainer().run()  # it is done
    assert (log.read_text(), weights.read_bytes()) == before
    with pytest.raises(ValueError, match="of seed 0: give another folder to seed 1"):
        trainer(seed=1)
    with pytest.raises(ValueError, match="of 2 steps, more than 1"):
        trainer(steps=1)


def test_a_lora_of_other_names_is_refused(tmp_path):
    for name in ("base", "lora"):
        (tmp_path / f"{name}.safetensors").write_bytes((FROZEN.parent / f"{name}.safetensors").read_bytes())
    load_organism("lora", tmp_path, "cpu")
    other = {k.replace(".default", ""): v for k, v in load_file(tmp_path / "lora.safetensors").items()}
    save_file(other, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="holds 0 of the"):
        load_organism("lora", tmp_path, "cpu")


def test_seeds_start_from_other_weights(frozen, feed, tmp_path):
    recipe = replace(RECIPES["base"], mix="puzzles")
    first = [
        Trainer("base", recipe, 1.0, Options(tmp_path, "cpu", 64, seed, 1e9), frozen, feed("puzzles")).average
        for seed in (0, 1, 1)
    ]
    weights = [average["blocks.0.ffn.0.weight"] for average in first]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])


def test_a_process_that_draws_ends_with_the_one_that_asks():
    import os
    import queue

    import drawing

    requests = queue.Queue()
    requests.put(drawing.Request(0, 0, False))
    assert drawing._next(requests, os.getppid()) == (0, 0, False)
    assert drawing._next(requests, os.getppid() + 1) is None
