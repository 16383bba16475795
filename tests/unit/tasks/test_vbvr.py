"""A benchmark folder is read whole or refused by name; whatever lies around in it is left alone."""

import json
import shutil
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from dit_lens.errors import TaskError
from dit_lens.plot import write_video
from dit_lens.tasks.files import BrokenFileError
from dit_lens.tasks.image import read_image
from dit_lens.tasks.sample import Sample
from dit_lens.tasks.vbvr import vbvr
from dit_lens.tasks.vbvr.files import count_frames, read_prompt
from dit_lens.tasks.vbvr.layout import by_number
from dit_lens.tasks.vbvr.sample import up

IN, OUT = "In-Domain_50", "Out-of-Domain_50"
SORT, MAZE = "G-3_stable_sort_data-generator", "O-39_maze_data-generator"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """One sound sample: 40 x 56 pixels, 6 frames."""
    folder = tmp_path_factory.mktemp("template")
    Image.fromarray(PIXELS).save(folder / "first_frame.png")
    Image.fromarray(PIXELS[::-1].copy()).save(folder / "final_frame.png")
    write_video(np.stack([PIXELS] * 6), folder / "ground_truth.mp4")
    (folder / "prompt.txt").write_text("sort the blocks\n")
    return folder


@pytest.fixture
def make(template, tmp_path):
    """Make a benchmark with the samples that are named, and return its root."""

    def make(*labels):
        for label in labels:
            shutil.copytree(template, tmp_path / "bench" / label)
        return tmp_path / "bench"

    return make


def read_all(samples):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return list(samples), [str(w.message) for w in caught]


def png(array, kind, extra=b""):
    """Write a 16-bit PNG by hand: PIL cannot write 16-bit colour."""
    array = np.asarray(array, ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in array)
    head = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", head), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


# Reading


def test_a_sample_is_what_a_lens_takes_and_knows_where_it_is_from(make):
    (sample,) = vbvr(make(f"{IN}/{SORT}/00002"))
    assert isinstance(sample, Sample)
    assert (sample.prompt, sample.num_frames, sample.size) == ("sort the blocks", 6, (40, 56))
    assert (sample.task, sample.id) == (f"{IN}/{SORT}", "00002")
    assert (sample.split, sample.task_name, sample.label) == (IN, SORT, f"{IN}/{SORT}/00002")
    assert sample.frames_in_truth == 6 and sample.rounded == {}
    assert sample.image.mode == "RGB" and np.array_equal(np.asarray(sample.image), PIXELS)
    assert len(sample.read_truth()) == 6 and sample.truth is None
    assert sample.with_(prompt="x").folder == sample.folder
    with pytest.raises(TaskError, match="has no folder"):
        sample.with_(folder=None).read_truth()


@pytest.mark.parametrize(
    "frames, size, taken, rounded",
    [
        (4, 16, (9, 48, 64), {"num_frames": (6, 9), "height": (40, 48), "width": (56, 64)}),
        (8, 32, (9, 64, 64), {"num_frames": (6, 9), "height": (40, 64), "width": (56, 64)}),
        (5, 8, (6, 40, 56), {}),
    ],
)
def test_frames_and_sizes_are_rounded_up_where_asked_and_it_is_recorded(make, frames, size, taken, rounded):
    (sample,) = vbvr(make(f"{IN}/{SORT}/00000"), frames_multiple=frames, size_multiple=size)
    assert (sample.num_frames, *sample.size) == taken
    assert sample.rounded == rounded and sample.frames_in_truth == 6
    assert sample.image.size == (56, 40)  # the pipeline scales it


def test_rounding_up():
    assert [up(n - 1, 4) + 1 for n in (1, 2, 5, 6, 80, 81)] == [1, 5, 5, 9, 81, 81]
    assert [up(n, 32) for n in (1, 32, 33, 480)] == [32, 32, 64, 480]


