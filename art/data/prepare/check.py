"""Which clips of a data set are missing or broken: the annotation files, each split, and each clip's file."""

from __future__ import annotations

import bisect
import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from art.data.datasets.clips import Clip, ClipSet
from art.data.datasets.registry import RequiredFile, dataset_splits, open_dataset, required_files
from art.data.decoding.pyav import TOLERANCE
from art.data.decoding.video import VideoError, decoded_bytes, frame_times, iterate_frames, read_frames
from art.data.loading.dataset import check_clip_set
from art.data.parallel import Stopped, cores, in_processes, stopping

#: How closely files are looked at.
LEVELS = {
    "exist": "every file looked for",
    "open": "every file opened and its frames listed",
    "decode": "every frame of every clip decoded",
}

_NAMED = 3  # clips that are named for each thing that is wrong
_LATE = 0.5  # seconds after the end of a video in which a clip may still end
_FEW = 32  # files that one process looks at sooner than another has started

Span = tuple[float | None, float | None]
_WHOLE: Span = (None, None)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a clip.

    Attributes:
        clip: its path below the root.
        start: where it starts in the file, seconds; None is the beginning.
        end: where it ends in the file, seconds; None is the end.
        kind: "missing", "broken", or "doubtful": it can be read, but not its end, or not another part of its file.
        reason: a sentence without its subject.
    """

    clip: str
    start: float | None
    end: float | None
    kind: str
    reason: str


@dataclass(frozen=True)
class SplitCheck:
    """What was found in a split.

    Attributes:
        split: its name.
        clips: how many clips it lists.
        files: how many files (or folders of frames) they lie in.
        problems: the clips that something is wrong with.
        error: why the split could not be opened, in which case there is nothing else; None where it could.
    """

    split: str
    clips: int = 0
    files: int = 0
    problems: tuple[Problem, ...] = ()
    error: str | None = None

    def count(self, kind: str) -> int:
        """How many clips are ``kind``."""
        return sum(problem.kind == kind for problem in self.problems)

    @property
    def bad_share(self) -> float:
        """The share of clips that are missing or broken; 1 where the split could not be opened."""
        return (self.count("missing") + self.count("broken")) / self.clips if self.clips else 1.0


@dataclass(frozen=True)
class DatasetCheck:
    """What was found in a data set: ``level`` is one of ``LEVELS``, ``annotations`` what its reader looks for."""

    name: str
    root: Path
    level: str
    annotations: tuple[RequiredFile, ...]
    splits: tuple[SplitCheck, ...]

    @property
    def bad_share(self) -> float:
        """The share of bad clips in the worst split."""
        return max((split.bad_share for split in self.splits), default=1.0)

    def as_json(self) -> dict[str, Any]:
        """All of it, for :func:`json.dumps`."""
        counts = ("missing", "broken", "doubtful")
        return {
            "dataset": self.name,
            "root": str(self.root),
            "check": self.level,
            "annotation_files": [{**asdict(file), "path": str(file.path)} for file in self.annotations],
            "splits": {
                split.split: {
                    "error": split.error,
                    "clips": split.clips,
                    "files": split.files,
                    **{kind: split.count(kind) for kind in counts},
                    "problems": [asdict(problem) for problem in split.problems],
                }
                for split in self.splits
            },
        }


def open_splits(name: str, root: Path, splits: Sequence[str] | None = None) -> dict[str, ClipSet | str]:
    """The clips of each split; for one that cannot be opened, why.

    Args:
        name: the data set.
        root: the folder that holds it.
        splits: which; None are all that there are.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: the data set is unknown, has none of the splits, or is in shards.
    """
    if name == "shards":
        raise ValueError("shards have no files to look at; check the data set that they are written from, and write it")
    known = dataset_splits(name, root)
    unknown = [split for split in splits or () if split not in known]
    if unknown or not known:
        named = f"splits: {unknown[0]!r} is none of" if unknown else f"{root} holds no split of"
        raise ValueError(f"{named} {name!r}; expected {', '.join(known) or 'annotations or folders of splits'}")
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
    """Look for the annotation files, open each split, and look at each clip's file; nothing is written.

    With several workers, a script has to call this below ``if __name__ == "__main__":``.

    Args:
        name: the data set, one of :func:`.registry.dataset_names`.
        root: the folder that holds it.
        splits: which splits; None are all.
        level: how closely files are looked at, one of ``LEVELS``.
        workers: processes; None is one for each core that may be used.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: ``root`` is no folder.
        ValueError: an unknown data set, split or level.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    root = Path(root)
    opened = open_splits(name, root, splits)
    missing = {split: check_clip_set(clips) for split, clips in opened.items() if isinstance(clips, ClipSet)}
    found: dict[tuple[Path, Span], tuple[str, str]] = {}
    if level != "exist":
        there = (clip for split, bad in missing.items() for i, clip in enumerate(_clips(opened, split)) if i not in bad)
        found = _look_at_all(there, level, workers or cores(), progress)
    checks = []
    for split, clips in opened.items():
        if isinstance(clips, str):
            checks.append(SplitCheck(split, error=clips))
            continue
        problems = []
        for i, clip in enumerate(clips):
            if i in missing[split]:
                kind = "broken" if clip.path.exists() else "missing"
                problems.append(problem_of(clips, i, kind, missing[split][i]))
            elif (clip.path, (clip.start, clip.end)) in found:
                problems.append(problem_of(clips, i, *found[clip.path, (clip.start, clip.end)]))
        checks.append(SplitCheck(split, len(clips), len({clip.path for clip in clips}), tuple(problems)))
    return DatasetCheck(name, root, level, required_files(name, root), tuple(checks))


