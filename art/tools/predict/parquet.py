"""Predictions as a folder of Parquet files, made on several devices; a second call makes what is missing.

The folder holds ``part-000000.parquet``, … , each whole or absent, and ``_predictions.json``, which says what they are
predictions of. Whatever reads a folder of Parquet files reads them as one table: ``pandas.read_parquet(folder)``.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from art.data.files import atomic_write, check_writable
from art.data.inputs import Source, find_sources
from art.data.parallel import Stopped, map_processes, stop_requested, worker_slot
from art.eval.evaluate import find_checkpoint
from art.extras import import_extra
from art.model.pretrained import CONFIG_FILE, WEIGHTS_FILE
from art.tools.predict.predictor import Answer, ClipPredictor, PredictionSettings
from art.train.interruption import ending_on_sigterm

ABOUT = "_predictions.json"
_FORMAT = 1


@dataclass(frozen=True)
class Written:
    """What is in the folder.

    Attributes:
        clips: rows.
        errors: rows of clips that could not be read.
        parts: files.
        kept: how many of the files were there before.
    """

    clips: int
    errors: int
    parts: int
    kept: int


@dataclass(frozen=True)
class _Part:
    path: Path
    source: Source
    settings: PredictionSettings
    every_probability: bool


def predict_to_parquet(
    inputs: Sequence[Path],
    settings: PredictionSettings,
    out: Path,
    *,
    devices: Sequence[str] = ("auto",),
    every_probability: bool = False,
    part_clips: int = 512,
) -> Written:
    """Predict clips, and write a row for each.

    Columns: "clip", its path or shard and key; "start" and "end", seconds, null for the beginning and the end of the
    file; "class" and "probability", the best answer; "top_classes" and "top_probabilities", lists of the ``top_k``
    best; with ``every_probability`` also "probabilities", the list of all, in the order of "art.class_names" in the
    metadata of the schema (JSON); "error", null where there is an answer. Parts that are there are not made again.

    Args:
        inputs: see :func:`.sources.find_sources`.
        settings: of the model.
        out: the folder; new, empty, or of a call with the same inputs, checkpoint and settings.
        devices: of processes that predict at once; one predicts in this process.
        every_probability: write all probabilities.
        part_clips: clips a file, of those that are files; a shard makes a file of its own.

    Raises:
        ValueError: before any work: an input without clips, or a folder of other predictions.
        ModuleNotFoundError: pyarrow is not installed.
        Interrupted: on SIGTERM; what is finished stays.
    """
    parquet = import_extra("pyarrow.parquet", extra="parquet", needed_by="writing predictions (art predict --out)")
    check_writable(out, "out")
    sources = find_sources(inputs, part_clips)
    about = _about(sources, settings, every_probability)
    _begin(out, about)
    parts = [
        _Part(out / f"part-{number:06d}.parquet", source, settings, every_probability)
        for number, source in enumerate(sources)
    ]
    left = [part for part in parts if not part.path.exists()]
    workers = min(len(devices), len(left))
    with ending_on_sigterm(), tqdm(total=len(left), desc="predict", unit="part", disable=None) as bar:
        if left:
            with closing(map_processes(_predict_part, left, workers, devices[:workers])) as done:
                for _ in done:
                    bar.update()
    tables = [parquet.ParquetFile(part.path) for part in parts]
    clips = sum(table.metadata.num_rows for table in tables)
    readable = sum(table.read(columns=["error"]).column("error").null_count for table in tables)
    return Written(clips, clips - readable, len(parts), len(parts) - len(left))


def _about(sources: Sequence[Source], settings: PredictionSettings, every_probability: bool) -> dict[str, Any]:
    """What decides the content of the files."""
    checkpoint, digest = find_checkpoint(settings.checkpoint), hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (checkpoint / name).open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    listed = hashlib.sha256("\0".join("\n".join(source.names) for source in sources).encode())
    shown = {name: value for name, value in asdict(settings).items() if name in _DECISIVE}
    return {
        "format": _FORMAT,
        "checkpoint": digest.hexdigest(),
        **shown,
        "every_probability": every_probability,
        "clips": listed.hexdigest(),
        "parts": len(sources),
    }


_DECISIVE = ("top_k", "views", "crops", "precision", "decoder")


def _begin(out: Path, about: dict[str, Any]) -> None:
    path = out / ABOUT
    if path.is_file():
        former = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in about if former.get(name) != about[name]]
        if differing:
            told = ", ".join(f"{name} (was {former.get(name)!r}, is {about[name]!r})" for name in differing)
            raise ValueError(f"out: {out} holds predictions with another {told}; choose another folder, or remove it")
    elif out.is_dir() and any(not path.name.startswith("_") for path in out.iterdir()):
        raise ValueError(f"out: {out} holds something, and no {ABOUT}; expected a new or empty folder, or one to go on")
    atomic_write(path, lambda partial: partial.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8"))


def _predict_part(part: _Part) -> None:
    """In a process of its own where there are several; the model stays there from one part to the next."""
    predictor = _predictor(part.settings, worker_slot())
    answers = []
    for answer in predictor(part.source.open()):
        if stop_requested():
            raise Stopped
        answers.append(answer)
    write_part(part.path, answers, predictor.class_names, part.settings.top_k, part.every_probability)


@functools.lru_cache(maxsize=1)
def _predictor(settings: PredictionSettings, device: str) -> ClipPredictor:
    return ClipPredictor(settings, device)


def write_part(
    path: Path, answers: Sequence[Answer], class_names: Sequence[str], top_k: int, every_probability: bool
) -> None:
    """One Parquet file; see :func:`predict_to_parquet`. Until it is whole its name begins with "_", which readers of
    folders pass over."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float32())
    kinds = {"clip": pa.string(), "start": pa.float64(), "end": pa.float64(), "class": pa.string()}
    kinds |= {"probability": pa.float32(), "top_classes": texts, "top_probabilities": numbers}
    kinds |= {"probabilities": numbers} if every_probability else {}
    schema = pa.schema([*kinds.items(), ("error", pa.string())], {"art.class_names": json.dumps([*class_names])})
    rows = columns(answers, class_names, top_k)
    table = pa.table({name: rows[name] for name in schema.names}, schema=schema)
    partial = path.with_name(f"_{path.name}")
    pq.write_table(table, partial)
    partial.replace(path)


def columns(answers: Sequence[Answer], class_names: Sequence[str], top_k: int) -> dict[str, list[Any]]:
    """Every column of :func:`predict_to_parquet`."""
    best = [answer.best(class_names, top_k) for answer in answers]
    return {
        "clip": [answer.item.name for answer in answers],
        "start": [answer.item.start for answer in answers],
        "end": [answer.item.end for answer in answers],
        "class": [pairs[0][0] if pairs else None for pairs in best],
        "probability": [pairs[0][1] if pairs else None for pairs in best],
        "top_classes": [[name for name, _ in pairs] if pairs else None for pairs in best],
        "top_probabilities": [[share for _, share in pairs] if pairs else None for pairs in best],
        "probabilities": [answer.probabilities for answer in answers],
        "error": [answer.error for answer in answers],
    }
