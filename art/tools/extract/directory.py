"""Extraction to a directory, on one or several devices, with one writer at a time."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from art.data.dataset import DataError, seeded_generator
from art.data.datasets.base import ClipSet
from art.data.datasets.directories import group_of
from art.data.features import (
    CONFIG,
    PART_BYTES,
    finish_part,
    is_complete,
    part_path,
    remove_partial,
    save_part,
    write_index,
    write_manifest,
)
from art.data.files import check_writable, existing_ancestor
from art.data.parallel import map_processes, worker_slot
from art.data.shards import ShardSet
from art.terminal import Progress
from art.tools.extract.extractor import Extractor, ExtractSettings, make_manifest
from art.train.config import save_config
from art.train.lock import DirectoryLock
from art.train.runtime import raise_on_sigterm


@dataclass(frozen=True)
class Plan:
    """Size and duration of an extraction.

    Attributes:
        clips: number of clips.
        tokens: per clip and view.
        clip_bytes: bytes per clip.
        free_bytes: free space on the disk.
        seconds: estimated duration on one device, from a few clips; None if it was not measured.
    """

    clips: int
    tokens: int
    clip_bytes: int
    free_bytes: int
    seconds: float | None = None

    @property
    def total_bytes(self) -> int:
        """Bytes of all clips."""
        return self.clips * self.clip_bytes


def plan(extractor: Extractor, out: Path, measured_clips: int = 0) -> Plan:
    """Return size and, if ``measured_clips`` is above 0, duration of an extraction, by extracting some clips."""
    clips = sum(len(clip_set) for clip_set in extractor.clip_sets.values())
    steps, tokens = extractor.tensors["tokens"].shape[:2]
    seconds = None
    if measured_clips:
        split = extractor.settings.splits[0]
        chosen = list(range(min(measured_clips, len(extractor.clip_sets[split]))))
        extractor.extract(split, chosen[:1])  # the first pass is slower
        begun = time.perf_counter()
        extractor.extract(split, chosen)
        seconds = (time.perf_counter() - begun) / len(chosen) * clips
    return Plan(clips, steps * tokens, extractor.clip_bytes, shutil.disk_usage(existing_ancestor(out)).free, seconds)


@dataclass(frozen=True)
class Extracted:
    """What an extraction wrote.

    Attributes:
        clips: clips with features.
        errors: clips that could not be read.
        parts: number of files.
        kept: number of files that already existed.
        seconds: by stage: "decode" (waiting for decoded clips), "forward", and "other", such as writing; the sum over
            all processes, without loading the backbone.
    """

    clips: int
    errors: int
    parts: int
    kept: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Part:
    """One file to write.

    Attributes:
        settings: of the extraction.
        split: name of the split.
        number: of the part in its split.
        clips: positions in the split's list of clips.
        path: of the file.
    """

    settings: ExtractSettings
    split: str
    number: int
    clips: tuple[int, ...]
    path: Path


@dataclass(frozen=True)
class PartResult:
    """What a process reports about a part.

    Attributes:
        rows: for :func:`art.data.features.finish_part`; None if the process has called it.
        seconds: by stage, see :class:`Extracted`.
    """

    rows: dict[str, Any] | None
    seconds: dict[str, float]


Runner = Callable[[Sequence[Part]], Generator[tuple[Part, PartResult], None, None]]


def extract(settings: ExtractSettings, out: Path, *, devices: Sequence[str] = ("auto",)) -> Extracted:
    """Write the features of all clips to a directory; existing parts are kept. See :mod:`art.data.features`.

    Args:
        settings: what to extract.
        out: a directory that is new, empty, or from a call with the same settings.
        devices: one process per entry extracts; a single one extracts in this process.

    Raises:
        DirectoryInUse: another process writes to the directory; raised before any work.
        FeatureError: the directory has other features, or a value does not fit the dtype.
        ValueError: the disk is too small; raised before any work.
        WriteError: a file cannot be written, for example because the disk is full; finished parts are kept.
        DataError: too many clips cannot be read.
        Interrupted: on SIGTERM; finished parts are kept.
    """

    def run(missing: Sequence[Part]) -> Generator[tuple[Part, PartResult], None, None]:
        workers = min(len(devices), len(missing))
        if workers > 1:  # each process loads the backbone
            _extractor(settings, devices[0]).backbone.cpu()
        return map_processes(_extract_part, missing, workers, devices[:workers])

    return write_features(settings, out, devices[0], run)


def write_features(settings: ExtractSettings, out: Path, device: str, run: Runner) -> Extracted:
    """Write the features of all clips to a directory. See :func:`extract`.

    Args:
        settings: what to extract.
        out: the directory.
        device: on which the backbone is checked, and its shapes are measured.
        run: writes parts with :func:`art.data.features.save_part`, and yields each with its result.
    """
    check_writable(out, "out")
    with _locked(out):
        extractor = _extractor(settings, device)
        remove_partial(out, settings.splits)
        parts = list(parts_of(extractor, out))
        num_parts = count_parts(parts)
        missing = [part for part in parts if not is_complete(part.path)]
        _check_space(extractor, out, missing)
        write_manifest(out, make_manifest(extractor, num_parts))
        save_config(settings.config, out / CONFIG)
        seconds = {"decode": 0.0, "forward": 0.0, "other": 0.0}
        # Checksums are computed in a thread, while the next part is extracted.
        with raise_on_sigterm(), Progress("extract", len(missing), "part") as bar, ThreadPoolExecutor(1) as pool:
            finishing: list[Future[None]] = []
            with closing(run(missing) if missing else _nothing()) as done:
                for part, result in done:
                    if result.rows is not None:
                        finishing.append(pool.submit(finish_part, part.path, result.rows))
                    while finishing and finishing[0].done():
                        finishing.pop(0).result()
                    seconds = {stage: spent + result.seconds[stage] for stage, spent in seconds.items()}
                    bar.update()
            begun = time.perf_counter()
            for future in finishing:
                future.result()
            seconds["other"] += time.perf_counter() - begun
        remove_partial(out, settings.splits)  # of a machine that was lost
        errors = sum(_write_index(extractor, out, split, num_parts[split]) for split in settings.splits)
    clips = sum(map(len, extractor.clip_sets.values()))
    return Extracted(clips - errors, errors, len(parts), len(parts) - len(missing), seconds)


def _nothing() -> Generator[tuple[Part, PartResult], None, None]:
    yield from ()


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Create and lock a directory, and remove it if nothing was written."""
    created = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with DirectoryLock(out, "an extraction", "--out") as lock:
            lock.acquire()
            yield
    finally:
        if created:
            with suppress(OSError):  # it is not empty
                out.rmdir()


