"""Where the numbers of a training go while it runs: ``metrics.jsonl``, and to the observers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Float32

from art.train.logging import Observer
from art.train.run_dir import RunFolder


class NoLog:
    """The log of a rank that writes none."""

    def __enter__(self) -> NoLog:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def write(self, event: str, epoch: int, step: int, numbers: dict[str, Any]) -> None:
        """Writes nothing."""

    def histograms(self, step: int, histograms: Mapping[str, Float32[np.ndarray, " n"]]) -> None:
        """Shows nothing."""


class RunLog:
    """Appends to ``metrics.jsonl``, one flat JSON object a line, and tells the observers the same numbers.

    "event" tells the two kinds of lines apart; "epoch" and "step" count from 1, and times are seconds:

    - "step": "loss/<term>" of that step, every term by name; "lr/<parameter group>" (of the backbone's layers, the
      highest); "seconds/step" and "seconds/data", means a step since the line before: computing, and waiting for data;
      "clips_per_second" over both; "memory_gib/process" and, on CUDA, "memory_gib/device", the most that this process
      and torch on the device have had so far; where it is asked for, "gradient_norm/total" and "gradient_norm/<group>",
      before clipping, and the 5th, 50th and 95th percentiles of :func:`.similarities.bank_similarities`, as
      "similarity_own_class/p05" and so on;
    - "epoch": "mean_loss/total"; "top1/train" (share of the training clips, as augmented, that were right);
      "epoch_seconds/train"; and, where it was evaluated, "top1/<split>", "top5/<split>",
      "mean_class_accuracy/<split>" and "epoch_seconds/evaluation".

    An observer that raises is left out from then on, with a warning: training goes on, and the file has everything.

    Args:
        run: the folder.
        epochs: whole epochs, evaluation included, behind the state that training starts from; later lines are dropped.
        step: steps behind it; likewise.
        observers: told as well, and closed at the end.
    """

    def __init__(self, run: RunFolder, *, epochs: int, step: int, observers: Sequence[Observer] = ()) -> None:
        reached = {"epoch": epochs, "step": step}
        kept = [line for line in run.history() if line[line["event"]] <= reached[line["event"]]]
        incoming = run.metrics.with_name(f".{run.metrics.name}.incoming")
        incoming.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        incoming.replace(run.metrics)
        self._file = run.metrics.open("a", encoding="utf-8")
        self._observers = list(observers)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._tell(lambda observer: observer.close(failed=kind is not None))

    def write(self, event: str, epoch: int, step: int, numbers: dict[str, Any]) -> None:
        """Writes one line at once."""
        self._file.write(json.dumps({"event": event, "epoch": epoch, "step": step, **numbers}) + "\n")
        self._file.flush()
        self._tell(lambda observer: observer.write(step, numbers))

    def histograms(self, step: int, histograms: Mapping[str, Float32[np.ndarray, " n"]]) -> None:
        """Shows the observers many values of each kind."""

        def show(observer: Observer) -> None:
            for name, values in histograms.items():
                observer.histogram(step, name, values)

        self._tell(show)

    def _tell(self, message: Callable[[Observer], None]) -> None:
        for observer in list(self._observers):
            try:
                message(observer)
            except Exception as error:
                self._observers.remove(observer)
                warnings.warn(
                    f"{observer.name}: told nothing from here on, because it failed with {type(error).__name__}: "
                    f"{error}. metrics.jsonl has all numbers",
                    stacklevel=3,
                )
