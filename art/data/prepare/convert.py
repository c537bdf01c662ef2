"""Re-encoding of a dataset to another directory with the same layout.

The new directory contains the annotation files and, at the same relative paths, the videos as ``.mp4`` (see
:mod:`art.data.prepare.reencode`), and is opened by the same reader. Its journal, ``prepared.jsonl``, has a line for
each finished file. Interrupted jobs resume from it, and files are encoded again if their settings or original changed.
The original directory is only read.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from art.data.datasets.annotations import CLASSES, parse_table, read_text
from art.data.datasets.base import Clip, ClipSet, check_root, open_dataset, required_files
from art.data.datasets.custom import ClipPaths, split_list_line
from art.data.datasets.directories import lacks_split_directories, split_directory
from art.data.datasets.splits import SPLITS, write_splits
from art.data.decoding.video import VideoError
from art.data.files import Journal, WriteError, atomic_write, check_writable, write_text
from art.data.parallel import available_cores, map_processes, stop_requested
from art.data.prepare.check import DatasetCheck, Problem, check_dataset, open_splits
from art.data.prepare.reencode import EncodeResult, Encoding, check_encoder, reencode
from art.terminal import Progress

JOURNAL = "prepared.jsonl"

_Key = tuple[Path, float | None, float | None]  # original, start, end

_ANNOTATION_SUFFIXES = (".json", ".txt", ".csv", ".tsv", ".list")


@dataclass(frozen=True)
class Preparation:
    """The result of :func:`prepare_dataset`."""

    check: DatasetCheck  # of the original, with the problems found while encoding
    made: int  # number of files written
    kept: int  # number of files that already existed


@dataclass(frozen=True)
class Job:
    """A file to write: the original, or its part from ``start`` to ``end`` in seconds."""

    source: Path
    target: Path
    start: float | None
    end: float | None
    encoding: Encoding

    @property
    def key(self) -> _Key:
        """The original and its part."""
        return self.source, self.start, self.end


def prepare_dataset(
    name: str,
    root: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    encoding: Encoding | None = None,
    cut: bool = False,
    splits: Sequence[str] | None = None,
    level: str = "exist",
    workers: int | None = None,
    progress: bool = True,
) -> Preparation:
    """Re-encode the videos of a dataset to ``to``, except for files that are finished and up to date.

    A video that cannot be read is skipped and reported in the result. With several workers, a script must call this
    below ``if __name__ == "__main__":``.

    Args:
        name: the dataset, one of :func:`art.data.dataset_names`.
        root: its directory.
        to: the output directory: new, empty, or written by an earlier call.
        encoding: encoding settings.
        cut: FineGym only: write a file for each sub-action instead of the events or videos that contain it.
        splits: names of splits; None is all that can be opened.
        level: how thoroughly the originals are checked first, one of :data:`art.data.prepare.check.LEVELS`.
        workers: number of processes; None is one per available core.
        progress: show progress bars.

    Raises:
        ValueError: ``to`` cannot be used, or a clip cannot be re-encoded; nothing has been written.
        WriteError: a file cannot be written; finished files are kept.
        FileNotFoundError: ``root`` is not a directory.
    """
    root, to, encoding = Path(root), Path(to), encoding or Encoding()
    check_encoder()
    _check_directories(root, to)
    clip_sets = open_splits(name, root, splits)
    opened = {split: clips for split, clips in clip_sets.items() if isinstance(clips, ClipSet)}
    if not opened:
        raise ValueError("; ".join(f"{split} cannot be opened: {error}" for split, error in clip_sets.items()))
    planned = {split: _plan_jobs(clips, to, encoding, cut) for split, clips in opened.items()}
    jobs = _unique_jobs([job for plan in planned.values() for job in plan], to)
    check = check_dataset(name, root, splits=splits, level=level, workers=workers, progress=progress)
    with Journal(to / JOURNAL) as journal:
        if not cut and any((entry["start"], entry["end"]) != (None, None) for entry in journal.entries.values()):
            raise ValueError(
                f"--to {to} contains sub-actions cut by an earlier call, which would be read instead of whole videos; "
                "use --cut, or another directory"
            )
        _copy_annotations(name, root, to, {job.source: job.target for job in jobs})
        if name == "folder" and not (root / CLASSES).exists():
            # Without this list, classes whose clips are all unreadable would be missing in the new directory.
            names = next(iter(opened.values())).class_names
            write_text(to / CLASSES, "".join(f"{class_name}\n" for class_name in names))
        if name == "folder" and lacks_split_directories(root):  # a new split would differ if a clip is unreadable
            generated = split_directory(root).splits
            write_splits(to / SPLITS, {_new_name(clip): split for clip, split in generated.items()})
        waiting = [job for job in jobs if not _is_finished(job, journal, to)]
        readable = [job for job in waiting if job.source.exists()]
        missing = {job.key for job in waiting if not job.source.exists()}
        kept = len(jobs) - len(waiting)
        results = _encode_all(readable, journal, to, kept, workers or available_cores(), progress)
    failed = {job.key: result for job, result in results.items() if isinstance(result, str)}
    check = _add_failures(check, opened, failed, missing, cut)
    _check_layout(to, opened, planned, {*failed, *missing})
    return Preparation(check, len(results) - len(failed), kept)


def _check_directories(root: Path, to: Path) -> None:
    check_root(root)
    inner, outer = to.resolve(), root.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise ValueError(f"--to {to} and --root {root} contain each other; expected separate directories")
    check_writable(to, "--to")
    if to.is_dir() and not (to / JOURNAL).is_file() and any(not p.name.startswith(".") for p in to.iterdir()):
        raise ValueError(f"--to {to} contains other files (and no {JOURNAL}); expected a new or empty directory")


def _plan_jobs(clip_set: ClipSet, to: Path, encoding: Encoding, cut: bool) -> list[Job]:
    """Return the job that writes each clip."""
    ids = _subaction_ids(clip_set) if cut else None
    jobs = []
    for index, clip in enumerate(clip_set):
        if clip.path.is_dir():
            raise ValueError(f"{clip.path} is a directory of frames; --to re-encodes videos only")
        if ids is not None:
            target = to / "subactions" / f"{ids[index]}.mp4"
            jobs.append(Job(clip.path, target, clip.start, clip.end, encoding))
            continue
        if not clip.path.is_relative_to(clip_set.root):
            raise ValueError(f"{clip.path} is not in --root {clip_set.root}, so it has no place in --to")
        target = to / _new_name(clip.path.relative_to(clip_set.root))
        jobs.append(Job(clip.path, target, None, None, encoding))
    return jobs


def _new_name(path: str | Path) -> str:
    return Path(path).with_suffix(".mp4").as_posix()


def _subaction_ids(clip_set: ClipSet) -> tuple[str, ...]:
    from art.data.datasets.sports import subaction_ids

    match = re.fullmatch(r"finegym(\d+)(?:_v(.+))?", clip_set.name)
    if match is None:
        raise ValueError(f"--cut cuts the sub-actions of FineGym out of longer videos; {clip_set.name!r} has none")
    return subaction_ids(clip_set.root, clip_set.split, int(match[1]), match[2] or "1.1")


def _unique_jobs(jobs: Sequence[Job], to: Path) -> list[Job]:
    """Remove duplicates, and ensure that no job overwrites an original or the result of another job."""
    output = to.resolve()
    for source in {job.source if job.source.is_symlink() else job.source.parent for job in jobs}:
        if source.resolve().is_relative_to(output):
            raise ValueError(f"{source} is a link into --to {to}; expected originals elsewhere")
    unique: dict[Path, Job] = {}
    for job in jobs:
        other = unique.setdefault(job.target, job)
        if other.key != job.key:
            raise ValueError(f"{other.source} and {job.source} would both become {job.target}; rename one of them")
    return list(unique.values())


def _is_finished(job: Job, journal: Journal, to: Path) -> bool:
    """Whether the file exists and was written with these settings from the original, which may have been removed."""
    entry = journal.entries.get(job.target.relative_to(to).as_posix())
    if entry is None or not job.target.is_file() or job.target.stat().st_size != entry["bytes"]:
        return False
    if not job.source.exists():
        return bool(entry["encoding"] == str(job.encoding))
    return all(entry[name] == value for name, value in _origin(job).items())


def _origin(job: Job) -> dict[str, Any]:
    """The fields of a journal entry that determine the new file."""
    status, encoding = job.source.stat(), str(job.encoding)
    source = [status.st_size, status.st_mtime_ns]
    return {"source": source, "start": job.start, "end": job.end, "encoding": encoding}


def _encode_all(
    jobs: Sequence[Job], journal: Journal, to: Path, kept: int, workers: int, progress: bool
) -> dict[Job, EncodeResult | str]:
    results: dict[Job, EncodeResult | str] = {}
    bar = Progress("re-encode", kept + len(jobs), "video", initial=kept, show=progress)
    encoded = contextlib.closing(map_processes(_encode_job, jobs, min(workers, max(1, len(jobs)))))
    try:
        with encoded as done, bar:
            for job, result in done:
                if isinstance(result, EncodeResult):
                    entry = {"file": job.target.relative_to(to).as_posix(), **_origin(job), **asdict(result)}
                    journal.append(entry)
                results[job] = result
                bar.update()
    except WriteError as error:
        message = f"{error.strerror}. {len(results)} videos were finished and are kept; run the same command to resume"
        raise WriteError(error.errno, message, error.filename) from error
    return results


def _encode_job(job: Job) -> EncodeResult | str:
    """Write the file of a job, or return the problem of its original."""
    try:
        return reencode(job.source, job.target, job.encoding, start=job.start, end=job.end, stop=stop_requested)
    except VideoError as error:
        return error.reason


def _copy_annotations(name: str, root: Path, to: Path, targets: dict[Path, Path]) -> None:
    """Copy the annotation files, and the tables and texts in the root itself."""
    required = [file.path for file in required_files(name, root) if file.found]
    others = [path for path in root.iterdir() if path.suffix.lower() in _ANNOTATION_SUFFIXES and path.is_file()]
    for path in {*required, *others}:
        target = to / path.relative_to(root)
        text = _replace_paths(name, path, root, to, targets)
        if text is None:
            atomic_write(target, lambda partial, path=path: shutil.copyfile(path, partial))  # type: ignore[misc]
        else:
            write_text(target, text)


def _replace_paths(name: str, table: Path, root: Path, to: Path, targets: dict[Path, Path]) -> str | None:
    """Return the content of a CSV table or list with the paths of the new files; None for other files. The new table
    has a header and commas."""
    paths = ClipPaths(root)

    def new_path(path: str) -> str:
        target = targets.get(paths(path))
        return path if target is None else target.relative_to(to).as_posix()

    if name == "csv" and table.suffix.lower() in (".csv", ".tsv"):
        try:
            header, rows = parse_table(table, ("path", "label"))
        except ValueError:  # another table
            return None
        column, text = header.index("path"), io.StringIO()
        new_rows = [[*row[:column], new_path(row[column]), *row[column + 1 :]] for _, row in rows]
        csv.writer(text, lineterminator="\n").writerows([header, *new_rows])
        return text.getvalue()
    if name == "list":
        lines = []
        for line in read_text(table).rstrip("\n").split("\n"):
            path, rest, _ = split_list_line(paths, line.strip()) or (line, "", 0)
            new = new_path(path)
            lines.append(line if new == path else new + rest)
        return "".join(f"{line}\n" for line in lines)
    return None


def _add_failures(
    check: DatasetCheck, opened: dict[str, ClipSet], failed: dict[_Key, str], missing: set[_Key], cut: bool
) -> DatasetCheck:
    """Add the problems found while encoding to a check."""

    def key(clip: Clip) -> _Key:
        return (clip.path, clip.start, clip.end) if cut else (clip.path, None, None)

    splits = []
    for split in check.splits:
        clips = opened.get(split.split)
        if clips is None:
            splits.append(split)
            continue
        known = {(problem.clip, problem.start, problem.end): problem for problem in split.problems}
        problems = []
        for i, clip in enumerate(clips):
            path = clips.relative_path(i)
            problem = known.get((path, clip.start, clip.end))
            if key(clip) in failed:
                problem = Problem(path, clip.start, clip.end, "broken", failed[key(clip)])
            elif problem is not None and problem.kind == "missing" and key(clip) not in missing:
                continue  # encoded earlier, from an original that has been removed
            if problem is not None:
                problems.append(problem)
        splits.append(replace(split, problems=tuple(problems)))
    return replace(check, splits=tuple(splits))


def _check_layout(to: Path, opened: dict[str, ClipSet], planned: dict[str, list[Job]], skipped: set[_Key]) -> None:
    """Ensure that the reader finds the new files in ``to``, with the same classes."""
    for split, clip_set in opened.items():
        labels = zip(planned[split], clip_set.labels, strict=True)
        expected = {(job.target, label) for job, label in labels if job.key not in skipped}
        if not expected:
            continue
        new = open_dataset(clip_set.name, to, split)
        lost = sorted(expected - {(clip.path, clip.label) for clip in new})
        if lost or new.class_names != clip_set.class_names:
            difference = f"{len(lost)} clips, such as {lost[0][0]}, are missing" if lost else "its class names differ"
            raise RuntimeError(f"{clip_set.name} in {to} is not read as in {clip_set.root}: {difference}")
