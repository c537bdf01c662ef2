"""Decoding: the videos, the libraries that read frames from them, the check of their frames, and their memory.

    python -m benchmarks.data_providers '["art", "read_chosen", "clip.mp4", [0, 8], null]'

reads clips with one provider in this process, and prints time to the first clip and peak memory as JSON. Imports of the
libraries are inside functions, because they are part of that measurement.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
FRAMES, RATE = 300, 30

Size = tuple[int, int]


@dataclass(frozen=True)
class VideoCase:
    """A file and the frames to read from it.

    Attributes:
        name: on the command line.
        height: of the file, pixels.
        width: of the file, pixels.
        keyframe_every: frames from one keyframe to the next.
        short_side: length to which the shorter side of the frames is scaled; None for no scaling.
    """

    name: str
    height: int
    width: int
    keyframe_every: int
    short_side: int | None = None

    @property
    def output_size(self) -> Size:
        """Height and width of the returned frames."""
        if self.short_side is None:
            return self.height, self.width
        factor = self.short_side / min(self.height, self.width)
        return round(self.height * factor), round(self.width * factor)

    def describe(self) -> str:
        """Return the file and the output size as text."""
        scaled = "" if self.short_side is None else f", scaled to {self.output_size[1]}×{self.output_size[0]}"
        return f"{self.width}×{self.height}, keyframe every {self.keyframe_every}{scaled}"


#: 250 is the default of x264.
CASES = {
    case.name: case
    for case in (
        VideoCase("320p-12", 320, 568, 12),
        VideoCase("320p-250", 320, 568, 250),
        VideoCase("720p-250", 720, 1280, 250),
        VideoCase("720p-250-to-224", 720, 1280, 250, 224),
    )
}


def write_video(path: Path, case: VideoCase, frames: int = FRAMES, codec: str = "libx264") -> Path:
    """Write the scene as H.264 with x264's preset "medium" and crf 23, or with another codec."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = case.width, case.height, "yuv420p"
        stream.codec_context.gop_size = case.keyframe_every
        stream.options = {"crf": "23", "preset": "medium"} if codec == "libx264" else {}
        for i, image in enumerate(scene(case.height, case.width, frames)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def scene(height: int, width: int, frames: int) -> Iterator[np.ndarray]:
    """Generate deterministic images [height, width, 3] uint8: the camera pans over a texture, and an actor moves."""
    rng = np.random.default_rng(0)
    full_height, full_width = int(height * 1.6), int(width * 1.6)
    background = _texture(rng, full_height, full_width, {64: 40, 16: 25, 4: 15})
    actor = _texture(rng, height // 2, width // 4, {16: 50, 4: 25})
    grain = rng.integers(-3, 4, (8, height, width, 1), dtype=np.int16)
    for t in range(frames):
        top, left = _oscillate(full_height - height, t / 70), _oscillate(full_width - width, t / 50)
        image = background[top : top + height, left : left + width].copy()
        top, left = _oscillate(height - len(actor), t / 9), _oscillate(width - actor.shape[1], t / 13)
        image[top : top + len(actor), left : left + actor.shape[1]] = actor
        yield np.clip(image + grain[t % len(grain)], 0, 255).astype(np.uint8)


def _oscillate(limit: int, angle: float) -> int:
    return int(limit / 2 * (1 + np.sin(angle)))


def _texture(rng: np.random.Generator, height: int, width: int, amplitudes: dict[int, int]) -> np.ndarray:
    """Return smooth noise, the sum over feature sizes (in pixels) with their amplitudes."""
    total = np.full((height, width, 3), 120.0)
    for size, amplitude in amplitudes.items():
        coarse = rng.standard_normal((height // size + 3, width // size + 3, 3))
        fine = np.kron(coarse, np.ones((size, size, 1)))
        for axis in (0, 1):
            sums = np.cumsum(fine, axis=axis)
            upper = np.take(sums, np.arange(size, sums.shape[axis]), axis)
            fine = (upper - np.take(sums, np.arange(sums.shape[axis] - size), axis)) / size
        total += amplitude * fine[:height, :width]
    return np.clip(total, 0, 255).astype(np.uint8)


#: Maps a file, frame numbers, and height and width of the result (None for no scaling) to the library's own output.
Read = Callable[[str, Sequence[int], "Size | None"], Any]

OURS, OURS_TORCHCODEC = "art", "art, decoder=torchcodec"
TORCHCODEC, DECORD, OPENCV = "torchcodec", "decord", "opencv"
#: By provider, its functions, of which the fastest counts.
PROVIDERS: dict[str, tuple[str, ...]] = {
    TORCHCODEC: ("exact", "approximate"),
    DECORD: ("get_batch",),
    OPENCV: ("in order", "seeking"),
    OURS: ("read_chosen",),
    OURS_TORCHCODEC: ("read_chosen",),
}
_MODULES = {TORCHCODEC: "torchcodec.decoders", DECORD: "decord", OPENCV: "cv2"}
_PACKAGES = {"av": "av", TORCHCODEC: "torchcodec", DECORD: "decord", OPENCV: "opencv-python-headless"}


def unsupported_reason(provider: str) -> str | None:
    """Return why a provider is skipped, or None: its library must import, and torchcodec must decode a test video."""
    if provider in (TORCHCODEC, OURS_TORCHCODEC):
        from art.data.decoding.torchcodec import probe

        problem = probe()
        return None if problem is None else f"torchcodec {problem}: pip install torchcodec, and install FFmpeg"
    if provider == OURS:
        return None
    try:
        importlib.import_module(_MODULES[provider])
    except Exception as error:
        return f"cannot be imported ({type(error).__name__}: {str(error)[:200]}): pip install {_PACKAGES[provider]}"
    return None


def versions() -> dict[str, str]:
    """Return the versions of the installed libraries."""
    found = {}
    for name, package in _PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def build(provider: str, function: str) -> Read:
    """Return a function of a provider that is available (see `unsupported_reason`)."""
    if provider in (OURS, OURS_TORCHCODEC):
        return _art("pyav" if provider == OURS else "torchcodec")
    module = importlib.import_module(_MODULES[provider])
    return {TORCHCODEC: _torchcodec, DECORD: _decord, OPENCV: _opencv}[provider](module, function)


def as_frames(result: Any) -> np.ndarray:
    """Convert a provider's output to [n, h, w, 3]."""
    frames = result.numpy() if isinstance(result, torch.Tensor) else np.asarray(result)
    return frames.transpose(0, 2, 3, 1) if frames.shape[1] == 3 else frames


def _art(decoder: str) -> Read:
    from art.data.decoding.video import read_chosen

    def read(path: str, indices: Sequence[int], size: Size | None) -> Any:
        return read_chosen(path, lambda _: indices, short_side=None if size is None else min(size), decoder=decoder)

    return read


def _torchcodec(module: Any, function: str) -> Read:
    def read(path: str, indices: Sequence[int], size: Size | None) -> Any:
        decoder = module.VideoDecoder(path, num_ffmpeg_threads=1, seek_mode=function)
        frames = decoder.get_frames_at(list(indices)).data
        return frames if size is None else F.interpolate(frames, size, mode="bilinear", antialias=True)

    return read


def _decord(module: Any, function: str) -> Read:
    def read(path: str, indices: Sequence[int], size: Size | None) -> Any:
        height, width = size or (-1, -1)
        reader = module.VideoReader(path, ctx=module.cpu(0), width=width, height=height, num_threads=1)
        return reader.get_batch(list(indices)).asnumpy()

    return read


def _opencv(module: Any, function: str) -> Read:
    module.setNumThreads(1)

    def convert(image: Any, size: Size | None) -> np.ndarray:
        if size is not None:
            image = module.resize(image, size[::-1], interpolation=module.INTER_AREA)
        return module.cvtColor(image, module.COLOR_BGR2RGB)

    def read(path: str, indices: Sequence[int], size: Size | None) -> Any:
        capture = module.VideoCapture(path, module.CAP_FFMPEG, [module.CAP_PROP_N_THREADS, 1])
        frames = []
        for i in range(indices[-1] + 1) if function == "in order" else indices:
            if function == "seeking":
                capture.set(module.CAP_PROP_POS_FRAMES, i)
            capture.grab()
            if i in indices:
                frames.append(convert(capture.retrieve()[1], size))
        capture.release()
        return np.stack(frames)

    return read


#: Mean difference of a frame, in levels of 255: libraries round differently, and differ in how they scale chroma, which
#: is stored at half the resolution.
TOLERANCE = 8.0


def reference_frames(path: Path) -> list[np.ndarray]:
    """Decode all frames of a file sequentially."""
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def check_frames(frames: np.ndarray, indices: Sequence[int], reference: Sequence[np.ndarray]) -> float:
    """Return the largest mean difference of a frame from the right one.

    Args:
        frames: [n, h, w, 3] uint8, output of a provider.
        indices: the requested frame numbers.
        reference: all frames of the file, of any one size.

    Raises:
        ArithmeticError: the number of frames is wrong, or a frame differs too much from the right one, or differs less
            from a neighbor of it.
    """
    if len(frames) != len(indices):
        raise ArithmeticError(f"returned {len(frames)} frames for {len(indices)} indices")
    worst = 0.0
    for frame, index in zip(frames, indices, strict=True):
        nearby = range(max(0, index - 1), min(len(reference), index + 2))
        distances = {i: _distance(frame, reference[i]) for i in nearby}
        closest = min(distances, key=lambda i: distances[i])
        if distances[closest] < 0.9 * distances[index]:  # a scaled frame never equals the right one
            raise ArithmeticError(f"frame {index} is frame {closest}")
        worst = max(worst, distances[index])
    if worst > TOLERANCE:
        raise ArithmeticError(f"a frame differs by {worst:.1f} of 255 levels on average, more than {TOLERANCE:g}")
    return worst


def _distance(frame: np.ndarray, expected: np.ndarray) -> float:
    if frame.shape != expected.shape:
        planes = torch.from_numpy(np.ascontiguousarray(expected)).permute(2, 0, 1).float()
        expected = F.adaptive_avg_pool2d(planes, frame.shape[:2]).permute(1, 2, 0).numpy()
    return float(np.abs(frame[::2, ::2].astype(np.float32) - expected[::2, ::2]).mean())  # a quarter of the pixels


_CLIPS_PER_PROCESS = 4


def measure_in_new_process(
    provider: str, function: str, path: Path, indices: Sequence[int], size: Size | None
) -> dict[str, Any]:
    """Read clips with one provider in a new process.

    Returns:
        "first_clip_seconds", from before the import of the library to the first clip, and "peak_bytes", the peak memory
        above that of the process with Python, PyTorch and NumPy loaded (None except on Linux).
    """
    arguments = json.dumps([provider, function, str(path), list(indices), size])
    command = [sys.executable, "-m", "benchmarks.data_providers", arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"in a new process: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Read clips with one provider and print the measurement as JSON."""
    torch.set_num_threads(1)
    provider, function, path, indices, size = json.loads(sys.argv[1])
    before = resident_bytes("VmRSS")
    start = time.perf_counter()
    read = build(provider, function)
    read(path, indices, size and tuple(size))
    first = time.perf_counter() - start
    for _ in range(_CLIPS_PER_PROCESS - 1):
        read(path, indices, size and tuple(size))
    after = resident_bytes("VmHWM")
    peak = None if before is None or after is None else after - before
    print(json.dumps({"first_clip_seconds": first, "peak_bytes": peak}))


def resident_bytes(entry: str = "VmRSS") -> int | None:
    """Return the memory of this process, now ("VmRSS") or at its peak ("VmHWM"); None except on Linux."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{entry}:"))
    return int(line.split()[1]) * 1024


#: Growth from the second quarter of the decodes to the last that the system allocator may cause by itself.
ALLOWED_GROWTH_BYTES = 4 * 2**20
_SAMPLES = 100


def write_leak_files(directory: Path) -> list[Path]:
    """Write small videos of several formats, a truncated one, and a directory of frames."""
    import av

    case = VideoCase("leak", 112, 112, 12)
    files = [write_video(directory / "a.mp4", case, 36), write_video(directory / "b.mkv", case, 36)]
    files.append(write_video(directory / "c.avi", case, 36, codec="mpeg4"))
    files.append(directory / "cut.mkv")
    files[-1].write_bytes(files[1].read_bytes()[: files[1].stat().st_size * 2 // 3])
    files.append(directory / "frames")
    files[-1].mkdir()
    with av.open(str(files[0])) as container:
        for i, frame in enumerate(container.decode(video=0)):
            frame.to_image().save(files[-1] / f"{i + 1:05d}.jpg")
    return files


def measure_leak(decodes: int, files: Sequence[Path], read: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Decode clips of `files` in turn and sample the memory of the process a hundred times.

    Args:
        decodes: number of clips.
        files: inputs, some of which may be unreadable.
        read: reads a clip; None for `art.data.decoding.video.read_clip`.

    Returns:
        "decodes"; "failed", the number of clips that could not be read; "resident_bytes" of each sample;
        "growth_bytes" from the median of the second quarter to that of the last; "seconds".

    Raises:
        MemoryError: memory grew by more than `ALLOWED_GROWTH_BYTES`.
        OSError: the system does not report the memory of a process.
    """
    from art.data.decoding.video import VideoError, read_clip

    if resident_bytes() is None:
        raise OSError("the memory of a process is read from /proc, which does not exist")
    samples: list[int] = []
    failed, start = 0, time.monotonic()
    generator = torch.Generator().manual_seed(0)
    for i in range(decodes):
        try:
            (read or read_clip)(files[i % len(files)], 8, generator=generator, short_side=64)
        except VideoError:
            failed += 1
        if (i + 1) * _SAMPLES // decodes > i * _SAMPLES // decodes:
            samples.append(resident_bytes() or 0)
    quarter = len(samples) // 4
    growth = int(statistics.median(samples[-quarter:]) - statistics.median(samples[quarter : 2 * quarter]))
    if growth > ALLOWED_GROWTH_BYTES:
        raise MemoryError(f"memory grew by {growth / 2**20:.1f} MiB over the second half of {decodes} decodes")
    return {
        "decodes": decodes,
        "failed": failed,
        "growth_bytes": growth,
        "resident_bytes": samples,
        "seconds": time.monotonic() - start,
    }


if __name__ == "__main__":
    main()
