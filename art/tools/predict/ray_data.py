"""Predictions in a Ray Data pipeline, for clusters: a class for ``Dataset.map_batches``, and the whole way to Parquet.

    dataset = ray.data.read_csv("clips.csv")            # with a column "path", absolute or as every node sees it
    answers = predict_dataset(dataset, PredictionSettings(Path("runs/motion")), concurrency=8, num_gpus=1)
    answers.write_parquet("s3://bucket/predictions")

Ray starts a process for each model, keeps it, hands it batches, and does a batch again whose process or machine is
lost. Nothing here imports ray: a dataset brings it along (``pip install 'art-kernels[ray]'``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from art.data.inputs import Item
from art.tools.predict.parquet import columns
from art.tools.predict.predictor import ClipPredictor, PredictionSettings


class RayPredictor:
    """For ``Dataset.map_batches(RayPredictor, fn_constructor_kwargs=...)``: a model, called with batches of paths.

    Args:
        settings: of the model; ``checkpoint`` as every node sees it.
        path_column: the column that holds the path of each clip.
        device: "auto" takes the GPU that ray gave to the process, else the CPU.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """

    def __init__(self, settings: PredictionSettings, path_column: str = "path", device: str = "auto") -> None:
        self._predictor = ClipPredictor(settings, device)
        self._path_column = path_column

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """The batch with the columns of :func:`.parquet.predict_to_parquet` added, but for "clip", "start" and "end".

        Columns "time_start" and "time_end" cut a clip out of its file (seconds; NaN or None is its beginning or end).

        Raises:
            ValueError: there is no column of paths.
        """
        if self._path_column not in batch:
            raise ValueError(f"batch has no column {self._path_column!r}; it has {', '.join(batch)}")
        paths = [str(path) for path in batch[self._path_column]]
        spans = zip(*(self._times(batch, name, len(paths)) for name in ("time_start", "time_end")), strict=True)
        items = [Item(path, Path(path), start, end) for path, (start, end) in zip(paths, spans, strict=True)]
        answers = list(self._predictor(items))
        made = columns(answers, self._predictor.class_names, self._predictor.settings.top_k)
        kept = ("class", "probability", "top_classes", "top_probabilities", "error")
        # Columns of Python objects: a number would become NaN where it is None, and lists of one length a matrix.
        return {**batch, **{name: _objects(made[name]) for name in kept}}

    @staticmethod
    def _times(batch: dict[str, np.ndarray], name: str, count: int) -> list[float | None]:
        if name not in batch:
            return [None] * count
        return [None if time is None or np.isnan(float(time)) else float(time) for time in batch[name]]


def _objects(values: list[Any]) -> np.ndarray:
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
    """A ``ray.data.Dataset`` of clips with their predictions, made when it is read.

    Args:
        dataset: a ``ray.data.Dataset`` with a column of paths.
        settings: of the model.
        path_column: that column.
        concurrency: how many processes hold a model.
        num_gpus: of each; 0 predicts on CPUs.
        num_cpus: of each; with ``settings.workers`` one more for each.
        clips_at_once: clips that a process gets at once.

    Raises:
        ValueError: before any work: a number is out of its range.
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
