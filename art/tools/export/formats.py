"""File formats of exported models, and the facts about the model that are stored in each file."""

from __future__ import annotations

import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.export import ExportedProgram

from art import __version__
from art.extras import import_extra
from art.model.pretrained import VideoClassifier

#: Name of the only input.
INPUT = "video"
#: Outputs that an exported model can have; the logits are always first.
OUTPUTS = ("logits", "class_token", "maps")
#: Key of the facts in the metadata of an ONNX file and, with the suffix ".json", in the extra files of a .pt2 file.
FACTS_KEY = "art"
#: Operators of ONNX 1.15 (2023), the first with GELU; supported since onnxruntime 1.17.
OPSET = 20
#: An ONNX file is a protocol buffer, which is limited to 2 GiB; 1 MiB is reserved for the graph.
MAX_ONNX_BYTES = 2**31 - 2**20

_OUTPUT_DESCRIPTIONS = {
    "logits": "[clips, classes] float32; apply softmax to get probabilities",
    "class_token": "[clips, channels] float32, the global feature of each clip",
    "maps": "[clips, frames, tracklets, height, width] float32, response map of each query; sums to 1 over a frame",
}

#: Maps a batch of clips to the outputs by name.
Runner = Callable[[UInt8[Tensor, "b t 3 s s"]], dict[str, Tensor]]


class FileFormat(ABC):
    """Base class of file formats.

    Attributes:
        suffix: of the files.
        libraries: whose versions are stored in the facts.
    """

    suffix: str
    libraries: tuple[str, ...] = ()

    def check(self, weight_bytes: int) -> None:
        """Raise an error, before any work, if a model with weights of this size cannot be written."""
        return

    @abstractmethod
    def convert(self, program: ExportedProgram, outputs: Sequence[str]) -> Any:
        """Convert a program to the argument of :meth:`write`."""

    @abstractmethod
    def write(self, converted: Any, facts: dict[str, Any], path: Path) -> None:
        """Write the model and its facts to one file."""

    @abstractmethod
    def open(self, path: Path, outputs: Sequence[str]) -> Runner:
        """Load a file as a function that runs on the CPU."""


class TorchProgram(FileFormat):
    """A ``torch.export`` program: ``torch.export.load(file).module()`` requires only torch."""

    suffix = ".pt2"

    def convert(self, program: ExportedProgram, outputs: Sequence[str]) -> ExportedProgram:
        """Return the program."""
        return program

    def write(self, converted: ExportedProgram, facts: dict[str, Any], path: Path) -> None:
        """Write the program, with the facts as an extra file."""
        # torch warns that it copies weights that share memory, which is harmless: the written file is checked.
        with _suppress_warnings(), path.open("wb") as file:
            torch.export.save(converted, file, extra_files={f"{FACTS_KEY}.json": json.dumps(facts, ensure_ascii=False)})

    def open(self, path: Path, outputs: Sequence[str]) -> Runner:
        """Load a file with torch."""
        with path.open("rb") as file:
            module = torch.export.load(file).module()

        def run(video: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                results: dict[str, Tensor] = module(**{INPUT: video})
            return results

        return run


class Onnx(FileFormat):
    """ONNX, standard operators only."""

    suffix = ".onnx"
    libraries = ("onnx", "onnxscript", "onnxruntime")

    def check(self, weight_bytes: int) -> None:
        """Raise ModuleNotFoundError if the extra is not installed, ValueError if the model is too large."""
        for library in self.libraries:
            import_extra(library, extra="onnx", needed_by="--format onnx", instead="choose --format torch")
        if weight_bytes > MAX_ONNX_BYTES:
            raise ValueError(
                f"the weights take {weight_bytes / 2**30:.1f} GiB, and an ONNX file is limited to 2 GiB; "
                "choose --format torch"
            )

    def convert(self, program: ExportedProgram, outputs: Sequence[str]) -> Any:
        """Convert to ONNX; raise RuntimeError if the result has an operator outside the standard."""
        with _suppress_warnings():
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
                f"the graph has operators of {', '.join(sorted(domains))}, expected only standard ONNX operators"
            )
        return converted

    def write(self, converted: Any, facts: dict[str, Any], path: Path) -> None:
        """Write the model, with the facts in its metadata."""
        converted.model.metadata_props[FACTS_KEY] = json.dumps(facts, ensure_ascii=False)
        converted.save(path, external_data=False)

    def open(self, path: Path, outputs: Sequence[str]) -> Runner:
        """Load a file with onnxruntime."""
        onnxruntime = import_extra("onnxruntime", extra="onnx", needed_by="--format onnx")
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def run(video: Tensor) -> dict[str, Tensor]:
            results = session.run(list(outputs), {INPUT: video.numpy()})
            return {name: torch.from_numpy(value) for name, value in zip(outputs, results, strict=True)}

        return run


FORMATS: dict[str, FileFormat] = {"torch": TorchProgram(), "onnx": Onnx()}


@contextmanager
def _suppress_warnings() -> Iterator[None]:
    """Suppress the exporters' messages on constants that are not folded and on their own deprecations."""
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


def model_facts(model: VideoClassifier, outputs: Sequence[str], libraries: Sequence[str]) -> dict[str, Any]:
    """Return the facts of a file, except "check", as values for JSON.

    Args:
        model: the exported model.
        outputs: of the file.
        libraries: whose versions are stored, in addition to torch and this package.
    """
    size, frames = model.input_size, model.num_frames
    return {
        "format": 1,
        "kind": model.kind,
        "class_names": model.class_names,
        "num_frames": frames,
        "input_size": size,
        "input": {
            "name": INPUT,
            "shape": ["clips", frames, 3, size, size],
            "dtype": "uint8",
            "colors": "RGB, 0 to 255; the model normalizes them",
        },
        "outputs": {name: _OUTPUT_DESCRIPTIONS[name] for name in outputs},
        "sampling": asdict(model.sampling),
        "crop": {"share": model.center_crop.fraction, "resize": "bilinear, antialiased, rounded"},
        "options": asdict(model.options),
        "versions": {"art": __version__, "torch": str(torch.__version__), **_installed_versions(libraries)},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts that ``art export`` stored in a .pt2 or .onnx file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another suffix, or contains no facts.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".onnx":
        onnx = import_extra("onnx", extra="onnx", needed_by=f"reading {path}")
        model = onnx.load(path, load_external_data=False)
        text = {entry.key: entry.value for entry in model.metadata_props}.get(FACTS_KEY, "")
    elif path.suffix == ".pt2":
        extra_files = {f"{FACTS_KEY}.json": ""}
        torch.export.load(path, extra_files=extra_files)
        text = extra_files[f"{FACTS_KEY}.json"]
    else:
        raise ValueError(f"{path}: expected a .pt2 or .onnx file")
    if not text:
        raise ValueError(f"{path}: contains no facts of art export; export the model again")
    facts: dict[str, Any] = json.loads(text)
    if "colours" in facts["input"]:  # key in files of earlier versions
        facts["input"]["colors"] = facts["input"].pop("colours")
    return facts


def _installed_versions(libraries: Sequence[str]) -> dict[str, str]:
    versions = {}
    for name in libraries:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
