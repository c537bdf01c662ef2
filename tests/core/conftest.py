"""Run tests on the CPU and on a GPU if present, with a fixed seed and without environment overrides."""

import pytest
import torch


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _reset(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.delenv("ART_KERNELS_BACKEND", raising=False)
    monkeypatch.delenv("ART_KERNELS_AUTOTUNE", raising=False)
