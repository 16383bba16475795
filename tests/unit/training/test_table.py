"""What the table of organisms says of each is what its recipe does."""

import pytest

from dit_lens.models.organism.table import ORGANISMS
from mixes import MIXES
from recipes import RECIPES

FILES = {file.removesuffix(".safetensors") for one in ORGANISMS.values() for file in one.dits.values()} - {
    "v1"
}


def drawn(name):
    """The tasks that a file was trained on, with those of what it starts from."""
    recipe = RECIPES[name]
    tasks = {task.rstrip("46") for group in MIXES[recipe.mix] for task in group.shares}
    return tasks | (drawn(recipe.start) if recipe.start else set())


def test_every_file_has_a_recipe():
    loras = {
        file for one in ORGANISMS.values() for part in one.known_loras.values() for file in part.values()
    }
    assert FILES | {file.removesuffix(".safetensors") for file in loras} == set(RECIPES)


@pytest.mark.parametrize("name", [name for name in ORGANISMS if name != "organism-v1"])
def test_tasks_are_those_of_the_recipe(name):
    one = ORGANISMS[name]
    files = [file.removesuffix(".safetensors") for file in one.dits.values()]
    if one.lora:
        files.append(one.known_loras[one.lora]["lora"].removesuffix(".safetensors"))
    assert set(one.tasks) == set().union(*map(drawn, files))
    assert one.causal == RECIPES[files[0]].causal
    assert one.steps == RECIPES[files[0]].steps
