"""Make `benchmarks`, which is not installed, importable from the checkout, and provide small sizes."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.attention_providers import SHAPES, AttentionShape
from benchmarks.common import measure


@pytest.fixture
def fast_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the limits of the CPU with a short copy and a small product."""
    monkeypatch.setitem(measure.COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setitem(measure.MATRIX_SIZES, "cpu", 32)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, fast_limits: None) -> AttentionShape:
    """A small shape of region attention, named "tiny"; quick runs do not shrink it further."""
    shape = AttentionShape("tiny", 1, 1, 2, 7, 6, 8, 2, norm_regions=True)
    monkeypatch.setitem(SHAPES, "tiny", shape)
    return shape
