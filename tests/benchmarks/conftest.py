"""`benchmarks` is no installed package: the tests import it from the root of the repository."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import attention_providers, bandwidth
from benchmarks.attention_shapes import SHAPES, AttentionShape


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> AttentionShape:
    """A shape that takes no time, by name "tiny"; nothing is compiled to machine code and the copy is short."""
    shape = AttentionShape("tiny", 4, 3, 2, 7, 6, 8, 2, norm_regions=True)
    monkeypatch.setitem(SHAPES, "tiny", shape)
    monkeypatch.setattr(attention_providers, "COMPILER", "aot_eager")
    monkeypatch.setattr(attention_providers.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setitem(bandwidth.COPY_BYTES, "cpu", 1 << 20)
    return shape
