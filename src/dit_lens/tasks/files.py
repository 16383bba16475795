"""A file that is read whole, or refused with its name, the reason and a remedy."""

from __future__ import annotations

from pathlib import Path

from dit_lens.errors import TaskError

LFS = b"version https://git-lfs.github.com/spec/"
AGAIN = "Copy or download it again."
PULL = "Run `git lfs pull` in its repository, or download it again with `hf download`."


class BrokenFileError(TaskError):
    """A file that cannot be used.

    Attributes:
        path: the file.
        kind: what is wrong, in a few words that are the same for all files so broken.
    """

    def __init__(self, path: Path, kind: str, detail: str = "", remedy: str = AGAIN) -> None:
        self.path, self.kind = path, kind
        super().__init__(f"{path}: {kind}{f' ({detail})' if detail else ''}. {remedy}")


def check(path: Path) -> None:
    """Refuse a file that is missing, empty, or a git-LFS pointer.

    Raises:
        BrokenFileError: it is one of these, or cannot be read.
    """
    if not path.is_file():
        raise BrokenFileError(path, "missing file")
    try:
        with path.open("rb") as file:
            head = file.read(len(LFS))
    except OSError as error:
        raise BrokenFileError(path, "unreadable file", str(error), "Check its permissions.") from error
    if not head:
        raise BrokenFileError(path, "empty file")
    if head == LFS:
        raise BrokenFileError(path, "git-LFS pointer", "the file itself was not fetched", PULL)
