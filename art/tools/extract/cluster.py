"""Extraction on a cluster with Ray Data, which distributes the files over machines and repeats those of a lost one.

This module imports ray only when :func:`extract_on_cluster` is called (``pip install 'art-kernels[ray]'``).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from art.data.features import check_manifest, finish_part
from art.extras import import_extra
from art.tools.extract.directory import (
    Extracted,
    Part,
    PartResult,
    count_parts,
    parts_of,
    save_features,
    write_features,
)
from art.tools.extract.extractor import Extractor, ExtractSettings, make_manifest


def extract_on_cluster(
    settings: ExtractSettings,
    out: Path,
    *,
    concurrency: int = 1,
    num_gpus: float = 0,
    num_cpus: float = 1,
) -> Extracted:
    """Write the features of all clips to a directory that every machine can write; see :func:`extract`.

    The calling process, which needs no GPU, holds the lock of the directory, and writes the manifest and the lists of
    clips.

    Args:
        settings: what to extract; every machine must be able to read the dataset and the weights.
        out: a directory that is new, empty, or from a call with the same settings.
        concurrency: number of processes with a backbone.
        num_gpus: per process; 0 extracts on CPUs.
        num_cpus: per process; add one for each of ``data.workers``.

    Raises:
        ValueError: a number is out of range; raised before any work.
        ModuleNotFoundError: ray is not installed.
        Exception: see :func:`art.tools.extract.extract`.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency: got {concurrency}, expected at least 1")
    data = import_extra("ray.data", extra="ray", needed_by="extraction on a cluster")
    out = out.absolute()  # processes of ray have another working directory

    def run(missing: Sequence[Part]) -> Generator[tuple[Part, PartResult], None, None]:
        by_name = {(part.split, part.number): part for part in missing}
        rows = data.from_items([{"split": split, "number": number} for split, number in by_name])
        done = rows.map_batches(
            RayExtractor,
            fn_constructor_kwargs={"settings": settings, "out": out, "device": "auto" if num_gpus else "cpu"},
            batch_format="numpy",
            batch_size=1,
            concurrency=concurrency,
            num_cpus=num_cpus,
            num_gpus=num_gpus or None,
        )
        for row in done.iter_rows():
            yield by_name[row["split"], row["number"]], PartResult(None, {name: row[name] for name in _STAGES})

    return write_features(settings, out, "cpu", run)


_STAGES = ("decode", "forward", "other")


class RayExtractor:
    """A backbone for ``Dataset.map_batches(RayExtractor, fn_constructor_kwargs=...)``, called with names of parts.

    Args:
        settings: of the extraction.
        out: the directory, with a manifest.
        device: "auto" uses the GPU assigned by Ray, or the CPU.

    Raises:
        FileNotFoundError: this machine does not see the manifest: the directory is not shared.
        FeatureError: this machine has other weights or clips; the message names the field of the manifest.
    """

    def __init__(self, settings: ExtractSettings, out: Path, device: str = "auto") -> None:
        self._extractor = Extractor(settings, device)
        parts = list(parts_of(self._extractor, out))
        check_manifest(out, make_manifest(self._extractor, count_parts(parts)))
        self._parts = {(part.split, part.number): part for part in parts}

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Write parts; return the batch with the seconds of each by stage, see :class:`art.tools.extract.Extracted`.

        Args:
            batch: columns "split" and "number" of the parts.
        """
        seconds = []
        for split, number in zip(batch["split"], batch["number"], strict=True):
            part = self._parts[str(split), int(number)]
            result = save_features(self._extractor, part)
            assert result.rows is not None
            finish_part(part.path, result.rows)
            seconds.append(result.seconds)
        return {**batch, **{name: np.array([each[name] for each in seconds]) for name in _STAGES}}
