"""The variants of the contrast kernels that calls lead to, as launches on tensors that hold nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from art_kernels._core.launch import KernelLaunch
from art_kernels._core.launch import DeviceSpec
from art_kernels.tracklet_contrast.calls import Rows, flattened_call, levels_call, mean_call, terms_call, weigh_call
from art_kernels.tracklet_contrast.passes import Options

#: Channels that stand for all: with chunks that are full, and some that are not.
CHANNELS = (96, 256, 1000, 1024)
#: Tracklets a frame: one for each line of the table of tiles.
TRACKLETS = (2, 32)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: By name: the options, and whether frames may be invalid.
OPTIONS = {"plain": (Options(0.6, False, False, False), False), "all": (Options(0.6, True, True, False), True)}


def variants(device: DeviceSpec) -> Iterator[tuple[str, KernelLaunch]]:
    """Names such as "levels.bf16.c256.k32.plain", and the launches."""
    partial = _empty(torch.float32, 4096, 4)
    yield "terms", terms_call(partial, partial, 2, partial, partial)
    for dtype_name, dtype in DTYPES.items():
        for channels in CHANNELS:
            for count in TRACKLETS:
                for option in OPTIONS:
                    for kernel, call in _calls(dtype, channels, count, option, device).items():
                        yield f"{kernel}.{dtype_name}.c{channels}.k{count}.{option}", call


def _calls(dtype: torch.dtype, channels: int, count: int, option: str, device: DeviceSpec) -> dict[str, KernelLaunch]:
    options, masked = OPTIONS[option]
    responses = _empty(dtype, 64, 64, count, channels)
    rows = Rows(responses, _empty(torch.bool, 64, 64) if masked else None, device)
    tracklets = _empty(dtype if masked else torch.float32, 64, 1, count, channels)
    pooled = Rows(tracklets, _empty(torch.bool, 64, 1) if masked else None, device)
    of_videos = _empty(torch.float32, 64, count, channels)
    share = _empty(torch.float32, 64)
    calls = {
        "levels": levels_call(rows, options, responses, responses, temporal=True)[0],
        "values": levels_call(rows, options, None, None, temporal=True)[0],
        "tracklets": levels_call(pooled, options, tracklets, None, temporal=False)[0],
        "flattened": flattened_call(rows, options, responses)[0],
        "weigh": weigh_call(share, share, responses, responses, of_videos, share, rows.valid, responses),
    }
    if count == TRACKLETS[0]:  # it does not depend on their number
        calls["mean"] = mean_call(rows, of_videos)
    return calls


def _empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