@pytest.mark.parametrize(
    "data, text",
    [
        (b"\xef\xbb\xbfsort\r\nthem\r\n", "sort\nthem"),
        ("Schließe \N{LEFTWARDS ARROW} 左\n".encode(), "Schließe \N{LEFTWARDS ARROW} 左"),
    ],
)
def test_prompts_are_utf8_without_byte_order_mark(tmp_path, data, text):
    (tmp_path / "prompt.txt").write_bytes(data)
    assert read_prompt(tmp_path / "prompt.txt") == text


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    """Pixels are stored turned, and the tag says how to turn them back."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transpose that undoes what the tag asks for
    stored = Image.fromarray(PIXELS)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    found = read_image(tmp_path / "a.png")
    assert np.array_equal(np.asarray(found), PIXELS)
    assert found == Image.fromarray(PIXELS)  # nothing of the tag is left, or it would be turned again


def test_alpha_is_composited_on_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png")).tolist() == [[[10, 20, 30], [255] * 3, [127] * 3]]
    Image.fromarray(pixels[..., 2:]).save(tmp_path / "la.png")
    assert np.asarray(read_image(tmp_path / "la.png")).tolist() == [[[30] * 3, [255] * 3, [127] * 3]]


def test_palettes_with_and_without_transparency(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "plain.png")
    assert np.asarray(read_image(tmp_path / "plain.png")).tolist() == [
        [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    ]
    image.save(tmp_path / "clear.png", transparency=1)
    assert np.asarray(read_image(tmp_path / "clear.png")).tolist() == [
        [[10, 20, 30], [255] * 3, [70, 80, 90]]
    ]
    image.save(tmp_path / "half.png", transparency=bytes([255, 128, 0]))
    half = np.asarray(read_image(tmp_path / "half.png"))[0]
    assert half[0].tolist() == [10, 20, 30] and half[2].tolist() == [255] * 3
    assert np.abs(half[1].astype(int) - [147, 152, 157]).max() <= 1


def test_grey_and_black_and_white(tmp_path):
    Image.new("L", (2, 1), 77).save(tmp_path / "l.png")
    Image.new("1", (2, 1), 1).save(tmp_path / "1.png")
    assert np.asarray(read_image(tmp_path / "l.png")).tolist() == [[[77] * 3] * 2]
    assert np.asarray(read_image(tmp_path / "1.png")).tolist() == [[[255] * 3] * 2]


def test_16_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 128, 257, 0x12FF, 0x8000, 65535]])
    right = np.rint(values / 257)
    (tmp_path / "grey.png").write_bytes(png(values, 0))
    grey = np.asarray(read_image(tmp_path / "grey.png"))
    assert np.array_equal(grey, np.repeat(right[..., None], 3, 2))
    (tmp_path / "clear.png").write_bytes(png(values, 0, chunk(b"tRNS", struct.pack(">H", 0x8000))))
    assert np.asarray(read_image(tmp_path / "clear.png"))[0, :, 0].tolist() == [0, 0, 1, 19, 255, 255]
    (tmp_path / "rgb.png").write_bytes(png(np.repeat(values[..., None], 3, 2), 2))
    assert np.abs(np.asarray(read_image(tmp_path / "rgb.png")) - right[..., None]).max() <= 1
    alpha = np.stack([np.zeros_like(values), values * 0, values * 0, np.full_like(values, 0x8000)], -1)
    (tmp_path / "rgba.png").write_bytes(png(alpha, 6))
    assert np.asarray(read_image(tmp_path / "rgba.png"))[0, 0].tolist() == [127] * 3


def test_frames_are_counted_by_decoding(template, tmp_path):
    assert count_frames(template / "ground_truth.mp4") == 6
    assert count_frames(write_video(np.stack([PIXELS] * 3), tmp_path / "a.mp4", fps=30)) == 3


def test_a_container_that_names_no_number_of_frames_is_counted_too(tmp_path):
    import av

    path = write_video(np.stack([PIXELS] * 5), tmp_path / "a.mkv")
    with av.open(str(path)) as file:
        assert file.streams.video[0].frames == 0
    assert count_frames(path) == 5


def test_a_video_cut_short_is_noticed_where_decoding_would_end_as_if_it_were_whole(tmp_path):
    """With its index in front, as the web wants it, the first frames of half a video decode without complaint."""
    import av

    path, noise = tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as file:
        stream = file.add_stream(
            "libx264", rate=8, options={"tune": "zerolatency", "x264-params": "keyint=1"}
        )
        stream.width = stream.height = 64
        for frame in noise:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    data = path.read_bytes()
    assert count_frames(path) == 30
    path.write_bytes(data + b"\0" * 3)
    assert count_frames(path) == 30
    with av.open(str(path)) as file:
        half = [packet.pos for packet in file.demux(video=0)][15]
    path.write_bytes(data[:half])
    with av.open(str(path)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 15
    with pytest.raises(BrokenFileError, match=r"truncated video .*its part 'mdat' ends at byte"):
        count_frames(path)


# Broken samples


def cut(share):
    def spoil(path):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return spoil


def write(data):
    return lambda path: path.write_bytes(data)


BROKEN = {
    "missing prompt": ("prompt.txt", Path.unlink, "missing file"),
    "missing frame": ("first_frame.png", Path.unlink, "missing file"),
    "missing video": ("ground_truth.mp4", Path.unlink, "missing file"),
    "empty prompt file": ("prompt.txt", write(b""), "empty file"),
    "empty video": ("ground_truth.mp4", write(b""), "empty file"),
    "pointer for a frame": ("first_frame.png", write(POINTER), "git-LFS pointer"),
    "pointer for a video": ("ground_truth.mp4", write(POINTER), "git-LFS pointer"),
    "pointer for a prompt": ("prompt.txt", write(POINTER), "git-LFS pointer"),
    "latin-1": ("prompt.txt", write("größer".encode("latin-1")), "prompt is not UTF-8"),
    "utf-16": ("prompt.txt", write("sort".encode("utf-16")), "prompt is not UTF-8"),
    "utf-16 without a mark": ("prompt.txt", write("sort".encode("utf-16-le")), "prompt is not UTF-8"),
    "blank prompt": ("prompt.txt", write(b"\xef\xbb\xbf \r\n\t"), "empty prompt"),
    "half a frame": ("first_frame.png", cut(0.5), "truncated image"),
    "frame without its end": (
        "first_frame.png",
        lambda p: p.write_bytes(p.read_bytes()[:-6]),
        "truncated image",
    ),
    "half a last frame": ("final_frame.png", cut(0.5), "truncated image"),
    "text for a frame": ("first_frame.png", write(b"<html>404</html>"), "not an image"),
    "half a video": ("ground_truth.mp4", cut(0.5), "truncated video"),
    "video but for its end": ("ground_truth.mp4", cut(0.98), "truncated video"),
    "text for a video": ("ground_truth.mp4", write(b"<html>404</html>"), "undecodable video"),
    "sound for a video": ("ground_truth.mp4", write(b"RIFF\x24\0\0\0WAVEfmt "), "undecodable video"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_sample_is_reported_and_does_not_stop_the_others(make, name):
    file, spoil, kind = BROKEN[name]
    root = make(*(f"{IN}/{SORT}/0000{i}" for i in range(3)))
    broken = root / IN / SORT / "00001" / file
    spoil(broken)
    samples = vbvr(root)
    found, warned = read_all(samples)
    assert [s.id for s in found] == ["00000", "00002"] and len(samples) == 3
    (skipped,) = samples.summary().skipped
    assert (skipped.kind, skipped.file, skipped.entry.id) == (kind, broken, "00001")
    (message,) = warned
    assert message.startswith(f"skipped {IN}/{SORT}/00001: {broken}: {kind}")
    with pytest.raises(TaskError, match=kind):
        list(vbvr(root, strict=True))
    with pytest.raises(TaskError, match=kind):
        samples[1]


def test_messages_say_what_to_do(tmp_path):
    (tmp_path / "a.png").write_bytes(POINTER)
    with pytest.raises(BrokenFileError, match=r"a\.png: git-LFS pointer .*Run `git lfs pull`"):
        read_image(tmp_path / "a.png")
    (tmp_path / "prompt.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(BrokenFileError, match=r"prompt\.txt: prompt is not UTF-8 .*Save it as UTF-8"):
        read_prompt(tmp_path / "prompt.txt")


def test_truncated_images_are_refused_even_where_pil_was_told_to_fill_them_up(
    template, tmp_path, monkeypatch
):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "first_frame.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(BrokenFileError, match="truncated image"):
        read_image(tmp_path / "first_frame.png")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_the_summary_counts_by_reason_and_prints(make):
    root = make(*(f"{IN}/{SORT}/0000{i}" for i in range(4)))
    for i in (0, 2):
        (root / IN / SORT / f"0000{i}" / "ground_truth.mp4").write_bytes(POINTER)
    (root / IN / SORT / "00003" / "prompt.txt").unlink()
    samples = vbvr(root)
    assert str(samples.summary()).startswith("4 samples: 0 read, 0 skipped, 4 not read yet")
    read_all(samples)
    read_all(samples)  # a second time counts nothing twice
    summary = samples.summary()
    assert (summary.listed, summary.read, summary.kinds) == (4, 1, {"git-LFS pointer": 2, "missing file": 1})
    lines = str(summary).splitlines()
    assert lines[:3] == [
        "4 samples: 1 read, 3 skipped, 0 not read yet",
        "  2 x git-LFS pointer",
        "  1 x missing file",
    ]
    assert f"{IN}/{SORT}/00003: {root / IN / SORT / '00003' / 'prompt.txt'}: missing file" in str(summary)


def test_a_repaired_sample_is_no_longer_skipped(make, template):
    root = make(f"{IN}/{SORT}/00000")
    (root / IN / SORT / "00000" / "prompt.txt").unlink()
    samples = vbvr(root)
    assert read_all(samples)[0] == []
    shutil.copy(template / "prompt.txt", root / IN / SORT / "00000")
    assert len(read_all(samples)[0]) == 1 and samples.summary().kinds == {}


# Finding samples


def test_listing_opens_no_file_and_iterating_opens_one_sample_at_a_time(make, monkeypatch):
    root = make(*(f"{IN}/{SORT}/0000{i}" for i in range(3)))
    (root / "VBVR-Bench.json").write_text("[]")
    opened = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: (opened.append(self), real(self, *a, **k))[1])
    samples = vbvr(root)
    assert len(samples) == 3 and "3 samples of 1 tasks" in repr(samples)
    assert [e.label for e in samples.entries] == [f"{IN}/{SORT}/0000{i}" for i in range(3)]
    assert opened == []
    one = iter(samples)
    assert opened == []
    next(one)
    assert {p.parent.name for p in opened} == {"00000"}
    next(one)
    assert {p.parent.name for p in opened} == {"00000", "00001"}


def test_numbers_sort_as_numbers(make):
    tasks = [
        "G-2_a_data-generator",
        "G-10_a_data-generator",
        "G-131_a_data-generator",
        "O-2_a_data-generator",
    ]
    root = make(*(f"{IN}/{t}/00000" for t in reversed(tasks)), f"{IN}/{tasks[0]}/2", f"{IN}/{tasks[0]}/10")
    found = [(e.task, e.id) for e in vbvr(root).entries]
    assert found == [
        (tasks[0], "00000"),
        (tasks[0], "2"),
        (tasks[0], "10"),
        *((t, "00000") for t in tasks[1:]),
    ]
    assert sorted(["a²", "a10", "a2"], key=by_number)[:2] == ["a2", "a10"]


def test_stray_and_hidden_things_and_empty_folders_are_ignored(make, template):
    root = make(f"{IN}/{SORT}/00000", f"{IN}/{SORT}/.00001", f"{IN}/{SORT}/00000 copy", f"{IN}/.old/00000")
    shutil.copytree(template, root / ".cache" / SORT / "00000")
    for folder in (
        f"{IN}/{SORT}/00007",
        f"{IN}/G-5_empty_data-generator",
        OUT,
        "notes",
        f"{IN}/{SORT}/00008",
    ):
        (root / folder).mkdir()
    (root / IN / SORT / "00008" / ".DS_Store").write_bytes(b"x")
    for file in ("README.md", f"{IN}/tasks.txt", f"{IN}/{SORT}/00009", f"{IN}/{SORT}/00000/Thumbs.db"):
        (root / file).write_text("x")
    with pytest.warns(UserWarning, match="2 empty folders|holds no samples"):
        samples = vbvr(root)
    assert [e.label for e in samples.entries] == [f"{IN}/{SORT}/00000"]
    assert read_all(samples)[1] == []


def test_splits_and_tasks_are_chosen_by_name(make):
    labels = [
        f"{IN}/{SORT}/00000",
        f"{IN}/G-31_x_data-generator/00000",
        f"{OUT}/{MAZE}/00000",
        f"{OUT}/{MAZE}/00001",
    ]
    root = make(*labels)

    def found(**asked):
        return [e.label for e in vbvr(root, **asked).entries]

    assert found() == labels
    assert found(split=OUT) == labels[2:] and found(split=[OUT, IN]) == labels
    assert found(tasks="G-3") == labels[:1] == found(tasks=[SORT])  # G-31 is another task
    assert found(tasks="G-3,O-39_maze") == [labels[0], *labels[2:]]
    assert found(split=OUT, max_samples=1) == labels[2:3] and found(max_samples=99) == labels


@pytest.mark.parametrize(
    "asked, said",
    [
        (
            {"split": "In_Domain"},
            f"'In_Domain' is not here, or has no samples; there are {IN}, {OUT}. Did you mean '{IN}'",
        ),
        ({"split": "out-of-domain"}, f"Did you mean '{OUT}'"),
        ({"split": "train"}, f"'train' is not here, or has no samples; there are {IN}, {OUT}."),
        ({"tasks": "G-3_stabel_sort"}, f"no task 'G-3_stabel_sort' in {IN}, {OUT}. Did you mean '{SORT}'"),
        ({"tasks": "maze", "split": OUT}, f"no task 'maze' in {OUT}. Did you mean '{MAZE}'"),
        ({"tasks": "O-39", "split": IN}, f"no task 'O-39' in {IN}. It is in split '{OUT}'"),
        ({"tasks": ["G-3", "Z"]}, f"no task 'Z' in {IN}, {OUT}. There are {SORT}, {MAZE}"),
        ({"max_samples": 0}, "max_samples=0): give at least 1"),
        ({"frames_multiple": 0}, "frames_multiple=0): give at least 1"),
        ({"size_multiple": -16}, "size_multiple=-16): give at least 1"),
    ],
)
def test_what_is_misspelt_gets_a_hint(make, asked, said):
    root = make(f"{IN}/{SORT}/00000", f"{OUT}/{MAZE}/00000")
    with pytest.raises(TaskError) as error:
        vbvr(root, **asked)
    assert said in str(error.value)


def test_a_wrong_root_gets_a_hint(make, template, tmp_path):
    root = make(f"{IN}/{SORT}/00000")
    for given, said in (
        (root / IN / SORT / "00000", "the folder of one sample; give the benchmark"),
        (root / IN / SORT, "the folder of one task; give the benchmark"),
        (root / IN, f"the folder of one split; give vbvr({str(root)!r}, split='{IN}')"),
        (tmp_path, f"one folder further down: vbvr({str(root)!r})"),
        (tmp_path / "bnech", "there is no such folder. Did you mean 'bench'?"),
        (tmp_path / "a" / "b", "there is no such folder."),
    ):
        with pytest.raises(TaskError) as error:
            vbvr(given)
        assert said in str(error.value)
    (tmp_path / "new").mkdir()
    with pytest.raises(TaskError, match=r"no samples here. Expected: ROOT/In-Domain_50/.*hf download"):
        vbvr(tmp_path / "new")
    (tmp_path / "new" / "VBVR-Pro-Bench-Video.tar.gz").touch()
    with pytest.raises(TaskError, match="still packed: unpack it"):
        vbvr(tmp_path / "new")


@pytest.mark.parametrize("above", ["", "questions", f"questions/{SORT}"])
def test_the_raw_layout_of_the_generators_is_named(make, above):
    """https://github.com/Video-Reason/VBVR-DataFactory, README: questions/<task>/<name>_task/<name>_00000000."""
    make(f"questions/{SORT}/stable_sort_task/stable_sort_00000000")
    root = make() / above
    with pytest.raises(
        TaskError, match=r"stable_sort_task is in the data generators' raw layout .*Move each"
    ):
        vbvr(root)


