"""Numbers printed by published implementations, whose weights and input come from a seed: no checkpoint is needed.

``tests/data/golden/<case>_keys.json`` names each parameter and its shape, ``<case>.npz`` holds outputs.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parents[1] / "data" / "golden"


def golden_shapes(name):
    """Parameter name → shape, of ``<name>_keys.json``."""
    return json.loads((FOLDER / f"{name}_keys.json").read_text())


def golden_outputs(name):
    """The arrays of ``<name>.npz`` as tensors."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def golden_weights(shapes, case):
    """The state dict of a case: the same tensors from the same names on any machine."""
    return {name: _filled(name, tuple(shape), case) for name, shape in shapes.items()}


def golden_video(shape, case):
    """The input of a case: standard normal, float32."""
    return torch.randn(shape, generator=_generator(case))


def _filled(name, shape, case):
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    noise = torch.randn(shape, generator=_generator(f"{case}:{name}"))
    if name.endswith("running_var"):
        return 1 + 0.1 * noise.abs()
    if noise.dim() <= 1 and name.endswith("weight"):
        return 1 + 0.1 * noise
    return noise * (0.02 if noise.dim() <= 1 else noise[0].numel() ** -0.5)


def _generator(text):
    return torch.Generator().manual_seed(zlib.crc32(text.encode()))
