import pytest
import torch

from art.train import throughput as pace
from art.train.throughput import Pace


def test_means_since_the_line_before():
    counting = Pace(torch.device("cpu"))
    counting.count(8, waiting=0.5, computing=1.0)
    counting.count(8, waiting=0.1, computing=2.0)
    numbers = counting.numbers()
    assert numbers["seconds/step"] == 1.5
    assert numbers["seconds/data"] == pytest.approx(0.3)
    assert numbers["clips_per_second"] == pytest.approx(16 / 3.6)
    assert numbers["memory_gib/process"] > 0.01
    counting.count(4, waiting=0.0, computing=1.0)
    assert counting.numbers()["clips_per_second"] == 4


def test_memory_of_the_device_where_there_is_such_a_thing(monkeypatch):
    monkeypatch.setattr(pace, "peak_device_memory_bytes", lambda device: 3 * 2**29)
    counting = Pace(torch.device("cuda"))
    counting.count(1, waiting=0.0, computing=1.0)
    assert counting.numbers()["memory_gib/device"] == 1.5
