"""Reading frames from video files, and the data loader with a model step, vs. other libraries.

    python benchmarks/bench_data.py
    python benchmarks/bench_data.py --leak 20000 --out result.json --plots plots

Each provider reads 16 of 300 frames, the centers of equal segments, from H.264 files, in one thread:

    torchcodec               VideoDecoder.get_frames_at; the faster of its modes "exact" and "approximate"
    decord                   VideoReader.get_batch
    opencv                   VideoCapture; the faster of reading in order and seeking
    art                      art.data.decoding.video.read_chosen (PyAV)
    art, decoder=torchcodec  the same with data.decoder=torchcodec

Before timing, the frames are compared with those of a sequential decoder. art returns one tensor [n, 3, h, w]; the
others are timed up to their own output. Times are CPU times of all threads, so a rate is that of one core, and several
processes reach that rate times the number of cores. Time to the first clip (wall clock) and memory are those of a new
process.

The loader is measured with each number of workers, alone and with a model step: steps of fixed length that do not use
the CPU, as on a GPU, and a training step of ART on the tiny backbone.

`--leak N` decodes N clips, readable and unreadable, and fails if memory grows. Peers that cannot be imported or do not
decode are reported as skipped: pip install -c constraints.txt ".[bench]"; torchcodec also requires FFmpeg's libraries.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    import benchmarks  # noqa: F401  moves the checkout to the end of sys.path

from art.data.dataset import ClipDataset
from art.data.datasets.base import Clip, ClipSet
from art.data.loader import build_loader
from art.data.transforms.sampling import segment_indices
from art.model.loading import build_model
from art.model.options import ARTOptions
from art.train.runtime import fork_rng
from benchmarks import data_providers
from benchmarks.common.measure import compare_times
from benchmarks.common.results import (
    TIME_COLUMNS,
    Columns,
    Record,
    Results,
    add_names,
    mebibytes,
    new_parser,
    positive_int,
    print_footer,
    print_table,
    run_command,
    speedup,
)
from benchmarks.common.timing import QUICK, CoreStopwatch, TimingConfig, time_rounds
from benchmarks.data_providers import CASES, FRAMES, OURS, PROVIDERS, VideoCase

#: Everything together takes less than five minutes.
TIMING = TimingConfig(min_rounds=7, min_seconds=1.0, max_seconds=12.0, warmups=1)
SAMPLED = 16
LOADER_CASE = "320p-12"
WORKERS = ("0", "1", "2", "4", "8", "16")
CLASSES = tuple(f"class {i}" for i in range(10))
#: A step that does not use the CPU, like one on a GPU.
IDLE_STEP = "asleep"
#: A training step of ART on the tiny backbone of configs/motion.yaml, on this device.
ART_STEP = "art, tiny"


@dataclass(frozen=True)
class LoaderShape:
    """A training split of `clips` clips, in batches of `batch` clips of `frames` square frames of `frame_size`."""

    clips: int = 48
    batch: int = 8
    frames: int = 16
    frame_size: int = 224


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        device: "cpu" or "cuda", of the model step; decoding is on the CPU.
        cases: names in `CASES`.
        workers: numbers of loader workers; empty to skip the loader.
        steps: durations of the model steps that do not use the CPU, seconds.
        leak: number of decodes over which memory must not grow; 0 to skip this.
        quick: short videos and minimal repetitions.
    """

    device: str = "cpu"
    cases: tuple[str, ...] = tuple(CASES)
    workers: tuple[int, ...] = (0, 1, 2)
    steps: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    leak: int = 0
    quick: bool = False

    @property
    def frames(self) -> int:
        """Number of frames of a file."""
        return 48 if self.quick else FRAMES

    @property
    def loader(self) -> LoaderShape:
        """Split and batches of the loader."""
        return LoaderShape(clips=6, batch=2, frames=4, frame_size=64) if self.quick else LoaderShape()


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if a provider failed or returned wrong frames, or memory grew."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    cases = options.cases
    if cases is None:
        cases = (LOADER_CASE,) if options.quick else tuple(CASES)
    workers = tuple(map(int, options.workers))
    settings = Settings(options.device, cases, workers, leak=options.leak or 0, quick=options.quick)
    return run_command(parser, options, partial(run, settings), draw)


def make_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser(__doc__)
    default_text = f"all; with --quick {LOADER_CASE}"
    add_names(parser, "--cases", "case", CASES, default=None, default_text=default_text, allow_none=True)
    add_names(parser, "--workers", "number of workers", WORKERS, default=("0", "1", "2"), default_text="0,1,2",
                  allow_none=True)  # fmt: skip
    parser.add_argument("--leak", type=positive_int, metavar="N", help="decode N clips and check the memory")
    return parser


