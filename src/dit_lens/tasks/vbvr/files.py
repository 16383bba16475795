"""The files of one sample, each read whole or refused with a reason: picture, prompt, length of the video.

A benchmark folder is copied, synchronised and unpacked many times over; a file that arrived in part must not
become a sample that only looks strange. What is wrong with a file is a `BrokenFileError`: a `TaskError` that also
knows its kind, so that a summary can count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from dit_lens.errors import TaskError

FILES = ("prompt.txt", "first_frame.png", "final_frame.png", "ground_truth.mp4")
"""What the folder of a sample holds. The final frame is not shown to a model, but the evaluator judges by it."""

LFS = b"version https://git-lfs.github.com/spec/"
AGAIN = "Copy or download it again."
PULL = "Run `git lfs pull` in the benchmark, or get it with `hf download Video-Reason/VBVR-Bench-Data --repo-type dataset`."


class BrokenFileError(TaskError):
    """A file of a sample that cannot be used.

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


def read_prompt(path: Path) -> str:
    """Return the text of a prompt, without byte-order mark and surrounding blanks, lines ended by newline.

    Raises:
        BrokenFileError: not UTF-8, or blank.
    """
    check(path)
    remedy = "Save it as UTF-8."
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BrokenFileError(path, "prompt is not UTF-8", str(error), remedy) from error
    if "\0" in text:  # UTF-16 of plain English is valid UTF-8, with a zero after every letter
        raise BrokenFileError(path, "prompt is not UTF-8", "it holds zero bytes; is it UTF-16?", remedy)
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise BrokenFileError(path, "empty prompt")
    return text


def read_image(path: Path) -> Image.Image:
    """Return a picture as 8-bit RGB: turned as its EXIF says, on white where it is transparent.

    16-bit grey is divided by 257 and rounded. 16-bit colour is cut to its high byte by PIL as it reads, which
    is at most one level off.

    Raises:
        BrokenFileError: no picture, or not all of it.
    """
    check(path)
    try:
        with Image.open(path) as file:
            file.verify()  # also what comes after the pixels: a file cut there is still not all here
        with Image.open(path) as file:
            _load_whole(file)
            turned = ImageOps.exif_transpose(file)
            return _to_rgb(turned)
    except (
        Exception
    ) as error:  # a decoder given damaged bytes raises anything: SyntaxError, struct.error, ...
        kind = "truncated image" if _is_image(path) else "not an image"
        raise BrokenFileError(path, kind, f"{type(error).__name__}: {error}") from error


def _load_whole(file: ImageFile.ImageFile) -> None:
    """Load all pixels, also where someone told PIL to fill up truncated files with grey."""
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        file.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _is_image(path: Path) -> bool:
    try:
        Image.open(path).close()
    except Exception:
        return False
    return True


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # PIL's own conversion would clip all above 255 to white
        return _from_16_bit(image)
    if image.has_transparency_data:  # an alpha channel, or one palette entry or colour that is transparent
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    out = image.convert("RGB")
    out.info = {}  # or two pictures of equal pixels would compare as different
    return out


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    grey = ((values + 128) // 257).clip(0, 255).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


def count_frames(path: Path) -> int:
    """Count the frames of a video by decoding them: what a container says of itself may be 0, or wrong.

    Raises:
        BrokenFileError: cannot be decoded, is cut short, or has no frames.
    """
    import av

    check(path)
    _check_boxes(path)
    try:
        with av.open(str(path)) as file:
            stream: Any = file.streams.video[0]
            stream.thread_type = "AUTO"
            count = sum(1 for _ in file.decode(stream))
    except Exception as error:  # as for pictures
        raise BrokenFileError(path, "undecodable video", f"{type(error).__name__}: {error}") from error
    if not count:
        raise BrokenFileError(path, "undecodable video", "no frames in it")
    return count


def _check_boxes(path: Path) -> None:
    """Refuse an mp4 whose last box claims more bytes than there are: decoders stop there as at a normal end.

    An mp4 is a row of boxes, each 4 bytes of length and 4 of name; length 1 means 8 more bytes hold it, and
    0 "to the end of the file" (ISO/IEC 14496-12, section 4.2).
    """
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(16)
            length, name = int.from_bytes(head[:4], "big"), head[4:8]
            if (at == 0 and name != b"ftyp") or len(head) < 8:
                return  # another container, or a few bytes of padding: no claim to check
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length == 0:
                return
            if length < 8 or at + length > size:
                said = f"its part {name.decode('latin-1')!r} ends at byte {at + length:,} of {size:,}"
                raise BrokenFileError(path, "truncated video", said)
            at += length
