"""Export of a model: trace it, write the file, and compare the outputs of the file with those of the model."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from art.data.files import atomic_write, check_writable
from art.data.inputs import open_inputs
from art.data.transforms.augment import EvalViews
from art.model import find_checkpoint
from art.model.loading import load_model
from art.model.pretrained import VideoClassifier
from art.tools.export.formats import FORMATS, INPUT, OUTPUTS, FileFormat, Runner, model_facts
from art.train.batches import open_split
from art.train.checkpoint import RunDir
from art.train.config import load_config
from art_kernels._core.backends import ENVIRONMENT_VARIABLE

#: Traced number of clips: not 0 or 1, which torch.export specializes.
TRACE_BATCH_SIZE = 2
#: Numbers of clips with which a file is checked.
CHECK_BATCH_SIZES = (1, TRACE_BATCH_SIZE, 4)
#: Maximum difference of each output, relative to the maximum of 1 and its largest absolute value.
TOLERANCE = 1e-4
#: Linking by similarity enumerates all K! matchings of adjacent frames.
MAX_MATCHED_TRACKLETS = 6

_Clip = tuple[Any, float | None, float | None]  # path, start, end


class ExportMismatch(ValueError):
    """The outputs of the file differ from those of the model; no file was written."""


@dataclass(frozen=True)
class Exported:
    """An exported file.

    Attributes:
        path: the file.
        facts: as stored in the file; "check" contains the differences between its outputs and the model's.

    Examples:
        >>> from pathlib import Path
        >>> from art.tools.export import Exported
        >>> Exported(Path("motion.pt2"), {"kind": "art"}).facts["kind"]
        'art'
    """

    path: Path
    facts: dict[str, Any]


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    file_format: str,
    *,
    outputs: Sequence[str] = ("logits",),
    clips: Sequence[str | Path] = (),
) -> Exported:
    """Export a checkpoint to a file that runs without this package; see :func:`export_model`.

    Args:
        checkpoint: a checkpoint, or a run directory, whose last one is used.
        out: the file.
        file_format: "torch" or "onnx".
        outputs: "logits", optionally followed by "class_token" and "maps".
        clips: inputs, as for ``art predict``, with which to check the file; by default clips of the run's test split.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: as for ``export_model``; or ``clips`` is empty and the checkpoint is in no run, or the data of the
            run is missing.
        art.data.decoding.video.VideoError: a clip cannot be read.
    """
    directory = find_checkpoint(checkpoint)
    model = load_model(directory)
    check_export(model, out, file_format, outputs)
    read = EvalViews(model.num_frames, model.center_crop, model.sampling)
    selected = _input_clips(clips) if clips else _test_clips(directory)
    return export_model(model, torch.cat([read(*clip) for clip in selected]), out, file_format, outputs=outputs)


def _input_clips(inputs: Sequence[str | Path]) -> list[_Clip]:
    items = [item for source in open_inputs(inputs, 512) for item in source.open()]
    for item in items:
        if item.place is None:
            raise ValueError(f"clips: {item.name} {item.problem or 'is missing'}")
    return [(item.place, item.start, item.end) for item in items]


def _test_clips(checkpoint: Path) -> list[_Clip]:
    """Return clips evenly spaced over the test split of the run that contains ``checkpoint``."""
    run = RunDir(checkpoint.parent.parent)
    if checkpoint.parent.name != "checkpoints" or not run.config.is_file():
        raise ValueError(
            f"clips: {checkpoint} is not in a run directory, whose test clips would be used to check the file; "
            "pass clips with --clips"
        )
    data = load_config(run.config, []).data
    try:
        clips = open_split(data, data.test_split, run.path).clips
    except (ValueError, OSError) as error:
        raise ValueError(f"clips: the test split of the run is missing ({error}); pass clips with --clips") from error
    count = min(max(CHECK_BATCH_SIZES), len(clips))
    selected = [clips[index * len(clips) // count] for index in range(count)]
    return [(clip.path, clip.start, clip.end) for clip in selected]


def export_model(
    model: VideoClassifier,
    clips: UInt8[Tensor, "n t 3 s s"],
    out: Path,
    file_format: str,
    *,
    outputs: Sequence[str] = ("logits",),
) -> Exported:
    """Export ``model`` to a file that runs without this package, and check the file.

    The input of the file is ``video`` [B, T, 3, S, S], uint8, RGB, for any B ≥ 1, with T frames of size S as configured
    in the model; ``outputs`` are float32. The file is run on ``clips`` in batches of one, two and four before it is
    renamed to ``out``; an existing file is replaced only if the check passes.

    Args:
        model: the model, which is not modified.
        clips: N ≥ 1 real clips, preprocessed as for the model.
        out: the file, with the suffix of the format.
        file_format: a key of :data:`FORMATS`.
        outputs: "logits", optionally followed by "class_token" and "maps".

    Returns:
        The file and its facts.

    Raises:
        ValueError: unknown format or output, wrong suffix, no clips, or a model that cannot be exported.
        ModuleNotFoundError: the format is ONNX and the extra ``onnx`` is not installed.
        ExportMismatch: an output of the file differs from the model's by more than :data:`TOLERANCE`.

    Examples:
        >>> import torch
        >>> from pathlib import Path
        >>> from art import BackboneClassifier
        >>> from art.tools.export import export_model
        >>> model = BackboneClassifier(["walk", "run"], num_frames=2, backbone_options={"width": 8}).eval()
        >>> clips = torch.randint(0, 256, (2, 2, 3, 112, 112), dtype=torch.uint8)
        >>> exported = export_model(model, clips, Path("model.pt2"), "torch")
        >>> run = torch.export.load("model.pt2").module()
        >>> run(video=clips)["logits"].shape
        torch.Size([2, 2])
    """
    target = check_export(model, out, file_format, outputs)
    if len(clips) == 0:
        raise ValueError("clips: got none, expected at least one to check the file with")
    reference = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    converted = target.convert(trace(reference, _repeat(clips, TRACE_BATCH_SIZE), outputs), outputs)
    facts = model_facts(model, outputs, target.libraries)

    def write(path: Path) -> None:
        target.write(converted, facts, path)
        facts["check"] = _check_file(reference, target.open(path, outputs), clips, outputs)
        target.write(converted, facts, path)  # with the result of the check; then check the final bytes
        _check_file(reference, target.open(path, outputs), clips[:1], outputs)

    atomic_write(out, write)
    return Exported(out, facts)


def check_export(model: VideoClassifier, out: Path, file_format: str, outputs: Sequence[str]) -> FileFormat:
    """Return the format, or raise the errors of :func:`export_model` that can be detected before tracing."""
    if file_format not in FORMATS:
        raise ValueError(f"format: got {file_format!r}, expected {' or '.join(FORMATS)}")
    target = FORMATS[file_format]
    if out.suffix != target.suffix:
        raise ValueError(f"out: {out} ends in {out.suffix!r}, expected {target.suffix!r} for format {file_format}")
    if out.is_dir():
        raise ValueError(f"out: {out} is a directory, expected a file")
    check_writable(out.parent, "out")
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs or outputs[0] != "logits" or len(set(outputs)) < len(outputs):
        raise ValueError(
            f"outputs: got {','.join(outputs)!r}, expected logits, optionally followed by {', '.join(OUTPUTS[1:])}"
        )
    o = model.options
    if "maps" in outputs and not model.num_maps:
        raise ValueError(f"outputs: got maps, but this model of kind {model.kind!r} has no maps; remove maps")
    if model.kind == "art" and o.linking != "index" and o.num_tracklets > MAX_MATCHED_TRACKLETS:
        raise ValueError(
            f"linking is {o.linking!r} with num_tracklets {o.num_tracklets}: its graph enumerates all matchings, which "
            f"is supported for at most {MAX_MATCHED_TRACKLETS} tracklets; train with model.linking=index, which can be "
            "exported with any number"
        )
    target.check(sum(4 * value.numel() for value in model.state_dict().values()))
    return target


def trace(model: VideoClassifier, video: UInt8[Tensor, "b t 3 s s"], outputs: Sequence[str]) -> ExportedProgram:
    """Trace a model with a dynamic number of clips, as a graph of PyTorch's operators only.

    The graph maps ``{"video": [B, T, 3, S, S] uint8}`` to a dict of ``outputs``, for any B ≥ 1. Each operation of
    ``art_kernels`` is traced as its reference implementation.

    Args:
        model: in eval mode, in float32, on the CPU.
        video: two real clips.
        outputs: names in :data:`OUTPUTS`.

    Raises:
        RuntimeError: the graph has an operator of a library other than PyTorch.
    """
    with torch.no_grad(), _reference_backend():
        program = torch.export.export(
            _SelectedOutputs(model, outputs), (), {INPUT: video}, dynamic_shapes={INPUT: {0: Dim.DYNAMIC}}
        )
    foreign = sorted(
        {
            str(node.target)
            for node in program.graph.nodes
            if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in ("aten", "prims")
        }
    )
    if foreign:
        raise RuntimeError(
            f"the graph has the operators {', '.join(foreign)}, which programs without their library cannot run; "
            "the backbone needs an implementation in PyTorch's own operators"
        )
    return program


@contextmanager
def _reference_backend() -> Iterator[None]:
    """Use the reference implementations of ``art_kernels``, which consist of PyTorch's operators."""
    previous = os.environ.get(ENVIRONMENT_VARIABLE)
    os.environ[ENVIRONMENT_VARIABLE] = "reference"
    try:
        yield
    finally:
        if previous is None:
            del os.environ[ENVIRONMENT_VARIABLE]
        else:
            os.environ[ENVIRONMENT_VARIABLE] = previous


