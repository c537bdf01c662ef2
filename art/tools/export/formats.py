"""The two formats: how a graph is written to a file, and how that file is run."""

from __future__ import annotations

import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.export import ExportedProgram

from art.extras import import_extra
from art.tools.export.facts import KEY
from art.tools.export.program import INPUT

#: The operators of ONNX 1.15 (2023), which has GELU; every onnxruntime from 1.17 on runs them.
OPSET = 20
#: A protocol buffer, which an ONNX file is, cannot be larger.
MOST_ONNX_BYTES = 2**31 - 2**20

Run = Callable[[UInt8[Tensor, "b t 3 s s"]], dict[str, Tensor]]


class FileFormat(ABC):
    """Attributes: ``suffix`` of its files, and ``libraries`` whose versions belong into their facts."""

    suffix: str
    libraries: tuple[str, ...] = ()

    def check(self, weights_bytes: int) -> None:
        """Raise, before any work, where this format cannot be written."""
        return

    @abstractmethod
    def convert(self, program: ExportedProgram, outputs: Sequence[str]) -> Any:
        """What :meth:`write` takes."""

    @abstractmethod
    def write(self, converted: Any, facts: dict[str, Any], path: Path) -> None:
        """Write one file."""

    @abstractmethod
    def open(self, path: Path, outputs: Sequence[str]) -> Run:
        """The file as a function on the CPU."""


class TorchProgram(FileFormat):
    """A ``torch.export`` program: ``torch.export.load(file).module()`` needs torch alone."""

    suffix = ".pt2"

    def convert(self, program: ExportedProgram, outputs: Sequence[str]) -> ExportedProgram:
        """The program itself."""
        return program

    def write(self, converted: ExportedProgram, facts: dict[str, Any], path: Path) -> None:
        """With its facts as an extra file."""
        # Quiet: of weights that share memory it warns that they are written one by one; the check reads them again.
        with _quiet(), path.open("wb") as file:
            torch.export.save(converted, file, extra_files={f"{KEY}.json": json.dumps(facts, ensure_ascii=False)})

    def open(self, path: Path, outputs: Sequence[str]) -> Run:
        """By torch."""
        with path.open("rb") as file:
            module = torch.export.load(file).module()

        def run(video: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                said: dict[str, Tensor] = module(**{INPUT: video})
            return said

        return run


class Onnx(FileFormat):
    """ONNX with standard operators only."""

    suffix = ".onnx"
    libraries = ("onnx", "onnxscript", "onnxruntime")

    def check(self, weights_bytes: int) -> None:
        """Raises ModuleNotFoundError without the extra, ValueError for a model that is too large."""
        for library in self.libraries:
            import_extra(library, extra="onnx", needed_by="--format onnx", instead="choose --format torch")
        if weights_bytes > MOST_ONNX_BYTES:
            raise ValueError(
                f"the weights are {weights_bytes / 2**30:.1f} GiB, and an ONNX file holds at most 2; "
                "choose --format torch"
            )

    def convert(self, program: ExportedProgram, outputs: Sequence[str]) -> Any:
        """Raises RuntimeError where an operator is not of the standard."""
        with _quiet():
            converted = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes={INPUT: {0: "clips"}},
                verbose=False,
            )
        assert converted is not None
        domains = {node.domain for node in converted.model.graph.all_nodes()} - {"", "ai.onnx"}
        if domains or converted.model.functions:
            raise RuntimeError(
                f"the graph holds operators of {', '.join(sorted(domains))}, expected standard ones only"
            )
        return converted

    def write(self, converted: Any, facts: dict[str, Any], path: Path) -> None:
        """With its facts in the metadata of the model."""
        converted.model.metadata_props[KEY] = json.dumps(facts, ensure_ascii=False)
        converted.save(path, external_data=False)

    def open(self, path: Path, outputs: Sequence[str]) -> Run:
        """By onnxruntime."""
        onnxruntime = import_extra("onnxruntime", extra="onnx", needed_by="--format onnx")
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def run(video: Tensor) -> dict[str, Tensor]:
            said = session.run(list(outputs), {INPUT: video.numpy()})
            return {name: torch.from_numpy(value) for name, value in zip(outputs, said, strict=True)}

        return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own notes on what it does not fold, and on what it will call otherwise one day."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
