"""Checks of a dataset: finds missing annotation files, and missing or broken clips of each split."""

from __future__ import annotations

import bisect
import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from art.data.dataset import check_clip_set
from art.data.datasets.base import Clip, ClipSet, RequiredFile, dataset_splits, open_dataset, required_files
from art.data.datasets.directories import lacks_split_directories, split_directory
from art.data.datasets.splits import check_splits
from art.data.decoding.source import TOLERANCE
from art.data.decoding.video import VideoError, decoded_bytes, frame_times, iterate_frames, read_frames
from art.data.parallel import Stopped, available_cores, map_processes, stop_requested
from art.terminal import Progress, printable

#: Levels of a check, with a description for the report.
LEVELS = {
    "exist": "checked that every file exists",
    "open": "opened every file and listed its frames",
    "decode": "decoded every frame of every clip",
}
_KINDS = ("missing", "broken", "doubtful")

_MAX_NAMES = 3  # clips listed for each problem
_END_MARGIN = 0.5  # seconds by which a clip may end after its video
_MIN_FILES_PER_WORKER = 32  # starting another process takes longer than checking this many files

_Span = tuple[float | None, float | None]
_Finding = tuple[str, str]  # kind and reason of a problem


@dataclass(frozen=True)
class Problem:
    """A problem of a clip. Its kind is "missing", "broken", or "doubtful": readable, but the end of the clip or another
    part of its file is not."""

    clip: str  # path relative to the root
    start: float | None  # seconds, as in Clip
    end: float | None
    kind: str
    reason: str  # without a subject


@dataclass(frozen=True)
class SplitCheck:
    """The result for one split."""

    split: str
    clips: int = 0  # number of clips
    files: int = 0  # number of files or directories of frames that contain them
    problems: tuple[Problem, ...] = ()
    error: str | None = None  # why the split could not be opened

    def count(self, kind: str) -> int:
        """Return the number of clips with a problem of this kind."""
        return sum(problem.kind == kind for problem in self.problems)

    @property
    def failed_fraction(self) -> float:
        """Fraction of clips that are missing or broken; 1 if the split could not be opened."""
        return (self.count("missing") + self.count("broken")) / self.clips if self.clips else 1.0


@dataclass(frozen=True)
class DatasetCheck:
    """The result for a dataset. ``level`` is one of ``LEVELS``; ``annotations`` are the files that its reader needs;
    ``notes`` are facts about several splits, such as how they were generated, and clips that are in two of them."""

    name: str
    root: Path
    level: str
    annotations: tuple[RequiredFile, ...]
    splits: tuple[SplitCheck, ...]
    notes: tuple[str, ...] = ()

    @property
    def failed_fraction(self) -> float:
        """Largest fraction of missing and broken clips of any split."""
        return max((split.failed_fraction for split in self.splits), default=1.0)

    def as_json(self) -> dict[str, Any]:
        """Return the result in a form that :func:`json.dumps` accepts."""
        return {
            "dataset": self.name,
            "root": str(self.root),
            "check": self.level,
            "annotation_files": [{**asdict(file), "path": str(file.path)} for file in self.annotations],
            "notes": list(self.notes),
            "splits": {
                split.split: {
                    "error": split.error,
                    "clips": split.clips,
                    "files": split.files,
                    **{kind: split.count(kind) for kind in _KINDS},
                    "problems": [asdict(problem) for problem in split.problems],
                }
                for split in self.splits
            },
        }


def open_splits(name: str, root: Path, splits: Sequence[str] | None = None) -> dict[str, ClipSet | str]:
    """Open splits of a dataset, by default all; a split that cannot be opened is replaced with the error message.

    Raises:
        FileNotFoundError: ``root`` is not a directory.
        ValueError: the dataset is unknown, has none of the splits, or is stored in shards.
    """
    if name == "shards":
        raise ValueError("shards cannot be checked; check the dataset that they are written from")
    known = dataset_splits(name, root)
    if not known:
        open_dataset(name, root, "train")  # raises an error that lists what is missing
    unknown = [split for split in splits or () if split not in known]
    if unknown or not known:
        problem = f"splits: {unknown[0]!r} is not a split of" if unknown else f"{root} has no split of"
        raise ValueError(f"{problem} {name!r}; expected {', '.join(known) or 'annotation files or split directories'}")
    opened: dict[str, ClipSet | str] = {}
    for split in splits or known:
        try:
            opened[split] = open_dataset(name, root, split)
        except (ValueError, OSError) as error:
            opened[split] = str(error)
    return opened


