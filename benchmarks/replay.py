"""Calls captured in CUDA graphs: what launching costs is gone."""

from __future__ import annotations

from collections.abc import Callable

import torch


def replay(call: Callable[[], object]) -> Callable[[], object]:
    """A call captured in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # what is made once, is made before
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()

    def run_again() -> object:
        graph.replay()
        return kept

    return run_again
