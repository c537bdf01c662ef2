"""How fast training goes and what memory it takes, between two lines of the log."""

from __future__ import annotations

import torch

from art.train.runtime import peak_device_memory_bytes, peak_memory_bytes

_GIB = 2**30


class Pace:
    """Adds up the steps since the line before.

    Args:
        device: whose memory is told.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps = self._clips = 0
        self._waiting = self._computing = 0.0

    def count(self, clips: int, *, waiting: float, computing: float) -> None:
        """One step.

        Args:
            clips: of the whole batch.
            waiting: for data, in seconds.
            computing: seconds.
        """
        self._steps += 1
        self._clips += clips
        self._waiting += waiting
        self._computing += computing

    def numbers(self) -> dict[str, float]:
        """What :class:`~.run_log.RunLog` says of time and memory; counting begins anew. There must have been a step."""
        numbers = {
            "seconds/step": self._computing / self._steps,
            "seconds/data": self._waiting / self._steps,
            "clips_per_second": self._clips / (self._computing + self._waiting),
            "memory_gib/process": peak_memory_bytes() / _GIB,
        }
        of_device = peak_device_memory_bytes(self._device)
        if of_device is not None:
            numbers["memory_gib/device"] = of_device / _GIB
        self._steps = self._clips = 0
        self._waiting = self._computing = 0.0
        return numbers