# The manifest


def manifest(root, *labels, key="first_frame_path"):
    text = json.dumps([{"id": i, "prompt": "x", key: f"{x}/first_frame.png"} for i, x in enumerate(labels)])
    (root / "VBVR-Bench.json").write_text(text)


@pytest.mark.parametrize("key", ["first_frame_path", "prompt_path", "ground_truth_video_path"])
def test_samples_that_only_the_manifest_has_are_reported(make, key):
    root = make(f"{IN}/{SORT}/00000")
    manifest(root, f"{IN}/{SORT}/00000", f"{IN}/{SORT}/00001", f"{OUT}/{MAZE}/00000", key=key)
    samples = vbvr(root)
    assert len(read_all(samples)[0]) == 1
    assert samples.missing == ((IN, SORT, "00001"), (OUT, MAZE, "00000")) and not samples.summary().notes
    assert f"1 samples of {OUT} are in the manifest and not here: {MAZE}/00000" in str(samples.summary())
    assert vbvr(root, split=IN).missing == ((IN, SORT, "00001"),)
    assert vbvr(root, tasks="G-3").missing == ((IN, SORT, "00001"),)
    with pytest.raises(TaskError, match=r"strict=True\): 2 samples of the manifest have no folder here"):
        list(vbvr(root, strict=True))


@pytest.mark.parametrize(
    "text", ["{", '{"tasks": []}', "[1]", '[{"id": 1}]', '[{"prompt_path": "a/b"}]', POINTER.decode()]
)
def test_a_manifest_of_another_form_is_left_aside_with_a_note(make, text):
    root = make(f"{IN}/{SORT}/00000")
    (root / "VBVR-Bench.json").write_text(text)
    samples = vbvr(root, strict=True)
    assert len(list(samples)) == 1
    (note,) = samples.summary().notes
    assert note.startswith("manifest not used") and str(samples.summary()).endswith(note)


def test_without_a_manifest_the_summary_says_what_it_cannot_know(make):
    (note,) = vbvr(make(f"{IN}/{SORT}/00000")).summary().notes
    assert note.startswith("no VBVR-Bench.json")
