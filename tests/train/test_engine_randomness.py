import random

import numpy as np
import torch

from art.train.randomness import random_state, restore_random_state, seed_everything, untouched_random_state


def draw():
    return random.random(), float(np.random.rand()), float(np.random.randn()), float(torch.rand(()))


def test_seeding_repeats_every_generator():
    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_a_state_survives_a_file_that_may_run_no_code(tmp_path):
    seed_everything(1)
    draw()  # leaves a Gaussian cached in NumPy's generator
    random.gauss(0, 1)
    torch.save(random_state(), tmp_path / "state.pt")
    expected = draw(), random.gauss(0, 1)
    draw()
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (draw(), random.gauss(0, 1)) == expected


def test_an_evaluation_in_between_changes_nothing():
    seed_everything(2)
    expected = draw()
    seed_everything(2)
    with untouched_random_state():
        draw()
    assert draw() == expected
