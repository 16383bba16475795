"""Names and places on the file system: absolute, never too long, never outside the folder they belong to."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from dit_lens.errors import StoreError

PARTIAL = ".partial-"
"""Between the name of a run and a few digits: the folder in which a new run of this name is written."""

REPLACED = ".replaced-"
"""Between the name of a run and a few digits: the folder of an old run that a new one replaces."""

NAME_BYTES = 255
"""The longest file name that common file systems take."""
_HASH_DIGITS = 10


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a `Path` has one slash; a single letter is a drive


def absolute(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` expanded that means the same folder after a `chdir`.

    Raises:
        StoreError: If it is a URL, or begins with the home of a user who is not known.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        raise StoreError(f"store={path!r} is no folder: give a path, such as 'runs/'")
    if _URL.match(text):
        raise StoreError(
            f"{text!r} is a URL, and a store is a local folder: give a path, of a mounted or a copied folder"
        )
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise StoreError(f"{os.fspath(path)!r}: {error}; give the folder itself") from error


_ASIDE = re.compile(rf"(.+)(?:{re.escape(PARTIAL)}|{re.escape(REPLACED)})[0-9a-f]{{8}}", re.DOTALL)


def place_of(name: str) -> str | None:
    """Return the name of the run beside whose place a folder stands; None for a folder that stands beside none."""
    match = _ASIDE.fullmatch(name)
    return match and match[1]


def short(name: str, limit: int = NAME_BYTES) -> str:
    """Return a name of at most `limit` bytes: a longer one is cut, and ends in a hash of the whole."""
    data = os.fsencode(name) if os.name == "posix" else name.encode("utf-8", "surrogatepass")
    if len(data) <= limit:
        return name
    digest = hashlib.sha256(data).hexdigest()[:_HASH_DIGITS]
    return cut(name, limit - 1 - len(digest)) + "-" + digest


def cut(text: str, limit: int) -> str:
    """Return the longest beginning of a text that has at most `limit` bytes as UTF-8."""
    return text.encode("utf-8", "replace")[: max(0, limit)].decode("utf-8", "ignore")


def inside(root: str | os.PathLike[str], *parts: str) -> Path:
    """Return a path below `root` made of names that may come from anywhere, such as the id of a sample.

    A part may hold "/" and then stands for several folders. Whatever would lead out of `root` is renamed:
    ".." becomes "__", and an empty name "_".
    """
    path = Path(root)
    for part in parts:
        for name in part.replace("\\", "/").strip("/").split("/"):
            safe = "".join("_" if c in '\0:*?"<>|' or ord(c) < 32 else c for c in name)
            safe = safe.replace(".", "_") if set(safe) <= {"."} else safe
            path /= short(safe or "_")
    return path
