"""A picture of any kind is what a person sees: the right way up, the right colours; else the reason why not."""

import numpy as np
import pytest
from PIL import Image

import dit_lens as dl
from dit_lens.experiments.options import PictureOptions
from dit_lens.experiments.samples import draw
from dit_lens.tasks.image import as_rgb, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
RGB = Image.fromarray(PIXELS)
GREY = PIXELS[..., 0]
ALPHA = np.array([[0, 255, 128]], np.uint8)
COLOUR = np.array([[[10, 20, 30]] * 3], np.uint8)
ON_WHITE = [[255] * 3, [10, 20, 30], [132, 137, 142]]


def values(picture, **options):
    sample = dl.Sample("a cat", picture, **options)
    assert type(sample.image) is Image.Image and sample.image.mode == "RGB" and sample.image.info == {}
    assert sample.size == (sample.image.height, sample.image.width)
    return np.asarray(sample.image)


def palette(transparency=None):
    image = Image.new("P", (3, 1))
    image.putpalette([1, 2, 3, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def turned(orientation):
    back = {3: 3, 6: 2, 8: 4}  # PIL's transpose that undoes what the tag asks for
    image = RGB.transpose(Image.Transpose(back[orientation]))
    image.getexif()[0x0112] = orientation
    return image


# ---- from PIL


@pytest.mark.parametrize(
    "picture, expected",
    [
        (RGB, PIXELS),
        (Image.fromarray(GREY), np.repeat(GREY[..., None], 3, 2)),
        (Image.fromarray(GREY > 99), np.repeat((GREY > 99)[..., None], 3, 2) * 255),
        (palette(), [[[1, 2, 3], [40, 50, 60], [70, 80, 90]]]),
        (palette(1), [[[1, 2, 3], [255] * 3, [70, 80, 90]]]),
        (palette(bytes([255, 0, 0])), [[[1, 2, 3], [255] * 3, [255] * 3]]),
        (Image.fromarray(np.dstack([COLOUR, ALPHA])), [ON_WHITE]),
        (Image.fromarray(np.dstack([COLOUR[..., 0], ALPHA])), [[[255] * 3, [10] * 3, [132] * 3]]),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), [[[255, 0, 0]]]),
        (Image.new("YCbCr", (1, 1), (128, 128, 128)), [[[128] * 3]]),
        (Image.new("HSV", (1, 1), (0, 255, 255)), [[[255, 0, 0]]]),
        (
            Image.fromarray(np.array([[0, 128, 257, 0x8000, 65535]], np.uint16)),
            [[[n] * 3 for n in (0, 0, 1, 128, 255)]],
        ),
        (Image.fromarray(np.array([[0, 65535]], ">u2")), [[[0] * 3, [255] * 3]]),
        (turned(3), PIXELS),
        (turned(6), PIXELS),
        (turned(8), PIXELS),
    ],
    ids=lambda v: f"{v.mode} {v.info}" if isinstance(v, Image.Image) else "",
)
def test_every_mode_is_read_as_it_looks(picture, expected):
    assert np.abs(values(picture).astype(int) - np.asarray(expected)).max() <= 1


def test_premultiplied_alpha_is_undone():
    image = Image.fromarray(np.dstack([COLOUR, np.full((1, 3), 255, np.uint8)]))
    assert values(image.convert("RGBa")).tolist() == COLOUR.tolist()
    grey = Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8))
    assert values(grey.convert("La")).tolist() == [[[10] * 3, [255] * 3]]


@pytest.mark.parametrize(
    "picture, words",
    [
        (Image.new("F", (2, 2), 0.5), "float values, whose range is not known.*astype"),
        (Image.new("I", (2, 2), 200), "32-bit integers, whose range is not known.*astype"),
        (Image.new("RGB", (0, 2)), "2 x 0 pixels"),
        (np.zeros((2, 2, 3), np.float32), "range of an image of float32 is not known"),
        (np.zeros((2, 2, 3), np.int64), "range of an image of int64 is not known"),
        (np.zeros((3, 20, 20), np.uint8), r"shape \(3, 20, 20\)"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"shape \(1, 2, 2, 3\)"),
        (np.zeros((0, 2, 3), np.uint8), r"shape \(0, 2, 3\)"),
        ([[1, 2]], "this is a list"),
        (7, "this is a int"),
        (b"\x89PNG", "this is a bytes"),
    ],
)
def test_what_cannot_be_known_is_refused_with_the_reason(picture, words):
    with pytest.raises(dl.TaskError, match=f"Sample custom/7: .*{words}"):
        dl.Sample("a cat", picture, id="7")


