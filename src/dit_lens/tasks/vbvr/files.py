"""The files of one sample, each read whole or refused with a reason: prompt, length of the video.

A benchmark folder is copied, synchronised and unpacked many times over; a file that arrived in part must not
become a sample that only looks strange. What is wrong with a file is a `BrokenFileError`: a `TaskError` that also
knows its kind, so that a summary can count. Pictures are read by `dit_lens.tasks.image`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dit_lens.tasks.files import BrokenFileError, check

FILES = ("prompt.txt", "first_frame.png", "final_frame.png", "ground_truth.mp4")
"""What the folder of a sample holds. The final frame is not shown to a model, but the evaluator judges by it."""


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
