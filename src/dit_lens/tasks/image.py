"""Pictures as a model takes them: 8-bit RGB, the way up that the camera says, on white where they are transparent.

A picture comes from a file, from PIL in any mode, or as an array. What its values mean has to be known: a float
picture, or one of 32-bit integers, is refused, because its range would have to be guessed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from dit_lens.errors import TaskError
from dit_lens.tasks.files import BrokenFileError, check

SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
"""PIL opens their 16-bit pictures in the mode of 32-bit integers, with values from 0 to 65535."""

_ORIENTATION = 0x0112
_REMEDY = "give 8 bits, as Image.fromarray(values.astype('uint8')) does once they are scaled to 0 to 255"


def as_rgb(picture: Any, what: str = "image") -> Image.Image:
    """Return a picture as 8-bit RGB.

    Args:
        picture: a PIL image of any mode; an array [height, width] or [height, width, channel] of uint8, uint16 or bool,
            with 1 (grey), 2 (grey, alpha), 3 (rgb) or 4 (rgb, alpha) channels; or the path of a file.
        what: whose picture it is, for errors.

    Returns:
        A picture in memory, with nothing of the file's metadata: EXIF's orientation is carried out, alpha is
        composited on white, 16-bit values are divided by 257 and rounded. 16-bit colour files are cut to their high
        byte by PIL as it reads, which is at most one level off.

    Raises:
        TaskError: what the values mean is not known, or PIL cannot read them.
    """
    if isinstance(picture, str | os.PathLike):
        return read_image(Path(picture))
    if isinstance(picture, Image.Image):
        is_plain = type(picture) is Image.Image and picture.mode == "RGB" and not picture.info
        if is_plain and picture.width * picture.height and not picture.getexif():
            return picture
        return _checked(picture, what)
    if hasattr(picture, "detach"):
        picture = picture.detach().cpu().numpy()
    if not isinstance(picture, np.ndarray):
        raise TaskError(
            f"{what}: an image is a PIL.Image, an array or a file; this is a {type(picture).__name__}."
        )
    return _checked(_from_array(picture, what), what)


def read_image(path: Path) -> Image.Image:
    """Return the picture in a file as 8-bit RGB; see `as_rgb`.

    Raises:
        BrokenFileError: no picture, not all of it, or one whose values are not known.
    """
    check(path)
    try:
        with Image.open(path) as file:
            file.verify()  # also what comes after the pixels: a file cut there is still not all here
        with Image.open(path) as file:
            _load_whole(file)
            return _to_rgb(file)
    except _UnknownRangeError as error:
        raise BrokenFileError(path, "image of unknown range", str(error), "Convert it.") from error
    except Exception as error:  # a decoder of damaged bytes raises anything: SyntaxError, struct.error, ...
        kind = "truncated image" if _is_image(path) else "not an image"
        raise BrokenFileError(path, kind, f"{type(error).__name__}: {error}") from error


class _UnknownRangeError(Exception):
    """What the values of a picture mean is not known; says why."""


def _checked(image: Image.Image, what: str) -> Image.Image:
    """Return a picture in memory as RGB, or say whose picture it is that cannot be."""
    if not image.width * image.height:
        raise TaskError(f"{what}: the image has {image.height} x {image.width} pixels; give at least one.")
    try:
        _load_whole(image)
        return _to_rgb(image)
    except Exception as error:  # as for files
        raise TaskError(f"{what}: the image of mode {image.mode} cannot be read as RGB: {error}.") from error


def _load_whole(image: Image.Image) -> None:
    """Load all pixels, also where someone told PIL to fill up truncated files with grey."""
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        image.load()
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _is_image(path: Path) -> bool:
    try:
        Image.open(path).close()
    except Exception:
        return False
    return True


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise _UnknownRangeError(f"float values, whose range is not known; {_REMEDY}")
    if image.mode == "I" and image.format not in SIXTEEN_BIT_FORMATS:
        raise _UnknownRangeError(f"32-bit integers, whose range is not known; {_REMEDY}")
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # PIL's own conversion would clip all above 255 to white
        return _from_16_bit(image)
    if image.mode == "La":
        image = image.convert("LA")  # PIL has no shorter way
    if image.has_transparency_data:  # an alpha channel, or one palette entry or colour that is transparent
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    out = image.convert("RGB")
    if out is image or type(out) is not Image.Image:
        out = out.copy()
    out.info = {}  # or two pictures of equal pixels would compare as different
    return out


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = _to_8_bit(values)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")


def _to_8_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    return ((values.astype(np.int64) + 128) // 257).clip(0, 255).astype(np.uint8)


def _from_array(values: NDArray[Any], what: str) -> Image.Image:
    """Return an array as a picture of PIL's.

    Raises:
        TaskError: it is no [height, width] or [height, width, channel] of a type whose range is known.
    """
    shape, channels = values.shape, values.shape[2] if values.ndim == 3 else 1
    if values.ndim not in (2, 3) or channels not in (1, 2, 3, 4) or not values.size:
        raise TaskError(
            f"{what}: an image has the dimensions [height, width] or [height, width, channel] with 1 to 4 channels; this "
            f"array has the shape {shape}."
        )
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    elif values.dtype.kind == "u" and values.dtype.itemsize == 2:
        values = _to_8_bit(values)
    elif values.dtype != np.uint8:
        raise TaskError(f"{what}: the range of an image of {values.dtype} is not known; {_REMEDY}.")
    values = np.ascontiguousarray(values[..., 0] if values.ndim == 3 and channels == 1 else values)
    return Image.fromarray(values)
