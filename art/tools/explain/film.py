"""The film of an explanation: every frame of the clip as MP4, some of them as GIF; frames pass one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8
from PIL import Image

from art.data.decoding.frames import ONE_THREAD
from art.data.decoding.video import iterate_frames
from art.data.prepare.reencode import CODEC, check_encoder
from art.tools.explain.explanation import Explanation
from art.tools.explain.layout import Layout, film_layout, small_layout
from art.tools.explain.scene import Scene, legend_lines, views_of
from art.tools.explain.shown import one_thread

_CLOCK = Fraction(1, 90_000)
GIF_WIDTH, GIF_RATE, GIF_FRAMES = 480, 10.0, 150
_COLOURS = 128

Picture = UInt8[np.ndarray, "height width 3"]


def write_film(explanation: Explanation, mp4: Path, gif: Path, *, top_k: int = 5) -> None:
    """Write both in one pass over the clip. Memory does not grow with the clip: the GIF holds at most 150 frames.

    Args:
        mp4: H.264, at most 1280×720, each frame of the clip at its own time.
        gif: 480 pixels wide; 10 frames a second, fewer of a clip longer than 15 s, which plays in that time.
        top_k: classes in the chart.

    Raises:
        art.data.decoding.video.VideoError: the clip cannot be read any more.
        ValueError: there is nothing to draw.
        ModuleNotFoundError: PyAV has no encoder for H.264.

    Examples:
        >>> from pathlib import Path
        >>> from art import load_model
        >>> from art.tools.explain import explain, write_film
        >>> explanation = explain(load_model("runs/motion/checkpoints/last"), "clip.mp4", moments=0)
        >>> write_film(explanation, Path("film.mp4"), Path("film.gif"))
        >>> Path("film.mp4").stat().st_size > 0
        True
    """
    check_encoder()
    e, views = explanation, views_of(explanation)
    scene = Scene(e, layout_of(e), views, top_k)
    few = views[:2]
    small = Scene(e, small_layout(e.size[1] / e.size[0], len(few), e.num_tracklets, GIF_WIDTH), few)
    chosen, wait = _gif_frames(e.times)
    with ExitStack() as open_files:
        open_files.enter_context(one_thread())
        write = open_files.enter_context(_Mp4(mp4, scene.layout.width, scene.layout.height, e.times))
        animation = _Gif()
        for frame, resized in _frames(e.clip):
            write.add(frame, scene.draw(frame, resized(*scene.layout.panels[0][2:])))
            if frame in chosen:
                animation.add(small.draw(frame, resized(*small.layout.panels[0][2:])))
    animation.save(gif, wait)


def layout_of(explanation: Explanation) -> Layout:
    """Where things stand in the film of a clip: the panels in the order of :func:`.scene.views_of`.

    Raises:
        ValueError: there is nothing to draw.
    """
    e, views = explanation, views_of(explanation)
    chart, notes = len(e.beginnings) > 0, len(legend_lines(e, views))
    return film_layout(e.size[1] / e.size[0], len(views), e.num_tracklets, chart=chart, notes=notes)


def _gif_frames(times: np.ndarray) -> tuple[set[int], float]:
    """Which frames, and how long each is shown, in milliseconds."""
    usual = float(np.diff(times).mean()) if len(times) > 1 else 1.0
    length = float(times[-1]) + usual
    count = max(1, min(len(times), round(length * GIF_RATE), GIF_FRAMES))
    chosen = ((np.arange(count) + 0.5) * len(times) / count).astype(int)
    return set(chosen.tolist()), min(1000 * length / count, 1000 / GIF_RATE if count == GIF_FRAMES else 1000.0)


def _frames(clip: Path) -> Iterator[tuple[int, Callable[[int, int], Picture]]]:
    """Each frame's position, and what gives it upright in some width and height."""
    reformatter = VideoReformatter()
    for position, shown in enumerate(iterate_frames(clip)):
        frame = shown.frame
        turns = round(frame.rotation / 90)

        def resized(width: int, height: int, frame: av.VideoFrame = frame, turns: int = turns) -> Picture:
            across, down = (height, width) if turns % 2 else (width, height)
            how = Interpolation.AREA if across < frame.width else Interpolation.BICUBIC
            rgb = reformatter.reformat(frame, across, down, "rgb24", interpolation=how, **ONE_THREAD)
            return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), turns))

        yield position, resized


class _Mp4:
    def __init__(self, path: Path, width: int, height: int, times: np.ndarray) -> None:
        self._times = times
        self._last = -1
        usual = float(np.diff(times).mean()) if len(times) > 1 else 1.0
        self._container = av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"})
        rate = Fraction(1 / max(usual, 1e-3)).limit_denominator(1001)
        self._stream = self._container.add_stream(CODEC, rate=rate, options={"preset": "veryfast", "crf": "21"})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = _CLOCK

    def __enter__(self) -> _Mp4:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def add(self, number: int, picture: Picture) -> None:
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        self._last = max(round(float(self._times[number]) / _CLOCK), self._last + 1)
        frame.pts, frame.time_base = self._last, _CLOCK
        self._container.mux(self._stream.encode(frame))


class _Gif:
    """All frames share the colours of some of them: what does not change stays out of the file."""

    def __init__(self) -> None:
        self._pages: list[Image.Image] = []

    def add(self, picture: Picture) -> None:
        self._pages.append(Image.fromarray(picture))

    def save(self, path: Path, wait: float) -> None:
        some = self._pages[:: -(-len(self._pages) // 8)]
        together = Image.fromarray(np.concatenate([np.asarray(page) for page in some]))
        palette = together.quantize(_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        first, *others = (page.quantize(palette=palette, dither=Image.Dither.NONE) for page in self._pages)
        first.save(path, "GIF", save_all=True, append_images=others, duration=round(wait / 10) * 10, loop=0)