def test_a_picture_that_breaks_off_is_refused_when_it_is_given(tmp_path):
    big = np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8)
    Image.fromarray(big).save(tmp_path / "a.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:4000])
    with pytest.raises(dl.TaskError, match=r"mode RGB cannot be read.*truncated"):
        dl.Sample("a cat", Image.open(tmp_path / "half.jpg"))
    with pytest.raises(dl.TaskError, match=r"half\.jpg: truncated image"):
        dl.Sample("a cat", tmp_path / "half.jpg")


# ---- arrays


def test_arrays_of_every_known_type_are_read():
    assert np.array_equal(values(PIXELS), PIXELS)
    assert np.array_equal(values(GREY), np.repeat(GREY[..., None], 3, 2))
    assert np.array_equal(values(GREY[..., None]), np.repeat(GREY[..., None], 3, 2))
    assert np.array_equal(values(GREY > 99), np.repeat((GREY > 99)[..., None], 3, 2) * 255)
    assert values(np.dstack([COLOUR, ALPHA])).tolist() == [ON_WHITE]
    assert np.array_equal(values(PIXELS.astype(np.uint16) * 257), PIXELS)
    assert np.array_equal(values(GREY.astype(">u2") * 257), values(GREY))
    assert np.array_equal(values(PIXELS[:, ::-1]), PIXELS[:, ::-1])  # not in one piece in memory


def test_tensors_are_arrays():
    import torch

    assert np.array_equal(values(torch.from_numpy(PIXELS)), PIXELS)


# ---- files; the same everywhere


def save_png_16(path):
    Image.fromarray(np.array([[0, 0x8000, 65535]], np.uint16)).save(path)


FILES = {
    "exif.jpg": (
        lambda p: turned(6).save(p, quality=100, subsampling=0, exif=turned(6).getexif()),
        PIXELS,
        12,
    ),
    "exif.png": (lambda p: turned(8).save(p, exif=turned(8).getexif()), PIXELS, 0),
    "alpha.png": (lambda p: Image.fromarray(np.dstack([COLOUR, ALPHA])).save(p), [ON_WHITE], 1),
    "grey16.png": (save_png_16, [[[0] * 3, [128] * 3, [255] * 3]], 0),
    "palette.png": (lambda p: palette().save(p, transparency=1), [[[1, 2, 3], [255] * 3, [70, 80, 90]]], 0),
    "cmyk.jpg": (lambda p: Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(p), np.zeros((8, 8, 3)), 2),
    "palette.gif": (lambda p: palette().save(p), [[[1, 2, 3], [40, 50, 60], [70, 80, 90]]], 0),
    "grey.webp": (
        lambda p: Image.fromarray(GREY).save(p, lossless=True),
        np.repeat(GREY[..., None], 3, 2),
        0,
    ),
    "grey16.tiff": (save_png_16, [[[0] * 3, [128] * 3, [255] * 3]], 0),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_the_same_picture_however_it_is_given(tmp_path, name):
    write, expected, within = FILES[name]
    path = tmp_path / name
    write(path)
    read = np.asarray(read_image(path))
    assert (
        read.shape == np.shape(expected) and np.abs(read.astype(int) - np.asarray(expected)).max() <= within
    )
    assert np.array_equal(values(path), read) and np.array_equal(values(str(path)), read)
    assert np.array_equal(values(Image.open(path)), read)
    (sample,) = draw(PictureOptions(image=path, prompt="go"))
    assert np.array_equal(np.asarray(sample.image), read)


@pytest.mark.parametrize("name", ["float.tiff", "int.tiff"])
def test_a_file_of_unknown_range_is_refused_by_its_name(tmp_path, name):
    Image.new("F" if name == "float.tiff" else "I", (2, 2), 1).save(tmp_path / name)
    for read in (read_image, as_rgb, lambda p: list(draw(PictureOptions(image=p, prompt="go")))):
        with pytest.raises(dl.TaskError, match=rf"{name}: image of unknown range .*not known"):
            read(tmp_path / name)


def test_an_image_option_that_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(dl.TaskError, match=r"a\.png: not an image"):
        list(draw(PictureOptions(image=tmp_path / "a.png", prompt="go")))
    with pytest.raises(dl.TaskError, match="there is no such file"):
        list(draw(PictureOptions(image=tmp_path / "b.png", prompt="go")))


def test_equal_pictures_make_equal_samples_and_one_run(lens, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", dpi=(72, 72))
    pictures = [Image.fromarray(pixels), pixels, tmp_path / "a.png", Image.open(tmp_path / "a.png")]
    samples = [dl.Sample("solve the maze", p, num_frames=5) for p in pictures]
    assert all(s == samples[0] for s in samples)
    runs = {lens.run(s, steps=1, store=tmp_path / "store").path for s in samples}
    assert len(runs) == 1
