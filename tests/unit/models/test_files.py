"""A model's files are found and checked without torch; what is missing is named with the command that gets it."""

import json
import shutil
import subprocess
import sys

import pytest

import dit_lens as dl
from dit_lens.models import catalog, files
from dit_lens.models.catalog import Part

WEIGHTS = Part("DiT", "Org/Model", "dit/diffusion_pytorch_model*.safetensors")


def write(file, size=40, cut=0):
    """Write a safetensors file with one tensor of so many bytes, less what is cut off its end."""
    head = json.dumps(
        {"__metadata__": {"a": "b"}, "w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = len(head).to_bytes(8, "little") + head.encode() + bytes(size)
    file.write_bytes(whole[: len(whole) - cut])
    return file


def shards(root, count, total):
    folder = root / "Org/Model/dit"
    return [
        write(folder / f"diffusion_pytorch_model-{n:05d}-of-{total:05d}.safetensors")
        for n in range(1, count + 1)
    ]


def test_all_shards_of_a_part_are_found_in_order(tmp_path):
    wanted = shards(tmp_path, 12, 12)
    assert files.find_all("model", tmp_path, [WEIGHTS]) == [wanted]


def test_another_form_of_the_same_file_will_do(tmp_path):
    part = Part("VAE", "Org/Model", "VAE.pth", (("Org/Converted", "VAE.safetensors"),))
    wanted = write(tmp_path / "Org/Converted/VAE.safetensors")
    assert files.find_all("model", tmp_path, [part]) == [[wanted]]


BROKEN = {
    "missing shards": (lambda root: shards(root, 4, 6), r"2 of 6 shards are missing.*\[5, 6\]"),
    "empty": (lambda root: shards(root, 1, 1)[0].write_bytes(b""), "is empty"),
    "pointer": (
        lambda root: shards(root, 1, 1)[0].write_bytes(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0"
        ),
        "git-LFS pointer",
    ),
    "cut off": (
        lambda root: write(shards(root, 1, 1)[0], cut=7),
        r"has \d+ bytes and should have \d+: its download stopped",
    ),
    "no head": (lambda root: shards(root, 1, 1)[0].write_bytes(b"x" * 100), "not a safetensors file"),
    "nothing": (lambda root: None, "not in .*Org/Model"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_file_is_said(tmp_path, name):
    spoil, message = BROKEN[name]
    spoil(tmp_path)
    with pytest.raises(dl.ModelError, match=message):
        files.find_all("model", tmp_path, [WEIGHTS])


def test_everything_that_is_missing_is_named_at_once_with_a_command_for_each_repository(tmp_path):
    parts = [
        WEIGHTS,
        Part("VAE", "Org/Model", "VAE.pth"),
        Part("tokenizer", "Org/Words", "google/umt5-xxl/"),
        Part("tokenizer", "Org/Gemma", ""),
    ]
    with pytest.raises(dl.ModelError) as caught:
        files.find_all("model", tmp_path, parts)
    text = str(caught.value)
    assert "model: 4 of 4 parts cannot be loaded" in text and "VAE (Org/Model: VAE.pth)" in text
    commands = [line.strip() for line in text.splitlines() if "hf download" in line]
    assert commands == [
        f'hf download Org/Model --local-dir "{tmp_path}/Org/Model" --include "{WEIGHTS.pattern}" --include "VAE.pth"',
        f'hf download Org/Words --local-dir "{tmp_path}/Org/Words" --include "google/umt5-xxl/*"',
        f'hf download Org/Gemma --local-dir "{tmp_path}/Org/Gemma" --include "*.json" --include "*.model"',
    ]


@pytest.mark.parametrize("name", catalog.MODELS)
def test_a_missing_model_is_reported_before_anything_heavy_is_imported(tmp_path, name):
    code = f"""
import sys, dit_lens as dl
try:
    dl.load({name!r}, model_root={str(tmp_path)!r})
except dl.ModelError as error:
    print(error)
print([m for m in ("torch", "diffsynth", "transformers", "nnsight") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    *message, heavy = done.stdout.strip().splitlines()
    assert heavy == "[]", done.stderr
    repos = {part.repo for part in catalog.MODELS[name].parts}
    assert all(any(repo in line and "hf download" in line for line in message) for repo in repos)


def test_an_identity_follows_the_content_and_not_the_name(tmp_path):
    one, other = write(tmp_path / "a/one.safetensors"), write(tmp_path / "b/other.safetensors")
    assert files.identity(one) == files.identity(other)
    assert files.identity(one).startswith("sha256:") and files.identity(one)[7:] == files.sha256(one)
    other.write_bytes(other.read_bytes()[:-1] + b"\1")
    assert files.identity(one) != files.identity(other)


def test_a_large_file_is_told_apart_by_size_head_and_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WHOLE", 1 << 20)
    large = tmp_path / "large.pth"
    with large.open("wb") as f:
        f.truncate(1 << 25)  # sparse: no disk is used
    before = files.identity(large)
    assert before.startswith("sampled:")
    for place in (0, (1 << 20) - 1, (1 << 25) - 1):  # head and tail
        copy = shutil.copy(large, tmp_path / "copy.pth")
        with open(copy, "r+b") as f:
            f.seek(place)
            f.write(b"\1")
        assert files.identity(tmp_path / "copy.pth") != before
    with large.open("ab") as f:
        f.write(b"\0")
    assert files.identity(large) != before