def run(settings: Settings) -> dict[str, Any]:
    """Measure, print tables, and return the result as described in README.md, with the "versions" of the libraries and
    "leak" (None if not measured)."""
    device = torch.device(settings.device)
    results = Results("data", device, settings, QUICK if settings.quick else TIMING, report=print_records)
    threads, leak = torch.get_num_threads(), None
    for provider in PROVIDERS if settings.cases else ():
        reason = data_providers.unsupported_reason(provider)
        if reason is not None:
            results.skip(reason, measured="decode", provider=provider)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        torch.set_num_threads(1)  # scaling with PyTorch must use one core too
        try:
            if settings.leak:
                (directory / "leak").mkdir()
                with results.catch_failure(measured="leak"):
                    files = data_providers.write_leak_files(directory / "leak")
                    leak = data_providers.measure_leak(settings.leak, files)
            for name in settings.cases:
                with results.case(measured="decode", case=name):
                    _measure_case(results, CASES[name], directory)
        finally:
            torch.set_num_threads(threads)
        if settings.workers:
            with results.case(measured="loader"):
                _measure_loader(results, directory)
    result = results.to_dict(
        versions=data_providers.versions(), leak=leak, video={"frames": settings.frames, "sampled": SAMPLED},
        loader=asdict(settings.loader),
    )  # fmt: skip
    print_footer(
        result, ", ".join(f"{name} {version}" for name, version in result["versions"].items()), *_notes(result)
    )
    return result


def _measure_case(results: Results, case: VideoCase, directory: Path) -> None:
    """Check and time all providers on one file."""
    path = directory / f"{case.height}p-{case.keyframe_every}.mp4"
    if not path.exists():
        data_providers.write_video(path, case, results.settings.frames)
    indices = segment_indices(results.settings.frames, SAMPLED).tolist()
    size = None if case.short_side is None else case.output_size
    reference = data_providers.reference_frames(path)
    functions, errors, calls = {}, {}, {}
    for provider in PROVIDERS:
        if data_providers.unsupported_reason(provider) is None:
            with results.catch_failure(measured="decode", case=case.name, provider=provider):
                functions[provider], errors[provider] = _fastest(provider, str(path), indices, size, reference)
                read = data_providers.build(provider, functions[provider])
                calls[provider] = partial(read, str(path), indices, size)
    del reference
    timings = time_rounds(calls, torch.device("cpu"), results.timing, CoreStopwatch()).timings()
    times = {provider: timing.median_ms for provider, timing in timings.items()}
    for provider, timing in timings.items():
        with results.catch_failure(measured="decode", case=case.name, provider=provider):
            fresh = {"first_clip_seconds": None, "peak_bytes": None}
            if not results.settings.quick:
                fresh = data_providers.measure_in_new_process(provider, functions[provider], path, indices, size)
            results.records.append({
                "measured": "decode", "case": case.name, "described": case.describe(), "provider": provider,
                "function": functions[provider], "file_bytes": path.stat().st_size,
                "clips_per_second": 1e3 / timing.median_ms, **compare_times(provider, times, ours=OURS),
                "mean_error": errors[provider], **asdict(timing), **fresh,
            })  # fmt: skip


def _fastest(
    provider: str, path: str, indices: Sequence[int], size: tuple[int, int] | None, reference: Sequence[Any]
) -> tuple[str, float]:
    """Return the fastest function of a provider that reads the right frames, and the error of its frames."""
    found: dict[str, tuple[float, float]] = {}
    problem: ArithmeticError | None = None
    for function in PROVIDERS[provider]:
        read = data_providers.build(provider, function)
        try:
            frames = data_providers.as_frames(read(path, indices, size))
            error = data_providers.check_frames(frames, indices, reference)
        except ArithmeticError as wrong:
            problem = wrong
            continue
        start = time.process_time()
        read(path, indices, size)
        found[function] = time.process_time() - start, error
    if problem is not None and not found:
        raise problem
    best = min(found, key=lambda function: found[function][0])
    return best, found[best][1]


