"""A fixed vocabulary: the same ids in every process, and the task's prompts are all known."""

import pytest
import torch

from dit_lens import tasks
from dit_lens.models import organism
from dit_lens.models.organism.modules import LENGTH, WORDS, TextEncoder, Tokenizer

UNKNOWN, END = WORDS.index("<unknown>"), WORDS.index("<end>")
PROMPTS = sorted({tasks.make(name, seed).prompt for name in organism.TASKS for seed in range(64)})
FIRST = sorted(
    {tasks.make(name, seed).prompt for name in organism.ORGANISMS["organism-v1"].tasks for seed in range(8)}
)


@pytest.fixture
def encoder():
    encoder = TextEncoder(4)
    encoder.table.copy_(torch.randn(len(WORDS), 4, generator=torch.Generator().manual_seed(0)))
    return encoder


def words(ids):
    return [WORDS[i] for i in ids]


def test_the_vocabulary_is_what_the_weights_were_trained_with():
    """Its order is part of the checkpoint: append, never insert."""
    assert words(range(6)) == ["<pad>", "<end>", "<unknown>", "solve", "the", "maze"]
    assert WORDS[18] == "bar"
    assert len(WORDS) == len(set(WORDS))


def test_a_tokenizer_of_fewer_words_gives_the_same_ids():
    for prompt in FIRST:
        assert torch.equal(Tokenizer(19)(prompt)[0], Tokenizer()(prompt)[0])
    assert words(Tokenizer(19)("follow the arrows")[0][0])[:3] == ["<unknown>", "the", "<unknown>"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_word_of_every_task_is_known_and_fits(prompt):
    ids, mask = Tokenizer()(prompt)
    assert words(ids[0][mask[0].bool()]) == [*prompt.split(), "<end>"]


def test_different_prompts_have_different_ids():
    ids, _ = Tokenizer()(PROMPTS)
    assert len({tuple(row.tolist()) for row in ids}) == len(PROMPTS) == 15


def test_case_spaces_and_punctuation_do_not_matter():
    ids, _ = Tokenizer()(["solve the maze", "  Solve THE\tmaze!! ", "solve,the-maze."])
    assert torch.equal(ids[0], ids[1])
    assert torch.equal(ids[0], ids[2])


def test_an_empty_prompt_is_its_end_alone():
    ids, mask = Tokenizer()("")
    assert ids.tolist() == [[END] + [0] * (LENGTH - 1)]
    assert mask.tolist() == [[1] + [0] * (LENGTH - 1)]


def test_other_words_are_unknown_also_where_they_spell_a_special_one():
    ids, mask = Tokenizer()("solve <pad> sudoku")
    assert words(ids[0][:4]) == ["solve", "<unknown>", "<unknown>", "<end>"]
    assert mask[0].sum() == 4


def test_a_long_prompt_is_cut_and_still_ends():
    ids, mask = Tokenizer()("the " * 50)
    assert words(ids[0]) == ["the"] * (LENGTH - 1) + ["<end>"]
    assert mask.all()


def test_prompts_in_a_batch_are_the_same_as_one_by_one():
    for form in (list, tuple):
        ids, mask = Tokenizer()(form(PROMPTS), return_mask=True, add_special_tokens=True)
        assert ids.shape == mask.shape == (len(PROMPTS), LENGTH)
        for row, prompt in enumerate(PROMPTS):
            assert torch.equal(ids[row], Tokenizer()(prompt)[0][0])


def test_a_word_is_its_row_of_the_table_and_padding_is_zero(encoder):
    ids, mask = Tokenizer()("circle the disc")
    out = encoder(ids, mask)
    assert out.shape == (1, LENGTH, 4)
    for place, word in enumerate(["circle", "the", "disc", "<end>"]):
        assert torch.equal(out[0, place], encoder.table[WORDS.index(word)])
    assert (out[0, 4:] == 0).all()
    assert encoder.table[0].abs().sum() > 0  # zero by the mask, not by the table


def test_embeddings_are_frozen_and_have_the_number_type_of_the_table(encoder):
    assert not list(encoder.parameters())
    ids, mask = Tokenizer()("go to one goal")
    assert encoder.to(torch.bfloat16)(ids, mask).dtype == torch.bfloat16
