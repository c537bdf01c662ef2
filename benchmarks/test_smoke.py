"""A regression suite of small CPU benchmarks for pytest-benchmark: `make bench-smoke`.

Compares runs on one machine with each other; the numbers mean nothing beyond that. Not part of `make test`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from art.data.decoding.video import read_chosen
from benchmarks import attention_providers, bench_model, contrast_providers, data_providers, linking_providers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def single_thread() -> Any:
    """Run on one thread, so that results depend less on what else the machine runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("pass_name", ["forward", "both"])
def test_region_attention(benchmark: Any, pass_name: str) -> None:
    shape = attention_providers.AttentionShape("smoke", 16, 16, 2, 196, 256, 256, 8)
    inputs = attention_providers.draw_inputs(shape, CPU, torch.float32)
    module = attention_providers.build(attention_providers.OURS, shape, inputs)
    benchmark(attention_providers.pass_call(pass_name, module, inputs))


CONTRAST = {"mtc_loss": (16, 16, 4, 256), "pool_tracklets": (16, 16, 4, 256), "tracklet_nce": (512, 256)}


@pytest.mark.parametrize("operation", CONTRAST)
def test_contrast(benchmark: Any, operation: str) -> None:
    sizes = CONTRAST[operation]
    shape = contrast_providers.ContrastShape("smoke", operation, sizes, sizes[0])
    inputs = contrast_providers.draw_inputs(shape, CPU, torch.float32)
    benchmark(contrast_providers.pass_call("both", contrast_providers.build(contrast_providers.OURS, shape), inputs))


def test_linear_assignment(benchmark: Any) -> None:
    costs = linking_providers.draw_costs("uniform", 256, 16, CPU, torch.float32)
    benchmark(linking_providers.linear_assignment, costs)


def test_link_tracklets(benchmark: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    responses = linking_providers.draw_responses(16, 16, 8, 256, generator, CPU)
    benchmark(linking_providers.link_tracklets, responses)


def test_model_forward(benchmark: Any) -> None:
    model = bench_model.build(bench_model.ART_OURS, bench_model.MODELS["tiny"]).eval()
    video = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    benchmark(bench_model.pass_call("forward", model, video, torch.arange(2), "float32"))


def test_read_clip(benchmark: Any, tmp_path: Path) -> None:
    case = data_providers.VideoCase("smoke", 112, 112, 12)
    path = data_providers.write_video(tmp_path / "clip.mp4", case, frames=48)
    benchmark(read_chosen, path, lambda count: range(0, count, 6), short_side=64)
