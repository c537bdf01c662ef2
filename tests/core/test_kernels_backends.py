"""The registry: order of preference, refusals, the environment, and its errors."""

import pytest
import torch

from art_kernels import backends


@pytest.fixture
def operation(monkeypatch: pytest.MonkeyPatch) -> str:
    """An operation whose "triton" takes float32 alone, and which has no "native"."""
    monkeypatch.setattr(backends, "_implementations", {})

    def refusal(tensor: torch.Tensor) -> str | None:
        return None if tensor.dtype == torch.float32 else "it takes float32 alone"

    backends.register("blur", "triton", lambda: "fast", refusal)
    backends.register("blur", "reference", lambda: "slow")
    return "blur"


def test_first_that_serves_is_chosen(operation):
    assert backends.operations() == ["blur"]
    assert backends.choose(operation, torch.zeros(1)) == "triton"
    assert backends.choose(operation, torch.zeros(1).double()) == "reference"
    assert backends.implementation(operation, torch.zeros(1))() == "fast"
    assert backends.implementation(operation, torch.zeros(1), "reference")() == "slow"


def test_refusals_are_given_as_reasons(operation):
    assert backends.refusal(operation, "triton", torch.zeros(1)) is None
    assert backends.refusal(operation, "triton", torch.zeros(1).half()) == "it takes float32 alone"
    assert backends.refusal(operation, "native", torch.zeros(1)) == "this release has no native implementation"


def test_a_named_backend_serves_or_raises(operation):
    message = r"blur: backend='triton' cannot serve a float64 tensor on cpu: it takes float32 alone; .*: 'reference'$"
    with pytest.raises(ValueError, match=message):
        backends.choose(operation, torch.zeros(1).double(), "triton")
    with pytest.raises(ValueError, match=r"no native implementation; available here: 'triton', 'reference'"):
        backends.choose(operation, torch.zeros(1), "native")
    with pytest.raises(ValueError, match=r"backend='fast' is not a backend, expected one of 'triton', 'native', 'ref"):
        backends.choose(operation, torch.zeros(1), "fast")


def test_environment_sets_the_default(operation, monkeypatch):
    monkeypatch.setenv("ART_KERNELS_BACKEND", "reference")
    assert backends.choose(operation, torch.zeros(1)) == "reference"
    assert backends.choose(operation, torch.zeros(1), "triton") == "triton"
    monkeypatch.setenv("ART_KERNELS_BACKEND", "native")
    with pytest.raises(ValueError, match="blur: ART_KERNELS_BACKEND=native cannot serve"):
        backends.choose(operation, torch.zeros(1))
    monkeypatch.setenv("ART_KERNELS_BACKEND", "quick")
    with pytest.raises(ValueError, match="blur: ART_KERNELS_BACKEND=quick is not a backend"):
        backends.choose(operation, torch.zeros(1))
    monkeypatch.setenv("ART_KERNELS_BACKEND", "")
    assert backends.choose(operation, torch.zeros(1)) == "triton"


def test_nothing_serves(operation, monkeypatch):
    backends.register(operation, "reference", lambda: "slow", lambda tensor: "it is asleep")
    with pytest.raises(ValueError, match="blur: no backend serves a float64 tensor on cpu"):
        backends.choose(operation, torch.zeros(1).double())
