"""Kernel tests run on the CPU and on a GPU where there is one, from one seed, with no choice in the environment."""

import pytest
import torch


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that the test's `backend` serves: the kernels have a GPU, or Triton's interpreter on a CPU."""
    backend = getattr(request.node, "callspec", None) and request.node.callspec.params.get("backend")
    if backend == "triton" and request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("where a GPU is, the kernels are not interpreted")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _fixed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.delenv("ART_KERNELS_BACKEND", raising=False)
    monkeypatch.delenv("ART_KERNELS_AUTOTUNE", raising=False)
