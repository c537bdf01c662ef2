"""A data set into another of the same layout, with videos that are quick to read in training.

The new folder holds the annotation files and, at the same places, the videos, all ``.mp4`` (see :mod:`.reencode`); the
same reader opens it. ``prepared.jsonl`` in it has a line for each finished file, by which an interrupted job goes on,
and other settings or a changed original are noticed. The original folder is only read.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from art.data.datasets.clips import Clip, ClipSet
from art.data.datasets.registry import open_dataset, required_files
from art.data.datasets.user_classes import CLASSES
from art.data.decoding.video import VideoError
from art.data.files import PARTIAL, atomic_write, check_writable
from art.data.parallel import cores, in_processes, stopping
from art.data.prepare.check import DatasetCheck, Problem, check_dataset, open_splits
from art.data.prepare.reencode import Encoding, Made, WriteError, check_encoder, reencode

JOURNAL = "prepared.jsonl"

_Key = tuple[Path, float | None, float | None]  # an original, and where the part of it begins and ends

_ANNOTATIONS = (".json", ".txt", ".csv", ".list")
_LIST_LINE = re.compile(r"(?P<path>.*\S)(?P<rest>\s*[\s,]\s*-?\d+\s*)")


@dataclass(frozen=True)
class Preparation:
    """What became of a data set.

    Attributes:
        check: the original, with what turned out to be broken.
        made: files that were written.
        kept: files that were there already.
        frames: frames in the files that were written.
    """

    check: DatasetCheck
    made: int
    kept: int
    frames: int


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
    """Write the videos of a data set again, in ``to``: what is missing there, or was made with other settings.

    A video that cannot be read is left out and stands in the result. With several workers, a script has to call this
    below ``if __name__ == "__main__":``.

    Args:
        name: the data set, one of :func:`.registry.dataset_names`.
        root: the folder that holds it.
        to: the folder for the result: new, empty, or of an earlier call.
        encoding: how videos are written.
        cut: give each sub-action of FineGym a file of its own, instead of the events or videos that hold it.
        splits: which splits; None are all that can be opened.
        level: how closely the originals are looked at before (see :data:`.checking.LEVELS`).
        workers: processes; None is one for each core that may be used.
        progress: show progress bars.

    Raises:
        ValueError: ``to`` cannot take the result, or a clip cannot be part of it; nothing has been written then.
        WriteError: a file cannot be written; what is finished stays.
        FileNotFoundError: ``root`` is no folder.
    """
    root, to, encoding = Path(root), Path(to), encoding or Encoding()
    check_encoder()
    _check_folders(root, to)
    answers = open_splits(name, root, splits)
    opened = {split: clips for split, clips in answers.items() if isinstance(clips, ClipSet)}
    if not opened:
        raise ValueError("; ".join(f"{split} cannot be opened: {why}" for split, why in answers.items()))
    planned = {split: _plan(clips, to, encoding, cut) for split, clips in opened.items()}
    jobs = _distinct([job for plan in planned.values() for job in plan], to)
    check = check_dataset(name, root, splits=splits, level=level, workers=workers, progress=progress)
    with _Journal(to) as journal:
        if not cut and journal.holds_cuts():
            raise ValueError(
                f"--to {to} holds sub-actions that were cut, which would be read in place of whole videos; give --cut, "
                "or choose another folder"
            )
        _copy_annotations(name, root, to, {job.source: job.target for job in jobs})
        if name == "folder" and not (root / CLASSES).exists():
            # Without this list, classes of which nothing can be read would be no classes of the new folder.
            names = next(iter(opened.values())).class_names
            atomic_write(to / CLASSES, lambda path: path.write_text("".join(f"{n}\n" for n in names), encoding="utf-8"))
        waiting = [job for job in jobs if not journal.is_finished(job)]
        there = [job for job in waiting if job.source.exists()]
        gone = {job.key for job in waiting if not job.source.exists()}
        results = _make_all(there, journal, len(jobs) - len(waiting), workers or cores(), progress)
    failed = {job.key: result for job, result in results.items() if isinstance(result, str)}
    made = [result for result in results.values() if isinstance(result, Made)]
    check = _with_failures(check, opened, failed, gone, cut)
    _check_layout(to, opened, planned, {*failed, *gone})
    return Preparation(check, len(made), len(jobs) - len(waiting), sum(result.frames for result in made))


@dataclass(frozen=True)
class Job:
    """A file to be made.

    Attributes:
        source: the original.
        target: the new file.
        start: where it begins in the original, seconds; None is the beginning.
        end: where it ends; None is the end.
        encoding: how it is written.
    """

    source: Path
    target: Path
    start: float | None
    end: float | None
    encoding: Encoding

    @property
    def key(self) -> _Key:
        """What it is made of."""
        return self.source, self.start, self.end


def _check_folders(root: Path, to: Path) -> None:
    """Make sure that ``to`` is apart from ``root``, and empty or of an earlier call."""
    if not root.is_dir():
        raise FileNotFoundError(f"root {root} is {'no folder' if root.exists() else 'not there'}")
    inner, outer = to.resolve(), root.resolve()
    if inner == outer or inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise ValueError(
            f"--to {to} lies in --root {root}, or the other way round; expected separate folders: originals stay as "
            "they are"
        )
    check_writable(to, "--to")
    if to.is_dir() and not (to / JOURNAL).is_file() and any(not p.name.startswith(".") for p in to.iterdir()):
        raise ValueError(f"--to {to} holds something else (there is no {JOURNAL}); expected a new or empty folder")


def _plan(clip_set: ClipSet, to: Path, encoding: Encoding, cut: bool) -> list[Job]:
    """The file that each clip will lie in."""
    ids = _subaction_ids(clip_set) if cut else None
    jobs = []
    for index, clip in enumerate(clip_set):
        if clip.path.is_dir():
            raise ValueError(
                f"{clip.path} is a folder of frames, which is as quick to read as it can be; --to writes videos again"
            )
        if ids is not None:
            target = to / "subactions" / f"{ids[index]}.mp4"
            jobs.append(Job(clip.path, target, clip.start, clip.end, encoding))
            continue
        if not clip.path.is_relative_to(clip_set.root):
            raise ValueError(f"{clip.path} is not below --root {clip_set.root}; --to has no place for it")
        target = to / clip.path.relative_to(clip_set.root).with_suffix(".mp4")
        jobs.append(Job(clip.path, target, None, None, encoding))
    return jobs


def _subaction_ids(clip_set: ClipSet) -> tuple[str, ...]:
    from art.data.datasets.finegym import subaction_ids

    match = re.fullmatch(r"finegym(\d+)(?:_v(.+))?", clip_set.name)
    if match is None:
        raise ValueError(f"--cut cuts the sub-actions of FineGym out of longer videos; {clip_set.name!r} has none")
    return subaction_ids(clip_set.root, clip_set.split, int(match[1]), match[2] or "1.1")


def _distinct(jobs: Sequence[Job], to: Path) -> list[Job]:
    """The jobs, each once, none of which writes over another's result or over an original."""
    inside = to.resolve()
    for source in {job.source if job.source.is_symlink() else job.source.parent for job in jobs}:
        if source.resolve().is_relative_to(inside):
            raise ValueError(f"{source} is a link into --to {to}; expected originals elsewhere")
    found: dict[Path, Job] = {}
    for job in jobs:
        other = found.setdefault(job.target, job)
        if other.key != job.key:
            raise ValueError(f"{other.source} and {job.source} would both become {job.target}; rename one of them")
    return list(found.values())


