"""The learning rate as a pure function of the step, so that resuming needs no scheduler state."""

from __future__ import annotations

import math

from art.train.config import OptimConfig


def learning_rate_factor(optim: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """What the base learning rates are multiplied with at one optimizer step.

    "step" divides by 10 every ``step_epochs`` epochs (the paper: 20); "cosine" falls to 0 at the end of training.
    During the first ``warmup_epochs`` (our addition, off by default) the factor rises linearly, and the schedule's own
    decay is counted from epoch 0 all the same.

    Args:
        optim: the schedule, the epochs and the warm-up.
        step: optimizer steps already taken, from 0.
        steps_per_epoch: batches an epoch, at least 1.

    Raises:
        ValueError: for a negative ``step``, fewer than one step an epoch, or an unknown schedule.
    """
    if step < 0 or steps_per_epoch < 1:
        raise ValueError(f"step and steps_per_epoch: got {step} and {steps_per_epoch}, expected >= 0 and >= 1")
    warmup_steps = optim.warmup_epochs * steps_per_epoch
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps >= 1 else 1.0
    if optim.schedule == "step":
        decay = 0.1 ** (step // steps_per_epoch // optim.step_epochs)
    elif optim.schedule == "cosine":
        progress = min(1.0, step / (optim.epochs * steps_per_epoch))
        decay = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        raise ValueError(f"optim.schedule: got {optim.schedule!r}, expected 'step' or 'cosine'")
    return warmup * decay
