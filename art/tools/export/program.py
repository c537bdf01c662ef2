"""A classifier as a graph of PyTorch's own operators, for any number of clips."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from art.model.pretrained import VideoClassifier
from art_kernels._core.backends import ENVIRONMENT_VARIABLE

#: What an exported model can say; the logits always come first.
OUTPUTS = ("logits", "class_token", "maps")
#: The name of the only input.
INPUT = "video"
#: Clips that are traced: neither 0 nor 1, which PyTorch would take for constants.
TRACED_CLIPS = 2
#: Matching by similarity lists all K! matchings of adjacent frames.
MOST_MATCHED = 6


def check_exportable(model: VideoClassifier, outputs: Sequence[str]) -> None:
    """Raise ValueError, before any work, for what cannot be exported: it says what to choose instead."""
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs or outputs[0] != "logits" or len(set(outputs)) < len(outputs):
        raise ValueError(
            f"outputs: got {','.join(outputs)!r}, expected logits and after it some of {', '.join(OUTPUTS[1:])}"
        )
    o = model.options
    if model.kind != "art":
        if "maps" in outputs:
            raise ValueError(
                f"outputs: got maps, but a model of kind {model.kind!r} has no response maps; leave them out"
            )
    elif o.linking != "index" and o.num_tracklets > MOST_MATCHED:
        raise ValueError(
            f"linking is {o.linking!r} with num_tracklets {o.num_tracklets}: in standard operations it lists all "
            f"matchings, and is exported for at most {MOST_MATCHED} tracklets; train with model.linking=index, which "
            "exports with any number"
        )


def trace(model: VideoClassifier, video: UInt8[Tensor, "b t 3 s s"], outputs: Sequence[str]) -> ExportedProgram:
    """The graph that gives ``outputs`` by name for ``{"video": [B, T, 3, S, S] uint8}`` with any B from 1 on.

    It holds none of the operators of ``art_kernels``: each operation is traced as its definition.

    Args:
        model: in eval mode, in float32, on the CPU.
        video: two real clips.
        outputs: of :data:`OUTPUTS`.

    Raises:
        RuntimeError: an operator of another library than PyTorch is in the graph.
    """
    with torch.no_grad(), _definitions():
        program = torch.export.export(
            _Named(model, outputs), (), {INPUT: video}, dynamic_shapes={INPUT: {0: Dim.DYNAMIC}}
        )
    foreign = sorted(
        str(node.target)
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in ("aten", "prims")
    )
    if foreign:
        raise RuntimeError(
            f"the graph holds {', '.join(dict.fromkeys(foreign))}, which a program without that library cannot run; "
            "the backbone needs a path in PyTorch's own operators"
        )
    return program


@contextmanager
def _definitions() -> Iterator[None]:
    """``art_kernels`` computes with the definition of each operation, which is in plain operators."""
    before = os.environ.get(ENVIRONMENT_VARIABLE)
    os.environ[ENVIRONMENT_VARIABLE] = "reference"
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENVIRONMENT_VARIABLE]
        else:
            os.environ[ENVIRONMENT_VARIABLE] = before


class _Named(nn.Module):
    """Some of what a classifier says, by name."""

    def __init__(self, model: VideoClassifier, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.outputs = model, tuple(outputs)

    def forward(self, video: Tensor) -> dict[str, Any]:
        said = self.model(video, return_maps="maps" in self.outputs)
        return {name: getattr(said, name) for name in self.outputs}
