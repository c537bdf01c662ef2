"""The record of a run's clips, ``data.json``, to detect on resuming that rows, labels or files have changed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from art.data.datasets.base import ClipSet
from art.data.files import read_json_mapping
from art.terminal import list_names

_FORMAT = 1
_COLUMNS = 5
_SAMPLE = 16 * 2**10  # bytes
_THREADS = 16  # hide the latency of a network file system


class DataChanged(ValueError):
    """The data of a run is not what it was when the run was started. ``difference`` is the message without advice."""

    def __init__(self, message: str, difference: str | None = None) -> None:
        super().__init__(message)
        self.difference = difference or message


def record_data(splits: Sequence[ClipSet]) -> dict[str, Any]:
    """Return what identifies the clips of the splits, for :func:`check_unchanged`.

    A clip is a row ``[path, label, start, end, file]``; ``file`` is "<size>-<checksum of samples>" of a file, the
    number of entries of a directory of frames, and None if there is no such file. Reading 48 KiB per file finds
    replaced files, also if their modification times differ only because the dataset was copied.
    """
    paths = list(dict.fromkeys(clip.path for clip_set in splits for clip in clip_set))
    with ThreadPoolExecutor(_THREADS) as pool:
        files = dict(zip(paths, pool.map(_identify, paths), strict=True))
    shards: dict[Path, str | None] = {}
    for path in paths:  # a clip in a shard: its path is that of the shard plus a key
        if files[path] is None and path.parent not in shards:
            shards[path.parent] = _identify(path.parent) if path.parent.is_file() else None
    record: dict[str, Any] = {"format": _FORMAT, "splits": {}}
    for clip_set in splits:
        rows = [
            [clip_set.relative_path(i), clip.label, clip.start, clip.end, files[clip.path] or shards[clip.path.parent]]
            for i, clip in enumerate(clip_set)
        ]
        record["splits"][clip_set.split] = {"class_names": list(clip_set.class_names), "clips": rows}
    return record


def format_record(record: Mapping[str, Any]) -> str:
    """Return the record as JSON with one line per clip."""
    splits = []
    for name, split in record["splits"].items():
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in split["clips"])
        names = json.dumps(split["class_names"], ensure_ascii=False)
        splits.append(f'{json.dumps(name, ensure_ascii=False)}: {{"class_names": {names}, "clips": [\n{rows}\n]}}')
    return f'{{"format": {record["format"]}, "splits": {{\n' + ",\n".join(splits) + "\n}}\n"


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a run.

    Raises:
        ValueError: it cannot be read.
    """
    record = read_json_mapping(path)
    try:
        if record["format"] != _FORMAT:
            raise ValueError(f"format {record['format']!r}")
        for split in record["splits"].values():
            if any(len(row) != _COLUMNS for row in split["clips"]):
                raise ValueError("a clip with another number of values")
            split["class_names"] = list(split["class_names"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: is not a record of the data of a run ({error}); restore it.") from error
    return record


def check_unchanged(saved: Mapping[str, Any], current: Mapping[str, Any], source: str) -> None:
    """Compare two records; ``source`` is the file of the first one.

    Raises:
        DataChanged: they differ; the message describes how.
    """
    differences = []
    for name, now in current["splits"].items():
        if name in saved["splits"] and (found := _differences(saved["splits"][name], now)):
            differences.append(f"{name} split: {', '.join(found)}")
    if differences:
        difference = f"{source}: the data has changed since the run was started: {'; '.join(differences)}."
        raise DataChanged(
            f"{difference} Restore the data, start another run with output=..., or accept the change with "
            "--allow-changed-data.",
            difference,
        )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    if before["class_names"] != now["class_names"]:
        found.append(f"{len(before['class_names'])} classes then, {len(now['class_names'])} now, with other names")
    old, new = ({(row[0], row[2], row[3]): (row[1], row[4]) for row in split["clips"]} for split in (before, now))
    if len(old) != len(new):
        found.append(f"{len(old)} clips then, {len(new)} now")
    common = [key for key in old if key in new]
    for what, changed in (
        ("added", [key[0] for key in new if key not in old]),
        ("removed", [key[0] for key in old if key not in new]),
        ("with another label", [f"{k[0]}: {old[k][0]}, now {new[k][0]}" for k in common if old[k][0] != new[k][0]]),
        ("whose file is missing now", [key[0] for key in common if old[key][1] != new[key][1] is None]),
        ("with another file", [key[0] for key in common if old[key][1] != new[key][1] is not None]),
    ):
        if changed:
            found.append(f"{len(changed)} {what} ({list_names(changed)})")
    if not found and before["clips"] != now["clips"]:
        found.append("the same clips in another order")
    return found


def _identify(path: Path) -> str | None:
    """Return what changes when a file is replaced; None if it cannot be read."""
    try:
        if path.is_dir():
            return f"{sum(1 for _ in path.iterdir())} entries"
        if not path.is_file():  # a named pipe would be read forever
            return None
        with path.open("rb") as file:
            size = file.seek(0, 2)
            checksum = 0
            for start in dict.fromkeys((0, max(0, (size - _SAMPLE) // 2), max(0, size - _SAMPLE))):
                file.seek(start)
                checksum = zlib.crc32(file.read(_SAMPLE), checksum)
        return f"{size}-{checksum:08x}"
    except OSError:
        return None
