from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dit_lens.errors import DitLensError
from dit_lens.plot import read_video, write_video
from dit_lens.video import as_video


def test_round_trip_of_a_small_video(video: np.ndarray, tmp_path: Path) -> None:
    path = write_video(video, tmp_path / "new" / "a.mp4", fps=8)
    back = read_video(path)
    assert back.shape == (9, 48 * 6, 64 * 6, 3) and back.dtype == np.uint8
    small = back.reshape(9, 48, 6, 64, 6, 3).mean((2, 4))
    assert np.abs(small - video).mean() < 4


def test_large_and_odd_sizes(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 301).astype(np.uint8)
    frames = np.broadcast_to(ramp[None, None, :, None], (3, 257, 301, 3))
    back = read_video(write_video([Image.fromarray(f) for f in frames], tmp_path / "odd.mp4"))
    assert back.shape == (3, 258, 302, 3)
    assert np.abs(back[:, :257, :301].astype(int) - frames).mean() < 4


def test_the_file_is_what_browsers_play(video: np.ndarray, tmp_path: Path) -> None:
    import av

    with av.open(str(write_video(video, tmp_path / "a.mp4", fps=5))) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.pix_fmt == "yuv420p"
        assert stream.average_rate == 5 and stream.frames == 9


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DitLensError, match="found none"):
        write_video([], tmp_path / "a.mp4")
    with pytest.raises(DitLensError, match="float64"):
        as_video(np.zeros((2, 4, 4, 3)))
    with pytest.raises(DitLensError, match="no file"):
        read_video(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(DitLensError, match="cannot be read as a video"):
        read_video(tmp_path / "text.mp4")


@pytest.mark.parametrize("speakers", [1, 2])
def test_sound_is_kept_with_the_video(video: np.ndarray, tmp_path: Path, speakers: int) -> None:
    rate, seconds = 24_000, len(video) / 8
    time = np.arange(round(rate * seconds)) / rate
    wave = np.stack([0.5 * np.sin(2 * np.pi * hertz * time) for hertz in (440, 880)[:speakers]])
    path = write_video(video, tmp_path / "a.mp4", fps=8, sound=(wave.astype(np.float32), rate))
    assert read_video(path).shape[0] == len(video)
    with av.open(str(path)) as file:
        (stream,) = file.streams.audio
        assert (stream.rate, stream.codec_context.layout.nb_channels) == (rate, speakers)
        heard = np.concatenate([f.to_ndarray() for f in file.decode(audio=0)], 1)
    assert abs(heard.shape[1] / rate - seconds) < 0.1
    for own, hertz in zip(heard, (440, 880), strict=False):
        spectrum = np.abs(np.fft.rfft(own[4000:20000]))
        assert (
            abs(int(spectrum.argmax()) * rate / 16000 - hertz) < 3
            and 0.4 < np.abs(own[4000:20000]).max() < 0.6
        )


@pytest.mark.parametrize("shape", [(100,), (3, 100)])
def test_sound_of_another_shape_is_refused(video: np.ndarray, tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DitLensError, match=r"one or two speakers; this is \("):
        write_video(video, tmp_path / "a.mp4", sound=(np.zeros(shape, np.float32), 24_000))