class _Journal:
    """The finished files of a folder, a line each; while it is open, no other process works there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> _Journal:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / JOURNAL).open("a+", encoding="utf-8")
        try:
            _lock(self._file, self._folder)
            self._read()
        except BaseException:
            self._file.close()
            raise
        for partial in self._folder.rglob(f"*{PARTIAL}"):
            partial.unlink()  # left by a process that was killed
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def is_finished(self, job: Job) -> bool:
        """Whether the file of ``job`` is there, made of this original with these settings. An original that is gone
        has not changed."""
        entry = self._entries.get(self._name(job))
        if entry is None or not job.target.is_file() or job.target.stat().st_size != entry["bytes"]:
            return False
        if not job.source.exists():
            return bool(entry["encoding"] == str(job.encoding))
        made_of = (_state(job.source), job.start, job.end, str(job.encoding))
        return (entry["source"], entry["start"], entry["end"], entry["encoding"]) == made_of

    def holds_cuts(self) -> bool:
        """Whether a file is a part of its original."""
        return any((entry["start"], entry["end"]) != (None, None) for entry in self._entries.values())

    def note(self, job: Job, made: Made) -> None:
        """Write down that the file of ``job`` is finished."""
        entry = {
            "file": self._name(job),
            "source": _state(job.source),
            "start": job.start,
            "end": job.end,
            "encoding": str(job.encoding),
            "frames": made.frames,
            "bytes": made.bytes,
        }
        try:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        except OSError as error:
            raise WriteError(error.errno, error.strerror, str(self._folder / JOURNAL)) from error

    def _read(self) -> None:
        self._file.seek(0)
        text = self._file.read()
        for line in text.splitlines():
            with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):  # a line that was being written
                entry = json.loads(line)
                self._entries[entry["file"]] = entry
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def _name(self, job: Job) -> str:
        return job.target.relative_to(self._folder).as_posix()


def _state(path: Path) -> list[int]:
    """What tells that a file has changed."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _lock(file: TextIO, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"--to {folder}: another process is writing there; wait for it or choose another") from None
    except OSError:
        return  # a file system without locks