def check_dataset(
    name: str,
    root: str | os.PathLike[str],
    *,
    splits: Sequence[str] | None = None,
    level: str = "open",
    workers: int | None = None,
    progress: bool = True,
) -> DatasetCheck:
    """Check the annotation files, each split, and the file of each clip. Nothing is written.

    With several workers, a script must call this below ``if __name__ == "__main__":``.

    Args:
        name: the dataset, one of :func:`art.data.dataset_names`.
        root: its directory.
        splits: names of splits; None is all of them.
        level: how thorough the check is, one of ``LEVELS``.
        workers: number of processes; None is one per available core.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: ``root`` is not a directory.
        ValueError: the dataset, a split or the level is unknown.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    root = Path(root)
    opened = open_splits(name, root, splits)
    clip_sets = {split: clips for split, clips in opened.items() if isinstance(clips, ClipSet)}
    missing = {split: check_clip_set(clips) for split, clips in clip_sets.items()}
    found: dict[tuple[Path, _Span], _Finding] = {}
    if level != "exist":
        existing = (c for split, clips in clip_sets.items() for i, c in enumerate(clips) if i not in missing[split])
        found = _inspect_files(existing, level, workers or available_cores(), progress)
    checks = []
    for split, clips in opened.items():
        if isinstance(clips, str):
            checks.append(SplitCheck(split, error=clips))
            continue
        problems = []
        for i, clip in enumerate(clips):
            finding = found.get((clip.path, (clip.start, clip.end)))
            if i in missing[split]:
                finding = "broken" if clip.path.exists() else "missing", missing[split][i]
            if finding is not None:
                problems.append(Problem(clips.relative_path(i), clip.start, clip.end, *finding))
        checks.append(SplitCheck(split, len(clips), len({clip.path for clip in clips}), tuple(problems)))
    notes = _check_across_splits(name, root, clip_sets)
    return DatasetCheck(name, root, level, required_files(name, root), tuple(checks), tuple(notes))


def _check_across_splits(name: str, root: Path, clip_sets: dict[str, ClipSet]) -> list[str]:
    notes = split_directory(root).notes if name == "folder" and lacks_split_directories(root) else []
    train = clip_sets.get("train")
    if train is None:
        return notes
    others = [clips for split, clips in clip_sets.items() if split != "train"]
    # A problem of the training split alone is reported for each of the others.
    return list(dict.fromkeys([*notes, *(problem for other in others for problem in check_splits(train, other))]))


def _inspect_files(
    clips: Iterable[Clip], level: str, workers: int, progress: bool
) -> dict[tuple[Path, _Span], _Finding]:
    """Open each file once and return the problem of each clip that has one."""
    spans: dict[Path, dict[_Span, None]] = {}
    for clip in clips:
        spans.setdefault(clip.path, {})[clip.start, clip.end] = None
    jobs = [(path, tuple(parts), level) for path, parts in spans.items()]
    workers = min(workers, 1 + len(jobs) // _MIN_FILES_PER_WORKER)
    found = {}
    with (
        contextlib.closing(map_processes(_inspect_file, jobs, workers)) as results,
        Progress("check", len(jobs), "file", show=progress) as bar,
    ):
        for (path, _, _), problems in results:
            found.update({(path, span): problem for span, problem in problems.items()})
            bar.update()
    return found


def _inspect_file(job: tuple[Path, tuple[_Span, ...], str]) -> dict[_Span, _Finding]:
    path, spans, level = job
    try:
        if path.is_dir():
            (read_frames if level == "decode" else decoded_bytes)(path)
            return {}
        times = frame_times(path)
    except VideoError as error:
        found = {span: _inspect_span(path, span, "open", error.reason) for span in spans}
    else:
        found = {span: _compare_with_times(times, span) for span in spans}
    if level == "decode":
        for span, problem in found.items():
            if problem is None or problem[0] == "doubtful":
                found[span] = _inspect_span(path, span, "decode") or problem
    return {span: problem for span, problem in found.items() if problem is not None}


def _inspect_span(path: Path, span: _Span, level: str, file_problem: str | None = None) -> _Finding | None:
    """Return the problem of a part of a file; ``file_problem`` is that of the file as a whole."""
    if span == (None, None) and file_problem is not None:
        return "broken", file_problem
    try:
        if level == "open":
            frame_times(path, start=span[0], end=span[1])
        else:
            for _ in iterate_frames(path, start=span[0], end=span[1]):
                if stop_requested():
                    raise Stopped
    except VideoError as error:
        return "broken", error.reason
    return None if file_problem is None else ("doubtful", f"another part of its file cannot be read: it {file_problem}")


def _compare_with_times(times: Sequence[float], span: _Span) -> _Finding | None:
    start, end = span
    first = bisect.bisect_left(times, (start or 0.0) - TOLERANCE)
    last = len(times) if end is None else bisect.bisect_left(times, end - TOLERANCE)
    if first >= last:
        return "broken", f"has no video frame from {start or 0:g} s to {'its end' if end is None else f'{end:g} s'}"
    if (start or 0.0) < times[0] - TOLERANCE:
        return "doubtful", f"the first {times[0]:.2f} s cannot be decoded, because they precede the first keyframe"
    length = times[-1] + (times[-1] - times[0]) / max(len(times) - 1, 1)
    if end is not None and end > length + _END_MARGIN:
        return "doubtful", f"the video ends at {length:.2f} s, {end - length:.2f} s before the clip does"
    return None


def as_table(check: DatasetCheck) -> str:
    """Format the result as text: counts by split and by problem, with the first clips of each."""
    rows: list[tuple[str, ...]] = [("split", "clips", "files", "good", "missing", "broken", "bad")]
    for split in check.splits:
        if split.error is None:
            missing, broken = split.count("missing"), split.count("broken")
            numbers = (split.clips, split.files, split.clips - missing - broken, missing, broken)
            rows.append((split.split, *map(str, numbers), f"{split.failed_fraction:.2%}"))
    lines = [f"{check.name} in {check.root}: {LEVELS[check.level]}", ""]
    if len(rows) > 1:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, *cells in rows:
            padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([name.ljust(widths[0]), *padded]))
        lines.append("")
    lines += [f"{split.split} cannot be opened: {split.error}" for split in check.splits if split.error]
    lines += [f"note: {note}" for note in check.notes]
    errors = " ".join(split.error or "" for split in check.splits)
    absent = [file for file in check.annotations if not file.found and file.splits and file.path.name not in errors]
    lines += [f"missing {file.path} (for {', '.join(file.splits)}), available from {file.source}" for file in absent]
    for kind in _KINDS:
        groups: dict[str, list[Problem]] = {}  # by reason without its numbers
        for problem in (problem for split in check.splits for problem in split.problems if problem.kind == kind):
            groups.setdefault(re.sub(r"\d+(\.\d+)?", "…", problem.reason), []).append(problem)
        for problems in sorted(groups.values(), key=len, reverse=True):
            lines.append(f"{len(problems)} {'clip' if len(problems) == 1 else 'clips'} {kind}: {problems[0].reason}")
            lines += [f"    {Clip(Path(p.clip), 0, p.start, p.end)}" for p in problems[:_MAX_NAMES]]
            if len(problems) > _MAX_NAMES:
                lines.append(f"    and {len(problems) - _MAX_NAMES} more")
    return "\n".join(map(printable, lines)).rstrip() + "\n"
