"""A model's files in a local folder: found, checked to be whole, and told apart. Neither torch nor diffsynth.

A folder holds repositories as the hubs name them: `ROOT/Wan-AI/Wan2.2-I2V-A14B/...`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from dit_lens.errors import ModelError
from dit_lens.models.catalog import Part

WHOLE = 1 << 26
"""Files up to this many bytes are hashed whole."""
BLOCKS, BLOCK = 256, 1 << 16
SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")


def find_all(name: str, root: Path, parts: Sequence[Part]) -> list[list[Path]]:
    """Return the files of every part of a model.

    Raises:
        ModelError: it names every part that is missing or broken, and the commands that get them.
    """
    files_of_parts, wrong = [], []
    for part in parts:
        files, problem = _look(root, part)
        files_of_parts.append(files)
        if problem:
            wrong.append((part, problem))
    if wrong:
        lines = [f"  {part.role} ({part.repo}: {part.pattern or 'all of it'}): {why}" for part, why in wrong]
        raise ModelError(
            "\n".join(
                [
                    f"{name}: {len(wrong)} of {len(parts)} parts cannot be loaded from {root}:",
                    *lines,
                    "Get them:",
                    *_commands(root, [part for part, _ in wrong]),
                ]
            )
        )
    return files_of_parts


def _look(root: Path, part: Part) -> tuple[list[Path], str]:
    """Return the files of a part, and what is wrong with them: "" where nothing is."""
    problem = f"not in {root / part.repo}"
    for repo, pattern in ((part.repo, part.pattern), *part.also):
        folder = root / repo
        if pattern == "" or pattern.endswith("/"):
            if (folder / pattern / "tokenizer_config.json").is_file():
                return [folder / pattern], ""
        elif (files := sorted(folder.glob(pattern))) and not (problem := _broken(files)):
            return files, ""
    return [], problem


def _broken(files: Sequence[Path]) -> str:
    """Say what is wrong with files that belong together."""
    for file in files:
        if why := broken(file):
            return f"{file} {why}"
    shards = [match for file in files if (match := SHARD.search(file.name))]
    if shards:
        present, total = {int(m[1]) for m in shards}, int(shards[0][2])
        if missing := sorted(set(range(1, total + 1)) - present):
            return f"{len(missing)} of {total} shards are missing in {files[0].parent}: {missing}"
    return ""


def broken(file: Path) -> str:
    """Say what is wrong with a file of weights, without reading more than its head: "" where nothing is seen."""
    size = file.stat().st_size
    if size == 0:
        return "is empty"
    with file.open("rb") as f:
        if f.read(24).startswith(b"version https://git-lfs"):
            return "is a git-LFS pointer, not the file itself: run `git lfs pull`, or download it"
    if file.suffix == ".safetensors":
        try:
            end = max((entry["data_offsets"][1] for entry in header(file).values()), default=0)
        except (ValueError, KeyError, TypeError):
            return "is not a safetensors file, or its head is cut off"
        whole = 8 + _header_size(file) + end
        if size != whole:
            return f"has {size} bytes and should have {whole}: its download stopped, or it was changed"
    return ""


def _header_size(file: Path) -> int:
    with file.open("rb") as f:
        return int.from_bytes(f.read(8), "little")


def header(file: Path) -> dict[str, dict]:
    """Return what a safetensors file says of its tensors: name to `dtype`, `shape`, `data_offsets`.

    Raises:
        ValueError: it is not a safetensors file.
    """
    return {name: entry for name, entry in _head(file).items() if name != "__metadata__"}


def metadata(file: Path) -> dict[str, str]:
    """Return what its writer says of a safetensors file, beside the tensors.

    Raises:
        ValueError: it is not a safetensors file.
    """
    return dict(_head(file).get("__metadata__", {}))


def _head(file: Path) -> dict[str, dict]:
    size = _header_size(file)
    if not 0 < size <= file.stat().st_size - 8:
        raise ValueError(f"{file} is not a safetensors file")
    with file.open("rb") as f:
        f.seek(8)
        head: dict[str, dict] = json.loads(f.read(size))
    return head


def _commands(root: Path, parts: Sequence[Part]) -> list[str]:
    """Return the commands that get parts, one for each repository."""
    wanted: dict[str, list[str]] = {}
    for part in parts:
        pattern = part.pattern + "*" if part.pattern.endswith("/") else part.pattern or "*"
        if part.pattern == "":  # a tokenizer that stands beside weights
            wanted.setdefault(part.repo, []).extend(["*.json", "*.model"])
        else:
            wanted.setdefault(part.repo, []).append(pattern)
    return [
        f'  hf download {repo} --local-dir "{root / repo}" '
        + " ".join(f'--include "{pattern}"' for pattern in patterns)
        for repo, patterns in wanted.items()
    ]


def identity(file: Path) -> str:
    """Tell a file of weights from others, in seconds also where it has tens of gigabytes.

    Returns:
        `sha256:...` of a file of up to 64 MiB. Of a larger one `sampled:...`, the SHA-256 of its size, its
        first mebibyte (which holds the names and shapes of safetensors) and 256 blocks of 64 KiB at even
        distances: two checkpoints that differ in every tensor differ here; a change of a few values between
        the blocks is not seen.
    """
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as f:
        if size <= WHOLE:
            digest.update(f.read())
            return f"sha256:{digest.hexdigest()}"
        digest.update(size.to_bytes(8, "little") + f.read(1 << 20))
        for n in range(BLOCKS):
            f.seek((size - BLOCK) * n // (BLOCKS - 1))
            digest.update(f.read(BLOCK))
    return f"sampled:{digest.hexdigest()}"


def sha256(file: Path) -> str:
    """Return the SHA-256 of a whole file, in hex."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