def _make_all(jobs: Sequence[Job], journal: _Journal, kept: int, workers: int, progress: bool) -> dict[Job, Made | str]:
    results: dict[Job, Made | str] = {}
    total = kept + len(jobs)
    made = contextlib.closing(in_processes(_make, jobs, min(workers, max(1, len(jobs)))))
    bar = tqdm(total=total, initial=kept, desc="re-encode", unit="video", disable=not progress)
    try:
        with made as done, bar:
            for job, result in done:
                if isinstance(result, Made):
                    journal.note(job, result)
                results[job] = result
                bar.update()
    except WriteError as error:
        raise WriteError(
            error.errno,
            f"{error.strerror}. {len(results)} videos were made before and stay; the same command goes on from there",
            error.filename,
        ) from error
    return results


def _make(job: Job) -> Made | str:
    """The file of a job, or what is wrong with its original."""
    try:
        return reencode(job.source, job.target, job.encoding, start=job.start, end=job.end, stop=stopping)
    except VideoError as error:
        return error.reason


def _copy_annotations(name: str, root: Path, to: Path, targets: dict[Path, Path]) -> None:
    """Copy what readers look for: the annotation files, and the tables and texts in the root itself."""
    found = [file.path for file in required_files(name, root) if file.found]
    beside = [path for path in root.iterdir() if path.suffix.lower() in _ANNOTATIONS and path.is_file()]
    for path in {*found, *beside}:
        target = to / path.relative_to(root)
        renamed = _renamed(name, path, root, to, targets)
        if renamed is None:
            atomic_write(target, lambda partial, path=path: shutil.copyfile(path, partial))  # type: ignore[misc]
        else:
            atomic_write(target, lambda partial, text=renamed: partial.write_text(text, encoding="utf-8"))  # type: ignore[misc]


def _renamed(name: str, table: Path, root: Path, to: Path, targets: dict[Path, Path]) -> str | None:
    """A table of a user's own with the paths of the new files; None where it holds no paths."""

    def new(written: str) -> str:
        target = targets.get(root / written)
        return written if target is None else target.relative_to(to).as_posix()

    if name == "csv" and table.suffix == ".csv":
        rows = list(csv.reader(io.StringIO(table.read_text(encoding="utf-8-sig"))))
        header = next((row for row in rows if any(row)), [])
        names = [cell.strip() for cell in header]
        if "path" not in names:
            return None
        column, text = names.index("path"), io.StringIO()
        for row in rows:
            if row is not header and len(row) > column:
                row[column] = new(row[column].strip())
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()
    if name == "list":
        lines = []
        for line in table.read_text(encoding="utf-8-sig").splitlines():
            match = _LIST_LINE.fullmatch(line.strip())
            lines.append(new(match["path"]) + match["rest"] if match else line)
        return "".join(f"{line}\n" for line in lines)
    return None


def _with_failures(
    check: DatasetCheck,
    opened: dict[str, ClipSet],
    failed: dict[_Key, str],
    gone: set[_Key],
    cut: bool,
) -> DatasetCheck:
    """The check with what turned out when the files were made."""

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
            elif problem is not None and problem.kind == "missing" and key(clip) not in gone:
                problem = None  # made earlier, of an original that has been removed
            if problem is not None:
                problems.append(problem)
        splits.append(replace(split, problems=tuple(problems)))
    return replace(check, splits=tuple(splits))


def _check_layout(to: Path, opened: dict[str, ClipSet], planned: dict[str, list[Job]], without: set[_Key]) -> None:
    """Make sure that the reader finds in ``to`` what has been written, under the same classes."""
    for split, clip_set in opened.items():
        labels = zip(planned[split], clip_set.labels, strict=True)
        expected = {(job.target, label) for job, label in labels if job.key not in without}
        if not expected:
            continue
        new = open_dataset(clip_set.name, to, split)
        astray = sorted(expected - {(clip.path, clip.label) for clip in new})
        if astray or new.class_names != clip_set.class_names:
            what = f"{len(astray)} clips, such as {astray[0][0]}" if astray else "its class names"
            raise RuntimeError(f"{clip_set.name} in {to} is read otherwise than in {clip_set.root}: {what}")
