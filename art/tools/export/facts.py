"""What a file says of the model in it, as JSON within the file: all that a program needs to use it rightly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from art import __version__
from art.model.pretrained import VideoClassifier
from art.tools.export.program import INPUT

#: Under this key in an ONNX file's metadata, and, with ".json", among the extra files of a program.
KEY = "art"
_DESCRIBED = {
    "logits": "[clips, classes] float32; softmax gives probabilities",
    "class_token": "[clips, channels] float32, the global feature of each clip",
    "maps": "[clips, frames, tracklets, height, width] float32, where each query looks; sums to 1 over a frame",
}


def facts_of(model: VideoClassifier, outputs: Sequence[str], libraries: Sequence[str]) -> dict[str, Any]:
    """Everything but the check, fit for JSON.

    Args:
        model: what is exported.
        outputs: what it says.
        libraries: whose versions are named, beside torch.
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
            "colours": "RGB, 0 to 255; the model normalises them itself",
        },
        "outputs": {name: _DESCRIBED[name] for name in outputs},
        "sampling": asdict(model.sampling),
        "crop": {"share": model.centre_crop.share, "resize": "bilinear, antialiased, rounded"},
        "options": asdict(model.options),
        "versions": {"art": __version__, "torch": str(torch.__version__), **_versions(libraries)},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def read_facts(path: Path) -> dict[str, Any]:
    """What ``art export`` wrote into a .pt2 or .onnx file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is neither, or has no such facts.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".onnx":
        import onnx

        model = onnx.load(path, load_external_data=False)
        text = {entry.key: entry.value for entry in model.metadata_props}.get(KEY, "")
    elif path.suffix == ".pt2":
        extra = {f"{KEY}.json": ""}
        torch.export.load(path, extra_files=extra)
        text = extra[f"{KEY}.json"]
    else:
        raise ValueError(f"{path}: expected a .pt2 or .onnx file")
    if not text:
        raise ValueError(f"{path}: holds no facts of art export; export the model again")
    return dict(json.loads(text))


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
