"""Run kernel tests on the CPU and on a GPU if present, with a fixed seed and without environment overrides."""

import importlib.util

import pytest
import torch

from art_kernels.tracklet_linking import cpp


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device on which the `backend` of the test runs: kernels use the GPU, or without one, the interpreter."""
    backend = getattr(request.node, "callspec", None) and request.node.callspec.params.get("backend")
    if backend == "triton" and request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("with a GPU, the kernels are not interpreted")
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton has no wheel for this platform")
    return torch.device(request.param)


@pytest.fixture
def native_module(device: torch.device) -> None:
    """Skip the test if the native module is not built for the device."""
    reason = cpp.unsupported_reason(torch.empty(0, device=device))
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _reset(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.delenv("ART_KERNELS_BACKEND", raising=False)
    monkeypatch.delenv("ART_KERNELS_AUTOTUNE", raising=False)
