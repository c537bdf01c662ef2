import pytest
import torch

from benchmarks.memory import peak_extra_bytes, peak_of_running_sum

DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def test_peak_of_running_sum():
    assert peak_of_running_sum([]) == 0
    assert peak_of_running_sum([4, 8, -8, 6, -10]) == 12
    assert peak_of_running_sum([-4, 3]) == 0  # what was there before, released


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_known_pattern(device):
    def mebibytes(count):
        return torch.empty(count << 20, dtype=torch.uint8, device=device)

    def call():
        kept = mebibytes(4)
        dropped = mebibytes(16)
        del dropped
        return kept, mebibytes(8)

    assert peak_extra_bytes(call, device) == 20 << 20


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_what_an_operator_makes_inside_is_seen(device):
    values = torch.randn(64, 1 << 14, device=device)
    assert values.logsumexp(-1).nbytes == 256
    assert peak_extra_bytes(lambda: values.logsumexp(-1), device) >= values.nbytes  # of the exponentials


def test_backward_is_seen():
    weight = torch.randn(256, 256, requires_grad=True)
    product = (weight @ weight).sum()
    assert peak_extra_bytes(lambda: torch.autograd.grad(product, weight), torch.device("cpu")) >= weight.nbytes
