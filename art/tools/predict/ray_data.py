"""Predictions in a Ray Data pipeline, for clusters.

    dataset = ray.data.read_csv("clips.csv")            # with a column "path" that every node can read
    predictions = predict_dataset(dataset, PredictionSettings(Path("runs/motion")), concurrency=8, num_gpus=1)
    predictions.write_parquet("s3://bucket/predictions")

Ray starts a process per model, keeps it, sends it batches, and repeats a batch whose process or machine is
lost. This module does not import ray: datasets come from it (``pip install 'art-kernels[ray]'``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from art.data.inputs import Item
from art.tools.predict.parquet import columns
from art.tools.predict.predictor import ClipPredictor, PredictionSettings


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
        """Return the batch with the columns of :func:`.parquet.predict_to_parquet`, except "clip", "start" and "end".

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
