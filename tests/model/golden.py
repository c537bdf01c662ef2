"""Outputs of published implementations for weights and input generated from a seed, which need no checkpoint.

``tests/data/golden/<case>_keys.json`` contains parameter names and shapes, ``<case>.npz`` the outputs.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

DIRECTORY = Path(__file__).parents[1] / "data" / "golden"


def golden_shapes(name):
    """Return parameter name → shape from ``<name>_keys.json``."""
    return json.loads((DIRECTORY / f"{name}_keys.json").read_text())


def golden_outputs(name):
    """Return the arrays of ``<name>.npz`` as tensors."""
    with np.load(DIRECTORY / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def golden_weights(shapes, case):
    """Return the state dict of a case; the same names have the same tensors on any machine."""
    return {name: _generate(name, tuple(shape), case) for name, shape in shapes.items()}


def golden_video(shape, case):
    """Return the input of a case, standard normal float32."""
    return torch.randn(shape, generator=_generator(case))


def _generate(name, shape, case):
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