def _check_space(extractor: Extractor, out: Path, missing: Sequence[Part]) -> None:
    needed, free = sum(len(part.clips) for part in missing) * extractor.clip_bytes, shutil.disk_usage(out).free
    if needed > free:
        raise ValueError(
            f"out: {out} needs {needed / 2**30:.1f} GiB, but the disk has {free / 2**30:.1f} GiB free; use another "
            "disk, fewer frames or views, or a backbone with fewer tokens"
        )


def _write_index(extractor: Extractor, out: Path, split: str, num_parts: int) -> int:
    """Write the list of clips of a split, and return the number of clips without features."""
    clip_set = extractor.clip_sets[split]
    rows = [_index_row(clip_set, number) for number in range(len(clip_set))]
    failed = write_index(out, split, rows, num_parts)
    _check_failures(clip_set, failed, extractor.settings.config.data.max_failed_fraction)
    return len(failed)


def _index_row(clip_set: ClipSet, number: int) -> dict[str, Any]:
    """Return the row of a clip in ``index.json``. Only class directories have groups, as in ``run/anna/1.mp4``."""
    clip, path = clip_set.clips[number], clip_set.relative_path(number)
    group = group_of(path) if clip_set.name == "folder" else None
    return {"path": path, "start": clip.start, "end": clip.end, "label": clip.label, "group": group}


def _check_failures(clip_set: ClipSet, failed: Mapping[int, str], limit: float) -> None:
    if len(failed) > limit * len(clip_set):
        clip, reason = next(iter(failed.items()))
        raise DataError(
            f"{clip_set.name}/{clip_set.split}: {len(failed)} of {len(clip_set)} clips cannot be read, more than "
            f"data.max_failed_fraction={limit:g} allows; the first is {clip_set.clips[clip]}: {reason}. "
            "Remove or replace such files, or raise data.max_failed_fraction to skip them"
        )


def parts_of(extractor: Extractor, out: Path) -> Iterator[Part]:
    """Divide the clips of each split, in random order, into files. Shards were shuffled when they were written."""
    settings = extractor.settings
    for split, clip_set in extractor.clip_sets.items():
        order = list(range(len(clip_set)))
        if not isinstance(clip_set, ShardSet):
            order = torch.randperm(len(order), generator=seeded_generator(settings.config.seed)).tolist()
        size = max(1, PART_BYTES // extractor.clip_bytes)
        for number, start in enumerate(range(0, len(order), size)):
            clips = tuple(order[start : start + size])
            yield Part(settings, split, number, clips, part_path(out, split, number))


def count_parts(parts: Sequence[Part]) -> Counter[str]:
    """Return the number of files of each split."""
    return Counter(part.split for part in parts)


def _extract_part(part: Part) -> PartResult:
    """Extract and save one part, in a worker process if there are several; the backbone is kept between parts."""
    return save_features(_extractor(part.settings, worker_slot()), part)


def save_features(extractor: Extractor, part: Part) -> PartResult:
    """Extract one part and save it under its temporary name."""
    begun, before = time.perf_counter(), dict(extractor.seconds)
    rows = save_part(part.path, *extractor.extract(part.split, part.clips))
    spent = {stage: seconds - before[stage] for stage, seconds in extractor.seconds.items()}
    return PartResult(rows, {**spent, "other": time.perf_counter() - begun - sum(spent.values())})


_extractors: dict[tuple[str, str], Extractor] = {}  # the last one of this process


def _extractor(settings: ExtractSettings, device: str) -> Extractor:
    key = (json.dumps(asdict(settings), sort_keys=True, default=str), device)
    if key not in _extractors:
        _extractors.clear()
        _extractors[key] = Extractor(settings, device)
    return _extractors[key]
