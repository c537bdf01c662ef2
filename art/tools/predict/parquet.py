"""Predictions for many clips as tables: Parquet files computed on several devices, and columns of a Ray Data pipeline.

:func:`predict_to_parquet` writes a directory with ``part-000000.parquet``, …, each complete or absent, and
``_predictions.json``, which identifies the checkpoint, clips and settings; a second call computes what is missing.
Parquet readers open it as one table: ``pandas.read_parquet(directory)``.

:func:`predict_dataset` is for clusters::

    dataset = ray.data.read_csv("clips.csv")            # with a column "path" that every node can read
    predictions = predict_dataset(dataset, PredictionSettings(Path("runs/motion")), concurrency=8, num_gpus=1)
    predictions.write_parquet("s3://bucket/predictions")

Ray starts a process per model, keeps it, sends it batches, and repeats a batch whose process or machine is
lost. This module does not import ray: datasets come from it (``pip install 'art-kernels[ray]'``).
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

import numpy as np

from art.data.files import atomic_write, check_writable, naming_file
from art.data.inputs import Item, Source, open_inputs
from art.data.parallel import Stopped, map_processes, stop_requested, worker_slot
from art.extras import import_extra
from art.model import CONFIG_FILE, WEIGHTS_FILE, find_checkpoint
from art.terminal import Progress
from art.tools.predict.predictor import ClipPredictor, Prediction, PredictionSettings
from art.train.runtime import raise_on_sigterm

MANIFEST = "_predictions.json"
_FORMAT = 1


@dataclass(frozen=True)
class Written:
    """Contents of the directory.

    Attributes:
        clips: rows.
        errors: rows of clips that could not be read.
        parts: number of files.
        kept: number of files that already existed.
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
    all_probabilities: bool


def predict_to_parquet(
    inputs: Sequence[str | Path],
    settings: PredictionSettings,
    out: Path,
    *,
    devices: Sequence[str] = ("auto",),
    all_probabilities: bool = False,
    part_clips: int = 512,
) -> Written:
    """Predict clips and write a row for each.

    Columns: "clip", its path or shard and key; "start" and "end", seconds, null for the beginning and the end of the
    file; "class" and "probability", the most probable class; "top_classes" and "top_probabilities", lists of
    the ``top_k`` best; with ``all_probabilities`` also "probabilities" of all classes, in the order of
    "art.class_names" in the metadata of the schema (JSON); "error", null for a prediction. Existing parts are kept.

    Args:
        inputs: see :func:`art.data.inputs.open_inputs`.
        settings: of the prediction.
        out: a directory that is new, empty, or from a call with the same inputs, checkpoint and settings.
        devices: one process per entry predicts concurrently; a single one predicts in this process.
        all_probabilities: write the probabilities of all classes.
        part_clips: clips per output file; a shard always has a separate one.

    Raises:
        ValueError: an input has no clips, or the directory contains other predictions; raised before any work.
        ModuleNotFoundError: pyarrow is not installed.
        Interrupted: on SIGTERM; finished parts are kept.
    """
    parquet = import_extra("pyarrow.parquet", extra="parquet", needed_by="writing predictions (art predict --out)")
    check_writable(out, "out")
    sources = open_inputs(inputs, part_clips)
    manifest = _manifest(sources, settings, all_probabilities)
    _write_manifest(out, manifest)
    parts = [
        _Part(out / f"part-{number:06d}.parquet", source, settings, all_probabilities)
        for number, source in enumerate(sources)
    ]
    missing = [part for part in parts if not part.path.exists()]
    workers = min(len(devices), len(missing))
    with raise_on_sigterm(), Progress("predict", len(missing), "part") as bar:
        if missing:
            with closing(map_processes(_predict_part, missing, workers, devices[:workers])) as done:
                for _ in done:
                    bar.update()
    tables = [parquet.ParquetFile(part.path) for part in parts]
    clips = sum(table.metadata.num_rows for table in tables)
    readable = sum(table.read(columns=["error"]).column("error").null_count for table in tables)
    return Written(clips, clips - readable, len(parts), len(parts) - len(missing))


