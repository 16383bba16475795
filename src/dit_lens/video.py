"""Videos as files: mp4 that every player shows, and back to arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_lens.errors import DitLensError

SMALLEST = 256
"""Players show a video of fewer pixels as a stamp, or not at all."""
X264 = {"preset": "veryfast", "crf": "18"}
"""Six times faster than x264's default on a dozen frames, and little larger."""
LAYOUTS = {1: "mono", 2: "stereo"}
"""By number of speakers."""


def as_video(frames: Sequence[Any] | NDArray[np.uint8], caller: str = "as_video") -> NDArray[np.uint8]:
    """Return frames as one array.

    Args:
        frames: PIL images or uint8 arrays [height, width, rgb], all of one size; or [time, height, width,
            rgb].
        caller: the name for error messages.

    Returns:
        [time, height, width, rgb], uint8.

    Raises:
        DitLensError: there are no frames, they differ in size, or they are not 8-bit RGB.
    """
    if isinstance(frames, str | Mapping) or not isinstance(frames, Iterable):
        raise DitLensError(f"{caller}: frames are a sequence of pictures; this is {type(frames).__name__}.")
    if hasattr(frames, "shape"):
        require_frames(tuple(frames.shape), 4, caller)
    images = [np.asarray(f.convert("RGB") if hasattr(f, "convert") else f) for f in frames]
    shapes = sorted({i.shape for i in images})
    if (
        len(shapes) != 1
        or len(shapes[0]) != 3
        or shapes[0][2] != 3
        or any(i.dtype != np.uint8 for i in images)
    ):
        kinds = ", ".join(sorted({f"{i.dtype} {i.shape}" for i in images})) or "none"
        raise DitLensError(
            f"{caller}: frames must be uint8 [height, width, rgb], all of one size; found {kinds}."
        )
    return np.stack(images)


def require_frames(shape: tuple[int, ...], ndim: int, caller: str) -> None:
    """Refuse an array that is no video, before it is gone through.

    Raises:
        DitLensError: it has another number of dimensions, or no red, green and blue at the end.
    """
    words = ["row", "time", "height", "width", "rgb"][-ndim:]
    if len(shape) != ndim or shape[-1] != 3:
        raise DitLensError(
            f"{caller}: frames are uint8 [{', '.join(words)}]; this array has the shape {list(shape)}. Latents are decoded "
            "first, by lens.decode."
        )


def write_video(
    frames: Sequence[Any] | NDArray[np.uint8],
    path: str | Path,
    fps: float = 8,
    sound: tuple[NDArray[np.float32], float] | None = None,
) -> Path:
    """Write an mp4 (H.264, yuv420p, and AAC where there is sound), which browsers and players show.

    Videos with a side under 256 pixels are enlarged by a whole number, each pixel a square, until both sides
    reach it; an odd side is padded by one pixel, as the format needs even ones. H.264 loses a little; keep
    arrays for measurements.

    Args:
        frames: PIL images or uint8 [time, height, width, rgb].
        path: where to write; folders are made.
        fps: frames per second.
        sound: waveform [speaker, audio_time] in [-1, 1], one or two speakers, and its samples per second.

    Returns:
        The path.

    Raises:
        DitLensError: there are no frames, or they are not 8-bit RGB of one size; or the sound is no such waveform.
    """
    import av

    video = as_video(frames, "write_video")
    scale = max(1, ceil(SMALLEST / min(video.shape[1:3])))
    height, width = (n * scale + n * scale % 2 for n in video.shape[1:3])
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options=X264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Both streams are known before the first packet: the header names them.
        add_sound = None if sound is None else _sound(file, *sound)
        for frame in video:  # one at a time, so that only one enlarged frame is held
            large = frame.repeat(scale, 0).repeat(scale, 1)
            odd = (height - large.shape[0], width - large.shape[1])
            large = np.pad(large, [*((0, n) for n in odd), (0, 0)], mode="edge")
            file.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
        file.mux(stream.encode())
        if add_sound is not None:
            add_sound()
    return path


def _sound(file: Any, waveform: NDArray[np.float32], rate: float) -> Callable[[], None]:
    """Add a sound stream to an open file; return what writes it."""
    import av

    wave = np.ascontiguousarray(waveform, np.float32)
    if wave.ndim != 2 or wave.shape[0] not in LAYOUTS or not np.isfinite(wave).all():
        raise DitLensError(
            f"write_video: sound is finite [speaker, audio_time] with one or two speakers; this is {wave.shape}."
        )
    stream = file.add_stream("aac", rate=round(rate), layout=LAYOUTS[len(wave)])

    def write() -> None:
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout=LAYOUTS[len(wave)])
        frame.sample_rate = round(rate)
        file.mux(stream.encode(frame))  # the encoder cuts it into frames of its own size
        file.mux(stream.encode())

    return write


def read_video(path: str | Path) -> NDArray[np.uint8]:
    """Read a video file: [time, height, width, rgb], uint8, at the size that the file has.

    Raises:
        DitLensError: there is no such file, or it is not a video.
    """
    import av

    if not Path(path).is_file():
        raise DitLensError(f"read_video: there is no file {path}.")
    try:
        with av.open(str(path)) as file:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    except (av.FFmpegError, ValueError, IndexError) as error:
        raise DitLensError(f"read_video: {path} cannot be read as a video: {error}") from error