class _SelectedOutputs(nn.Module):
    """A classifier that returns a dict of selected outputs."""

    def __init__(self, model: VideoClassifier, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, video: Tensor) -> dict[str, Any]:
        outputs = self.model(video, return_maps="maps" in self.names)
        return {name: getattr(outputs, name) for name in self.names}


def _check_file(model: VideoClassifier, run: Runner, clips: Tensor, outputs: Sequence[str]) -> dict[str, Any]:
    """Compare the outputs of a file with the model's on all clips, for each of CHECK_BATCH_SIZES.

    Raises:
        ExportMismatch: a difference exceeds the tolerance.
    """
    largest = max(CHECK_BATCH_SIZES)
    batches = [_repeat(clips, size) for size in CHECK_BATCH_SIZES]
    batches += clips[largest:].split(largest) if len(clips) > largest else ()
    difference = dict.fromkeys(outputs, 0.0)
    for batch in batches:
        for name, value in _max_difference(model, run, batch, outputs).items():
            if not value <= TOLERANCE:  # also for NaN
                raise ExportMismatch(
                    f"{name} of a batch of {len(batch)} differs from the model's by {value:.2g}, expected at most "
                    f"{TOLERANCE:g}; no file was written"
                )
            difference[name] = max(difference[name], value)
    return {
        "clips": len(clips),
        "batches": sorted({len(batch) for batch in batches}),
        "tolerance": TOLERANCE,
        "difference": difference,
    }


def _max_difference(model: VideoClassifier, run: Runner, batch: Tensor, outputs: Sequence[str]) -> dict[str, float]:
    """Return the largest difference of each output, relative as for :data:`TOLERANCE`."""
    with torch.no_grad():
        expected, actual = model(batch, return_maps="maps" in outputs), run(batch)
    differences = {}
    for name in outputs:
        value = getattr(expected, name)
        differences[name] = ((actual[name] - value).abs().max() / value.abs().max().clamp(min=1)).item()
    return differences


def _repeat(clips: Tensor, count: int) -> Tensor:
    """Return the first ``count`` clips, repeated from the first one if there are fewer."""
    return clips[torch.arange(count) % len(clips)]