def _measure_loader(results: Results, directory: Path) -> None:
    """Measure the loader alone and with each model step, for each number of workers."""
    settings, shape = results.settings, results.settings.loader
    case = CASES[LOADER_CASE]
    video = data_providers.write_video(directory / "loaded.mp4", case, settings.frames)
    clips = make_clip_set(directory / "clips", video, shape.clips)
    common = {"case": case.name, "described": case.describe()}
    for workers in settings.workers:
        with results.catch_failure(measured="loader", workers=workers):
            measured = measure_loader(clips, shape, workers)
            results.records.append({"measured": "loader", "workers": workers, **common, **measured})
    lengths = settings.steps[:1] if settings.quick else settings.steps
    for workers in settings.workers:
        for name, seconds in [*((IDLE_STEP, seconds) for seconds in lengths), (ART_STEP, None)]:
            what = {"measured": "waiting", "workers": workers, "step": name}
            with results.catch_failure(**what):
                step = art_step(shape, results.device) if seconds is None else lambda _, s=seconds: time.sleep(s)
                results.records.append({**what, **common, **measure_waiting(clips, shape, workers, step)})


def make_clip_set(directory: Path, video: Path, clips: int) -> ClipSet:
    """Create a training split of copies of one file."""
    directory.mkdir()
    paths = [directory / f"{i}.mp4" for i in range(clips)]
    for path in paths:
        shutil.copyfile(video, path)
    labeled = tuple(Clip(path, i % len(CLASSES)) for i, path in enumerate(paths))
    return ClipSet("bench", "train", directory, labeled, CLASSES)


def measure_loader(clips: ClipSet, shape: LoaderShape, workers: int) -> dict[str, float]:
    """Iterate over one epoch.

    Returns:
        "first_batch_seconds", including the start of the workers; "clips_per_second" of the batches after it.
    """
    loader, seconds = _loader(clips, shape, workers), []
    start = time.perf_counter()
    for _ in _epoch(loader):
        seconds.append(time.perf_counter() - start)
    loader.close()
    rate = shape.batch * (len(seconds) - 1) / (seconds[-1] - seconds[0])
    return {"first_batch_seconds": seconds[0], "clips_per_second": rate}


def measure_waiting(
    clips: ClipSet, shape: LoaderShape, workers: int, step: Callable[[dict[str, Any]], None]
) -> dict[str, float]:
    """Iterate over one epoch with a model step per batch; the first batch, which starts the workers, does not count.

    Returns:
        "step_seconds" and "waiting_seconds" per batch; "waiting_fraction", waiting over the sum of both.
    """
    loader = _loader(clips, shape, workers)
    batches = _epoch(loader)
    step(next(batches))
    times = [time.perf_counter()]
    for batch in batches:
        times.append(time.perf_counter())
        step(batch)
        times.append(time.perf_counter())
    loader.close()
    durations = np.diff(times)
    waiting, stepping = float(durations[0::2].mean()), float(durations[1::2].mean())
    return {
        "step_seconds": stepping, "waiting_seconds": waiting, "waiting_fraction": waiting / (waiting + stepping),
    }  # fmt: skip


def art_step(shape: LoaderShape, device: torch.device) -> Callable[[dict[str, Any]], None]:
    """Return a training step of ART on the tiny backbone."""
    options = ARTOptions(
        backbone="tiny", num_frames=shape.frames, latent_dim=64, num_heads=2, feedforward_dim=128,
        enhancement_layers=0, activation_layers=2,
    )  # fmt: skip
    model = build_model("art", CLASSES, options).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(batch: dict[str, Any]) -> None:
        video, labels = model.center_crop(batch["video"].to(device)), batch["label"].to(device)
        loss = model.loss(model(video), labels).total
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def _loader(clips: ClipSet, shape: LoaderShape, workers: int) -> Any:
    dataset = ClipDataset(clips, shape.frames, train=True, frame_size=shape.frame_size)
    return build_loader(dataset, shape.batch, workers=workers)


def _epoch(loader: Any) -> Iterator[dict[str, Any]]:
    loader.set_epoch(0)
    with fork_rng():
        yield from loader


_DECODE_COLUMNS: Columns = {
    "provider": lambda record: record["provider"],
    "function": lambda record: record["function"],
    "clips/s": lambda record: f"{record['clips_per_second']:.3g}",
    **TIME_COLUMNS,
    "vs best other": lambda record: speedup(record["speedup_over_best_other"]),
    "first clip, s": lambda r: "" if r["first_clip_seconds"] is None else f"{r['first_clip_seconds']:.2f}",
    "MiB": lambda record: mebibytes(record["peak_bytes"]),
    "error": lambda record: f"{record['mean_error']:.2f}",
}
_LOADER_COLUMNS: Columns = {
    "workers": lambda record: str(record["workers"]),
    "first batch, s": lambda record: f"{record['first_batch_seconds']:.2f}",
    "clips/s": lambda record: f"{record['clips_per_second']:.3g}",
}
_WAITING_COLUMNS: Columns = {
    "workers": lambda record: str(record["workers"]),
    "step": lambda record: record["step"],
    "step, s": lambda record: f"{record['step_seconds']:.3f}",
    "waiting, s": lambda record: f"{record['waiting_seconds']:.3f}",
    "fraction": lambda record: f"{100 * record['waiting_fraction']:.0f}%",
}


