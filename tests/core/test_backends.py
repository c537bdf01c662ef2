"""The backend registry: order of preference, unsupported tensors, the environment variable, and errors."""

import pytest
import torch

from art_kernels import linear_assignment, region_attention
from art_kernels._core import backends


@pytest.fixture
def operation(monkeypatch: pytest.MonkeyPatch) -> str:
    """An operation whose "triton" backend supports float32 only, without a "torch" backend."""
    monkeypatch.setattr(backends, "_implementations", {})

    def unsupported_reason(tensor: torch.Tensor) -> str | None:
        return None if tensor.dtype == torch.float32 else "only float32 is supported"

    backends.register("blur", "triton", lambda: "fast", unsupported_reason)
    backends.register("blur", "reference", lambda: "slow")
    return "blur"


def test_first_supported_backend_is_chosen(operation):
    assert backends.operations() == ["blur"]
    assert backends.choose(operation, torch.zeros(1)) == "triton"
    assert backends.choose(operation, torch.zeros(1).double()) == "reference"
    assert backends.implementation(operation, torch.zeros(1))() == "fast"
    assert backends.implementation(operation, torch.zeros(1), "reference")() == "slow"


def test_unsupported_reasons(operation):
    assert backends.unsupported_reason(operation, "triton", torch.zeros(1)) is None
    assert backends.unsupported_reason(operation, "triton", torch.zeros(1).half()) == "only float32 is supported"
    assert backends.unsupported_reason(operation, "torch", torch.zeros(1)) == "blur has no torch implementation"


def test_a_named_backend_runs_or_raises(operation):
    message = r"blur: backend='triton' does not support a float64 tensor on cpu: only float32 .*: 'reference'$"
    with pytest.raises(ValueError, match=message):
        backends.choose(operation, torch.zeros(1).double(), "triton")
    with pytest.raises(ValueError, match=r"no torch implementation; available backends: 'triton', 'reference'"):
        backends.choose(operation, torch.zeros(1), "torch")
    with pytest.raises(ValueError, match=r"backend='fast' is not a backend, expected one of 'triton', 'cpp', 'torch'"):
        backends.choose(operation, torch.zeros(1), "fast")


def test_environment_sets_the_default(operation, monkeypatch):
    monkeypatch.setenv("ART_KERNELS_BACKEND", "reference")
    assert backends.choose(operation, torch.zeros(1)) == "reference"
    assert backends.choose(operation, torch.zeros(1), "triton") == "triton"
    monkeypatch.setenv("ART_KERNELS_BACKEND", "torch")
    with pytest.raises(ValueError, match="blur: ART_KERNELS_BACKEND=torch does not support"):
        backends.choose(operation, torch.zeros(1))
    monkeypatch.setenv("ART_KERNELS_BACKEND", "quick")
    with pytest.raises(ValueError, match="blur: ART_KERNELS_BACKEND=quick is not a backend"):
        backends.choose(operation, torch.zeros(1))
    monkeypatch.setenv("ART_KERNELS_BACKEND", "")
    assert backends.choose(operation, torch.zeros(1)) == "triton"


def test_opt_in_backends_are_not_chosen_automatically(operation):
    backends.register(operation, "triton", lambda: "fast", opt_in=lambda tensor: True)
    assert backends.choose(operation, torch.zeros(1)) == "reference"
    assert backends.choose(operation, torch.zeros(1), "triton") == "triton"


def test_no_backend_supports_the_tensor(operation):
    backends.register(operation, "reference", lambda: "slow", lambda tensor: "not available")
    with pytest.raises(ValueError, match=r"blur: no backend supports a float64 tensor on cpu .*not available"):
        backends.choose(operation, torch.zeros(1).double())


def test_a_failed_import_is_the_reason(operation):
    assert backends.import_backend(operation, "torch", "no_such_module.torch") is None
    reason = "no_such_module cannot be imported: No module named 'no_such_module'"
    assert backends.unsupported_reason(operation, "torch", torch.zeros(1)) == reason


def test_native_is_a_deprecated_name_of_torch_and_cpp(monkeypatch):
    tensor, cost = torch.randn(1, 2, 8), torch.rand(3, 4, 4)
    with pytest.warns(
        DeprecationWarning, match="region_attention: backend='native' is deprecated, use 'torch'"
    ) as record:
        output = region_attention(tensor, tensor, backend="native")
    assert record[0].filename == __file__, "attributed to the caller, so that Python shows it"
    torch.testing.assert_close(output, region_attention(tensor, tensor, backend="torch"), rtol=0, atol=0)
    monkeypatch.setenv("ART_KERNELS_BACKEND", "native")
    with pytest.warns(DeprecationWarning, match="linear_assignment: ART_KERNELS_BACKEND=native .* use 'cpp'"):
        columns = linear_assignment(cost)
    assert torch.equal(columns, linear_assignment(cost, backend="cpp"))
    compiled = torch.compile(region_attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tensor, tensor), output)


@pytest.mark.parametrize("backend", [["torch"] * 1000, "torch " * 1000, torch.zeros(30, 30), 0], ids=type)
def test_a_backend_that_is_no_name(backend):
    with pytest.raises(ValueError, match=r"linear_assignment: backend=.* is not a backend, expected one of") as caught:
        backends.choose("linear_assignment", torch.zeros(2, 2), backend)
    assert len(str(caught.value)) < 300