def problem_of(clip_set: ClipSet, index: int, kind: str, reason: str) -> Problem:
    """A problem of clip ``index``."""
    clip = clip_set.clips[index]
    return Problem(clip_set.relative_path(index), clip.start, clip.end, kind, reason)


def as_table(check: DatasetCheck) -> str:
    """What was found, for people: counts by split and by what is wrong, and the first clips of each."""
    rows: list[tuple[str, ...]] = [("split", "clips", "files", "good", "missing", "broken", "bad")]
    for split in check.splits:
        if split.error is None:
            missing, broken = split.count("missing"), split.count("broken")
            numbers = (split.clips, split.files, split.clips - missing - broken, missing, broken)
            rows.append((split.split, *map(str, numbers), f"{split.bad_share:.2%}"))
    lines = [f"{check.name} in {check.root}: {LEVELS[check.level]}", ""]
    if len(rows) > 1:
        lines += [*_aligned(rows), ""]
    lines += [f"{split.split} cannot be opened: {split.error}" for split in check.splits if split.error]
    told = " ".join(split.error or "" for split in check.splits)
    absent = [file for file in check.annotations if not file.found and file.splits and file.path.name not in told]
    lines += [f"no {file.path} (for {', '.join(file.splits)}), from {file.source}" for file in absent]
    for kind in ("missing", "broken", "doubtful"):
        groups: dict[str, list[Problem]] = {}
        for problem in (problem for split in check.splits for problem in split.problems if problem.kind == kind):
            groups.setdefault(re.sub(r"\d+(\.\d+)?", "…", problem.reason), []).append(problem)
        for problems in sorted(groups.values(), key=len, reverse=True):
            lines.append(f"{len(problems)} {'clip' if len(problems) == 1 else 'clips'} {kind}: {problems[0].reason}")
            lines += [f"    {_named(problem)}" for problem in problems[:_NAMED]]
            if len(problems) > _NAMED:
                lines.append(f"    and {len(problems) - _NAMED} more")
    return "\n".join(lines).rstrip() + "\n"


def _named(problem: Problem) -> str:
    return str(Clip(Path(problem.clip), 0, problem.start, problem.end))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(cells)).rstrip()
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]


def _clips(opened: dict[str, ClipSet | str], split: str) -> tuple[Clip, ...]:
    clips = opened[split]
    assert isinstance(clips, ClipSet)
    return clips.clips


@dataclass(frozen=True)
class _Job:
    """A file, and the parts of it that are clips."""

    path: Path
    spans: tuple[Span, ...]
    level: str


def _look_at_all(
    clips: Iterable[Clip], level: str, workers: int, progress: bool
) -> dict[tuple[Path, Span], tuple[str, str]]:
    """The kind and the reason of each problem."""
    spans: dict[Path, dict[Span, None]] = {}
    for clip in clips:
        spans.setdefault(clip.path, {})[clip.start, clip.end] = None
    jobs = [_Job(path, tuple(parts), level) for path, parts in spans.items()]
    workers = min(workers, 1 + len(jobs) // _FEW)
    found = {}
    looked = contextlib.closing(in_processes(_look, jobs, workers))
    with looked as results, tqdm(total=len(jobs), desc="check", unit="file", disable=not progress) as bar:
        for job, problems in results:
            found.update({(job.path, span): problem for span, problem in problems.items()})
            bar.update()
    return found


def _look(job: _Job) -> dict[Span, tuple[str, str]]:
    try:
        if job.path.is_dir():
            (read_frames if job.level == "decode" else decoded_bytes)(job.path)
            return {}
        times = frame_times(job.path)
    except VideoError as error:
        looked = {span: _read_part(job.path, span, "open", error.reason) for span in job.spans}
    else:
        looked = {span: _problem_of_span(times, span) for span in job.spans}
    if job.level == "decode":
        for span, problem in looked.items():
            if problem is None or problem[0] == "doubtful":
                looked[span] = _read_part(job.path, span, "decode") or problem
    return {span: problem for span, problem in looked.items() if problem is not None}


def _read_part(path: Path, span: Span, level: str, elsewhere: str | None = None) -> tuple[str, str] | None:
    """What is wrong with a part of a file, of which ``elsewhere`` is known to be wrong as a whole."""
    if span == _WHOLE and elsewhere is not None:
        return "broken", elsewhere
    try:
        if level == "open":
            frame_times(path, start=span[0], end=span[1])
        else:
            for _ in iterate_frames(path, start=span[0], end=span[1]):
                if stopping():
                    raise Stopped
    except VideoError as error:
        return "broken", error.reason
    return None if elsewhere is None else ("doubtful", f"another part of its file cannot be read: it {elsewhere}")


def _problem_of_span(times: Sequence[float], span: Span) -> tuple[str, str] | None:
    start, end = span
    first = bisect.bisect_left(times, (start or 0.0) - TOLERANCE)
    last = len(times) if end is None else bisect.bisect_left(times, end - TOLERANCE)
    if first >= last:
        return "broken", f"has no video frame from {start or 0:g} s to {'its end' if end is None else f'{end:g} s'}"
    length = times[-1] + (times[-1] - times[0]) / max(len(times) - 1, 1)
    if end is not None and end > length + _LATE:
        return "doubtful", f"the video ends at {length:.2f} s, {end - length:.2f} s before the clip does"
    return None