def print_records(records: list[Record]) -> None:
    """Print the table of one file, or of the loader; the columns are explained in README.md."""
    for measured, columns in (("decode", _DECODE_COLUMNS), ("loader", _LOADER_COLUMNS), ("waiting", _WAITING_COLUMNS)):
        own = [record for record in records if record["measured"] == measured]
        if own:
            print(f"\n{measured}, {own[0]['case']}: {own[0]['described']}")
            print_table(columns, own)


def _notes(result: dict[str, Any]) -> Iterator[str]:
    """Generate lines about the memory over many decodes, and the speedups over the best alternative."""
    leak = result["leak"]
    if leak is not None:
        yield (
            f"memory over {leak['decodes']:,} decodes ({leak['failed']:,} of truncated files): grew by "
            f"{leak['growth_bytes'] / 2**20:.2f} MiB from the second quarter to the last, "
            f"{mebibytes(max(leak['resident_bytes']))} MiB at most"
        )
    for record in result["records"]:
        if record.get("speedup_over_best_other") is not None:
            ratio = speedup(record["speedup_over_best_other"])
            yield f"{record['case']}, {record['provider']}: {ratio} vs the best alternative ({record['best_other']})"


def draw(result: dict[str, Any], directory: Path) -> list[Path]:
    """Draw the decoders, one panel per file, and the fraction of the time that a model waits."""
    from benchmarks.common.charts import save_figures

    device = result["machine"]["device"]
    figures = {}
    decoded = [record for record in result["records"] if record["measured"] == "decode"]
    if decoded:
        video = result["video"]
        figures["decoders"] = decoders_figure(
            decoded, f"{video['sampled']} of {video['frames']} frames, one thread, {device}"
        )
    waiting = [record for record in result["records"] if record["measured"] == "waiting"]
    if waiting:
        loader = result["loader"]
        subtitle = (
            f"batches of {loader['batch']} clips of {loader['frames']} frames, {waiting[0]['described']}, {device}"
        )
        figures["waiting"] = waiting_figure(waiting, subtitle)
    return save_figures(figures, directory)


def decoders_figure(records: list[Record], subtitle: str) -> Any:
    """Draw the clips per second of each provider, fastest first, one panel per file."""
    from benchmarks.common.charts import BarPanel, bar_figure, distinct

    rows = []
    for case in distinct(records, "case"):
        own = sorted((r for r in records if r["case"] == case), key=lambda record: -record["clips_per_second"])
        names = [f"{record['provider']} ({record['function']})" for record in own]
        rows.append([BarPanel(own[0]["described"], names, [record["clips_per_second"] for record in own], OURS)])
    return bar_figure(rows, "Clips per second and core", subtitle)


def waiting_figure(records: list[Record], subtitle: str) -> Any:
    """Draw the percentage of the time that a model waits over the duration of its step, one line per number of workers;
    the steps of ART are stars."""
    from matplotlib.axes import Axes

    from benchmarks.common.charts import LINE_COLORS, LinePanel, Series, distinct, line_figure, log_axes

    def configure(axes: Axes) -> None:
        log_axes(axes, sorted({round(r["step_seconds"], 2) for r in records if r["step"] == IDLE_STEP}))
        axes.set(yscale="linear", ylim=(-3, 100))
        axes.set(xlabel="seconds of a model step that does not use the CPU", ylabel="% of the time waiting")

    series = []
    for color, workers in zip(LINE_COLORS, distinct(records, "workers"), strict=False):
        label = f"{workers} worker{'' if workers == 1 else 's'}"
        for name, step, style in ((label, IDLE_STEP, {}), (f"{label}, ART step", ART_STEP, {"lw": 0, "marker": "*"})):
            own = sorted(
                (r["step_seconds"], 100 * r["waiting_fraction"])
                for r in records
                if (r["workers"], r["step"]) == (workers, step)
            )
            series.append(Series(name, [x for x, _ in own], [y for _, y in own], {"color": color, **style}))
    return line_figure([[LinePanel("", series, configure)]], "Time that a model waits for its clips", subtitle)


if __name__ == "__main__":
    sys.exit(main())
