"""From a model to a file that says the same, or to no file."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from art.data.files import atomic_write, check_writable
from art.model.pretrained import VideoClassifier
from art.tools.export.facts import facts_of
from art.tools.export.formats import FileFormat, Onnx, Run, TorchProgram
from art.tools.export.program import TRACED_CLIPS, check_exportable, trace

FORMATS: dict[str, FileFormat] = {"torch": TorchProgram(), "onnx": Onnx()}
#: Clips at once in the check; one of them is the number that was traced.
CHECKED_BATCHES = (1, TRACED_CLIPS, 4)
#: Each output may differ so much, as a share of its largest number where that is above 1.
TOLERANCE = 1e-4


class ExportMismatch(ValueError):
    """The exported graph says something else than the model: no file was written."""


@dataclass(frozen=True)
class Exported:
    """What came out.

    Attributes:
        path: the file.
        facts: what it says of itself; under "check" how far its outputs are from the model's.

    Examples:
        >>> from pathlib import Path
        >>> from art.tools.export import Exported
        >>> Exported(Path("motion.pt2"), {"kind": "art"}).facts["kind"]
        'art'
    """

    path: Path
    facts: dict[str, Any]


def check_export(model: VideoClassifier, out: Path, file_format: str, outputs: Sequence[str]) -> FileFormat:
    """Raise, before any work, for what cannot be exported or written; see :func:`export_model`."""
    if file_format not in FORMATS:
        raise ValueError(f"format: got {file_format!r}, expected {' or '.join(FORMATS)}")
    chosen = FORMATS[file_format]
    if out.suffix != chosen.suffix:
        raise ValueError(f"out: {out} ends in {out.suffix!r}, expected {chosen.suffix!r} for format {file_format}")
    if out.is_dir():
        raise ValueError(f"out: {out} is a folder, expected a file")
    check_writable(out.parent, "out")
    check_exportable(model, outputs)
    chosen.check(sum(4 * value.numel() for value in model.state_dict().values()))
    return chosen


def export_model(
    model: VideoClassifier,
    clips: UInt8[Tensor, "n t 3 s s"],
    out: Path,
    file_format: str,
    *,
    outputs: Sequence[str] = ("logits",),
) -> Exported:
    """Write ``model`` as a file that needs nothing of this package, checked against it.

    The file takes ``video`` [B, T, 3, S, S] uint8, RGB, for any B from 1 on, with the model's number T and size S of
    frames, and gives ``outputs`` in float32. It is run on ``clips``, one, two and four at once, before it takes its
    name; a file that was there under that name is replaced only then.

    Args:
        model: any; it stays as it is.
        clips: N real clips as the model is shown them, at least one.
        out: the file, with the suffix of the format.
        file_format: of :data:`FORMATS`.
        outputs: "logits", and after it some of "class_token" and "maps".

    Returns:
        The file and its facts.

    Raises:
        ValueError: no such format or output, another suffix, no clips, a model that cannot be exported.
        ModuleNotFoundError: ONNX without the extra ``onnx``.
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
    chosen = check_export(model, out, file_format, outputs)
    if len(clips) == 0:
        raise ValueError("clips: got none, expected at least one to check the file with")
    plain = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    converted = chosen.convert(trace(plain, _cycled(clips, TRACED_CLIPS), outputs), outputs)
    facts = facts_of(model, outputs, chosen.libraries)

    def write(path: Path) -> None:
        chosen.write(converted, facts, path)
        facts["check"] = _compared(plain, chosen.open(path, outputs), clips, outputs)
        chosen.write(converted, facts, path)
        _compared(plain, chosen.open(path, outputs), clips[:1], outputs)  # with what was found, the final bytes

    atomic_write(out, write)
    return Exported(out, facts)


def _compared(plain: VideoClassifier, run: Run, clips: Tensor, outputs: Sequence[str]) -> dict[str, Any]:
    """How far a file's outputs are from the model's, at each number of clips at once.

    Raises:
        ExportMismatch: too far.
    """
    most = max(CHECKED_BATCHES)
    batches = [
        *(_cycled(clips, count) for count in CHECKED_BATCHES),
        *(clips[most:].split(most) if len(clips) > most else ()),
    ]
    worst = dict.fromkeys(outputs, 0.0)
    with torch.no_grad():
        for batch in batches:
            expected, found = plain(batch, return_maps="maps" in outputs), run(batch)
            for name in outputs:
                wanted = getattr(expected, name)
                scale = max(1.0, wanted.abs().max().item())
                difference = ((found[name] - wanted).abs().max() / scale).item()
                if not difference <= TOLERANCE:  # written so that NaN fails
                    raise ExportMismatch(
                        f"with {len(batch)} clips at once {name} differs by {difference:.2g} from the model's, at "
                        f"most {TOLERANCE:g} is allowed; no file was written"
                    )
                worst[name] = max(worst[name], difference)
    return {
        "clips": len(clips),
        "batches": sorted({len(batch) for batch in batches}),
        "tolerance": TOLERANCE,
        "difference": worst,
    }


def _cycled(clips: Tensor, count: int) -> Tensor:
    """So many clips, the first ones, from the beginning again where there are fewer."""
    return clips[torch.arange(count) % len(clips)]
