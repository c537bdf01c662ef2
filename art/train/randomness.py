"""Seeding, and the state of every global random generator, in a form that ``torch.load(weights_only=True)`` accepts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators (torch's on every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_of_rank(seed: int, rank: int, step: int = 0) -> int:
    """What a rank that begins at ``step`` seeds its generators with, so that dropout draws other masks on each."""
    return int(np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint32)[0])


def random_state() -> dict[str, Any]:
    """The global generators' states as plain containers and tensors."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Puts back what :func:`random_state` returned. CUDA states are put back where as many devices are present."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Leaves the global generators as they were, so that an evaluation in between does not change a training."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)
