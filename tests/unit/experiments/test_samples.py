"""The samples of a command: which, with what noise, in which folders."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

import dit_lens as dl
from dit_lens.experiments.options import PictureOptions, StudyOptions
from dit_lens.experiments.samples import (
    draw,
    folder_of,
    noise_seeds,
    pairs_of,
    require_two_steps,
    steps_of,
    training_samples,
)
from dit_lens.tasks.pairs import together
from dit_lens.tasks.sample import folder_name


def test_your_own_image_needs_a_prompt_and_the_other_way_round(tmp_path):
    picture = tmp_path / "cat.png"
    Image.new("RGB", (32, 32)).save(picture)
    (sample,) = draw(PictureOptions(image=picture, prompt="it walks", num_frames=9))
    assert (sample.prompt, sample.id, sample.num_frames) == ("it walks", "cat", 9)
    for options, says in (
        (PictureOptions(image=picture), "--prompt"),
        (PictureOptions(prompt="it walks"), "--image"),
        (PictureOptions(image=tmp_path / "dog.png", prompt="it walks"), r"dog\.png"),
        (PictureOptions(image=picture, prompt="it walks", samples=2), "one sample"),
        (PictureOptions(task="chess"), "chess"),
        (PictureOptions(samples=0), "at least 1"),
        (PictureOptions(tasks="O-39"), "go with --eval-root"),
    ):
        with pytest.raises(dl.DitLensError, match=says):
            draw(options)


def test_your_own_image_is_seen_as_its_file_means_it(tmp_path):
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # a camera held upright: turn right to see it
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    (sample,) = draw(PictureOptions(image=tmp_path / "turned.png", prompt="go"))
    assert sample.size == (48, 32) and np.array_equal(np.asarray(sample.image), np.rot90(pixels, -1))
    Image.fromarray(np.full((32, 48), 65535, np.uint16)).save(tmp_path / "grey.png")
    (sample,) = draw(PictureOptions(image=tmp_path / "grey.png", prompt="go"))
    assert sample.image.mode == "RGB" and (np.asarray(sample.image) == 255).all()


def test_one_option_says_how_many_samples_there_are():
    assert [len(draw(kind(task="circle"))) for kind in (PictureOptions, StudyOptions)] == [1, 64]
    assert len(draw(StudyOptions(task="circle", samples=3))) == 3


def test_no_scene_is_drawn_twice_and_a_task_with_too_few_says_so():
    scenes = list(draw(StudyOptions(task="occlude", samples=24)))
    assert len({(s.image.tobytes(), s.prompt) for s in scenes}) == 24
    assert [s.id for s in scenes] == sorted((s.id for s in scenes), key=int)
    with pytest.raises(dl.TaskError, match=r"only 24 exist; ask for --samples 24.*--seeds"):
        draw(StudyOptions(task="occlude", samples=25))


def test_one_step_is_refused_also_where_it_is_the_models_own_number():
    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Identity()])

        def forward(self, x, timestep):
            return self.blocks[0](x)

    one, four = (
        dl.blocks(Head(), "blocks", latent=lambda _: (4, 2, 2, 2), grid=lambda size: size[1:], steps=steps)
        for steps in (1, 4)
    )
    require_two_steps(StudyOptions(), four)
    require_two_steps(StudyOptions(steps=2), one)
    assert (steps_of(StudyOptions(), one), steps_of(StudyOptions(steps=2), one)) == (1, 2)
    for options, lens in ((StudyOptions(), one), (StudyOptions(steps=1), four)):
        with pytest.raises(dl.TaskError, match=r"--steps 1: .* give 2 or more"):
            require_two_steps(options, lens)


def test_noise_seeds_differ_between_samples_and_draws():
    options = StudyOptions(task="maze", samples=3, seeds=4)
    seeds = [seed for _, seed in pairs_of(list(draw(options)), options)]
    assert len(set(seeds)) == 12
    (sample,) = draw(PictureOptions())
    assert noise_seeds(sample, StudyOptions(draw=1)) != noise_seeds(sample, StudyOptions(draw=0))


@pytest.mark.parametrize("text_only", [False, True])
def test_training_scenes_are_none_of_those_tested_and_a_task_without_enough_of_them_is_refused(text_only):
    tested = {s.image.tobytes() for s in draw(StudyOptions(task="circle", samples=8))}
    options = StudyOptions(task="circle", samples=8, text_only=text_only)
    scenes = training_samples(options, 6)
    pictures = {dl.tasks.circle(int(s.id)).image.tobytes() for s in scenes}
    assert len(scenes) == 6 and not tested & pictures
    assert all(int(s.id) < 1_000_000 and (s.image is None) == text_only for s in scenes)
    with pytest.raises(dl.TaskError, match="so few scenes that only"):
        training_samples(StudyOptions(task="occlude", samples=24), 2)  # it has 24 layouts


NAMES = [
    "../../../etc",
    "a/b",
    "..",
    ".",
    "",
    "/",
    "C:\\x",
    "blocks",
    "kept",
    "a" * 300,
    "\ud800",
    "store.zarr",
    "nul\0",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_has_a_folder_of_its_own_inside_out(tmp_path, name):
    sample = dl.Sample(prompt="go", size=(32, 32))
    if not name or "\0" in name or "\ud800" in name:
        with pytest.raises(dl.TaskError, match=r"task=|id="):
            sample.with_(task=name)
        return
    folders = [folder_of(tmp_path, sample.with_(task=name)), folder_of(tmp_path, sample.with_(id=name))]
    for folder in folders:
        folder.mkdir(parents=True)
        inside = folder.resolve().relative_to(tmp_path.resolve())
        assert len(inside.parts) >= 2 and ".." not in inside.parts
        assert inside.parts[0] not in ("blocks", "kept", "store.zarr")
    assert folders[0] != folders[1]


def test_two_samples_never_share_a_folder_and_plain_names_stay(tmp_path):
    names = [*NAMES, "a_b", "a-b", "a b", "..-", "_"]
    assert len({folder_name(name) for name in names}) == len(names)
    assert all(len(os.fsencode(folder_name(name))) < 255 for name in names)
    sample = dl.Sample(prompt="go", size=(32, 32), task="In-Domain_50/O-39_maze_data-generator", id="00007")
    assert folder_of(tmp_path, sample) == tmp_path / "In-Domain_50" / "O-39_maze_data-generator" / "00007"


def test_pairs_that_fit_into_no_table_are_refused_with_the_reason():
    one, two = dl.tasks.circle(7), dl.tasks.circle(8)
    gathered = together([(one, 0), (two, 5), (one, np.int64(1)), (two, 6)])
    assert [(s.id, seeds) for s, seeds in gathered] == [("7", [0, 1]), ("8", [5, 6])]
    for pairs, says in (
        ([], "none"),
        ([(one, 0), (two, 0), (two, 1)], r"'circle/7': 1, 'circle/8': 2"),
        ([(one, 0), (one, 0)], "comes twice"),
        ([(one, 0), (one.with_(prompt="another"), 1)], "Two samples are called circle/7"),
        ([one], "sample, noise seed"),
    ):
        with pytest.raises(dl.PlanError, match=says):
            together(pairs)
