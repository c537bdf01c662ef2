"""Where the numbers of a training go while it runs: ``metrics.jsonl`` and TensorBoard."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any

from .run_folder import RunFolder


class RunLog:
    """Appends to ``metrics.jsonl``, one flat JSON object a line, and mirrors its numbers to TensorBoard.

    "event" tells the two kinds of lines apart; "epoch" and "step" count from 1, and times are seconds:

    - "step": "loss/<term>" of that step, every term by name; "lr/<parameter group>"; "seconds/step" and "seconds/data",
      means a step since the line before: computing, and waiting for data;
    - "epoch": "mean_loss/total"; "top1/train" (share of the training clips, as augmented, that were right);
      "epoch_seconds/train"; and, where it was evaluated, "top1/<split>", "top5/<split>",
      "mean_class_accuracy/<split>" and "epoch_seconds/evaluation".

    Args:
        run: the folder.
        epochs: whole epochs, evaluation included, behind the state that training starts from; later lines are dropped.
        step: steps behind it; likewise.
    """

    def __init__(self, run: RunFolder, *, epochs: int, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        reached = {"epoch": epochs, "step": step}
        kept = [line for line in run.history() if line[line["event"]] <= reached[line["event"]]]
        incoming = run.metrics.with_name(f".{run.metrics.name}.incoming")
        incoming.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        incoming.replace(run.metrics)
        self._file = run.metrics.open("a", encoding="utf-8")
        self._board = SummaryWriter(log_dir=str(run.tensorboard), purge_step=step + 1 if step else None)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()

    def write(self, event: str, epoch: int, step: int, numbers: dict[str, Any]) -> None:
        """Writes one line at once."""
        self._file.write(json.dumps({"event": event, "epoch": epoch, "step": step, **numbers}) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