def _manifest(sources: Sequence[Source], settings: PredictionSettings, all_probabilities: bool) -> dict[str, Any]:
    """Return everything that determines the contents of the files."""
    checkpoint, digest = find_checkpoint(settings.checkpoint), hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with (checkpoint / name).open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    listed = hashlib.sha256("\0".join("\n".join(source.names) for source in sources).encode(errors="surrogateescape"))
    decisive = {name: value for name, value in asdict(settings).items() if name in _DECISIVE_SETTINGS}
    return {
        "format": _FORMAT,
        "checkpoint": digest.hexdigest(),
        **decisive,
        "all_probabilities": all_probabilities,
        "clips": listed.hexdigest(),
        "parts": len(sources),
    }


_DECISIVE_SETTINGS = ("top_k", "views", "crops", "precision", "decoder")


def _write_manifest(out: Path, manifest: dict[str, Any]) -> None:
    path = out / MANIFEST
    if path.is_file():
        former = json.loads(path.read_text(encoding="utf-8"))
        if "every_probability" in former:  # name of the key in earlier versions
            former["all_probabilities"] = former.pop("every_probability")
        differing = [name for name in manifest if former.get(name) != manifest[name]]
        if differing:
            changes = ", ".join(_describe_change(name, former.get(name), manifest[name]) for name in differing)
            raise ValueError(f"out: {out} contains predictions with {changes}; choose another directory, or remove it")
    elif out.is_dir() and any(not path.name.startswith("_") for path in out.iterdir()):
        raise ValueError(
            f"out: {out} is not empty and has no {MANIFEST}; expected a new, empty or unfinished directory"
        )
    atomic_write(path, lambda partial: partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8"))


def _describe_change(name: str, former: object, current: object) -> str:
    """Describe a difference of a manifest. Digests identify the contents only and are shortened."""
    was, now = (str(value)[:8] if name in ("checkpoint", "clips") else repr(value) for value in (former, current))
    return f"{'other' if name in ('clips', 'parts') else 'another'} {name} (was {was}, is {now})"


def _predict_part(part: _Part) -> None:
    """Predict one part, in a worker process if there are several; the model is kept between parts."""
    predictor = _predictor(part.settings, worker_slot())
    predictions = []
    for prediction in predictor(part.source.open()):
        if stop_requested():
            raise Stopped
        predictions.append(prediction)
    write_part(part.path, predictions, predictor.class_names, part.settings.top_k, part.all_probabilities)


@functools.lru_cache(maxsize=1)
def _predictor(settings: PredictionSettings, device: str) -> ClipPredictor:
    return ClipPredictor(settings, device)


def write_part(
    path: Path, predictions: Sequence[Prediction], class_names: Sequence[str], top_k: int, all_probabilities: bool
) -> None:
    """Write one Parquet file; see :func:`predict_to_parquet`.

    Until it is complete its name starts with "_", which Parquet readers ignore.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, numbers = pa.list_(pa.string()), pa.list_(pa.float32())
    kinds = {"clip": pa.string(), "start": pa.float64(), "end": pa.float64(), "class": pa.string()}
    kinds |= {"probability": pa.float32(), "top_classes": texts, "top_probabilities": numbers}
    kinds |= {"probabilities": numbers} if all_probabilities else {}
    schema = pa.schema(
        [*kinds.items(), ("error", pa.string())], {"art.class_names": json.dumps([*map(_as_utf8, class_names)])}
    )
    rows = columns(predictions, class_names, top_k)
    table = pa.table({name: rows[name] for name in schema.names}, schema=schema)
    partial = path.with_name(f"_{path.name}")
    with naming_file(path):
        pq.write_table(table, partial)
    partial.replace(path)


def columns(predictions: Sequence[Prediction], class_names: Sequence[str], top_k: int) -> dict[str, list[Any]]:
    """Return every column of :func:`predict_to_parquet`."""
    names = [_as_utf8(name) for name in class_names]
    best = [prediction.best(names, top_k) for prediction in predictions]
    return {
        "clip": [_as_utf8(p.item.name) for p in predictions],
        "start": [p.item.start for p in predictions],
        "end": [p.item.end for p in predictions],
        "class": [pairs[0][0] if pairs else None for pairs in best],
        "probability": [pairs[0][1] if pairs else None for pairs in best],
        "top_classes": [[name for name, _ in pairs] if pairs else None for pairs in best],
        "top_probabilities": [[probability for _, probability in pairs] if pairs else None for pairs in best],
        "probabilities": [p.probabilities for p in predictions],
        "error": [p.error for p in predictions],
    }


def _as_utf8(name: str) -> str:
    """Escape the bytes of a file name that is not UTF-8."""
    return name.encode(errors="backslashreplace").decode()


def predict_dataset(
    dataset: Any,
    settings: PredictionSettings,
    *,
    path_column: str = "path",
    concurrency: int = 1,
    num_gpus: float = 0,
    num_cpus: float = 1,
    clips_at_once: int = 64,
) -> Any:
    """Return a ``ray.data.Dataset`` of clips with their predictions, computed when it is read.

    Args:
        dataset: a ``ray.data.Dataset`` with a column of paths.
        settings: of the prediction.
        path_column: name of that column.
        concurrency: number of processes with a model.
        num_gpus: per process; 0 predicts on CPUs.
        num_cpus: per process; add one for each of ``settings.workers``.
        clips_at_once: clips per batch.

    Raises:
        ValueError: a number is out of range; raised before any work.
    """
    for name, value in (("concurrency", concurrency), ("clips_at_once", clips_at_once)):
        if value < 1:
            raise ValueError(f"{name}: got {value}, expected at least 1")
    device = "auto" if num_gpus else "cpu"
    return dataset.map_batches(
        RayPredictor,
        fn_constructor_kwargs={"settings": settings, "path_column": path_column, "device": device},
        batch_format="numpy",
        batch_size=clips_at_once,
        concurrency=concurrency,
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
    )


class RayPredictor:
    """A model for ``Dataset.map_batches(RayPredictor, fn_constructor_kwargs=...)``, called with batches of paths.

    Args:
        settings: of the prediction; every node must be able to read ``checkpoint``.
        path_column: the column with the path of each clip.
        device: "auto" uses the GPU assigned by Ray, or the CPU.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """

    def __init__(self, settings: PredictionSettings, path_column: str = "path", device: str = "auto") -> None:
        self._predictor = ClipPredictor(settings, device)
        self._path_column = path_column

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the batch with the columns of :func:`predict_to_parquet`, except "clip", "start" and "end".

        Columns "time_start" and "time_end" select a part of the file (seconds; NaN or None: its beginning or end).

        Raises:
            ValueError: the column of paths is missing.
        """
        if self._path_column not in batch:
            raise ValueError(f"batch has no column {self._path_column!r}; it has {', '.join(batch)}")
        paths = [str(path) for path in batch[self._path_column]]
        spans = zip(*(self._times(batch, name, len(paths)) for name in ("time_start", "time_end")), strict=True)
        items = [Item(path, Path(path), start, end) for path, (start, end) in zip(paths, spans, strict=True)]
        predictions = list(self._predictor(items))
        added = columns(predictions, self._predictor.class_names, self._predictor.settings.top_k)
        kept = ("class", "probability", "top_classes", "top_probabilities", "error")
        # Object arrays: otherwise None would become NaN, and lists of equal length a matrix.
        return {**batch, **{name: _object_array(added[name]) for name in kept}}

    @staticmethod
    def _times(batch: dict[str, np.ndarray], name: str, count: int) -> list[float | None]:
        if name not in batch:
            return [None] * count
        return [None if time is None or np.isnan(float(time)) else float(time) for time in batch[name]]


def _object_array(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
