"""Which tensors the Triton kernels of every operation support, and when they are the default."""

import pytest
import torch
from operator_checks import DEVICE, GPU

from art_kernels._core import backends

#: A supported shape, one over the limit, the reason, and the default backend on a GPU in float32.
CASES = {
    "region_attention": ((1, 1, 8), (1, 1, 1537), "at most 1536 channels, got 1537", "torch"),
    "mtc_loss": ((1, 2, 32, 8), (1, 2, 33, 8), "compare at most 32 tracklets, responses has 33", "triton"),
    "pool_tracklets": ((1, 64, 8), (1, 65, 8), "at most 64 semantics per video, semantics has 65", "triton"),
    "tracklet_nce": ((1, 8), None, None, "triton"),
}
PACKAGES = {"mtc_loss": "tracklet_contrast", "pool_tracklets": "tracklet_pooling"}


@pytest.mark.parametrize("operation", CASES)
def test_unsupported_tensors(operation, monkeypatch):
    shape, over_limit, limit, default = CASES[operation]
    kernels = pytest.importorskip(f"art_kernels.{PACKAGES.get(operation, operation)}.triton")
    tensor = torch.empty(shape, device=DEVICE)

    def reason(tensor):
        return backends.unsupported_reason(operation, "triton", tensor)

    assert reason(tensor) is None
    assert reason(tensor.double()) == "the kernels compute in float32"
    if over_limit is not None:
        assert limit in reason(torch.empty(over_limit, device=DEVICE))
    if not GPU:
        assert backends.choose(operation, tensor) == "torch", "the interpreter is never chosen automatically"
        assert "bfloat16" in reason(tensor.bfloat16())
        monkeypatch.setattr(kernels, "INTERPRETED", False)
        assert "TRITON_INTERPRET=1" in reason(tensor)
    else:
        assert backends.choose(operation, tensor) == default
        assert backends.choose(operation, tensor.bfloat16()) == "triton"
