"""Training: one visible loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .batches import Batch, EvaluationBatches, Splits, TrainingBatches
from .checkpoints import copy_checkpoint
from .config import Config, to_dict
from .evaluate import evaluate, views_of, write_evaluation
from .interruption import Interrupted, Interruption
from .metrics import Evaluation
from .optimizers import set_learning_rates
from .predictions import Predictions
from .randomness import seed_everything
from .reporting import localize, report_run
from .run_folder import RunFolder
from .run_log import RunLog
from .runtime import autocast, peak_device_memory_bytes, peak_memory_bytes, resolve_device
from .schedule import learning_rate_factor
from .state import TrainingState


class NonFiniteLoss(ArithmeticError):
    """A loss term is NaN or infinite; the message names the term, the step and the clips."""


@dataclass(frozen=True)
class TrainResult:
    """What a finished training has to show.

    Attributes:
        output: the run folder.
        evaluation: of the last checkpoint on the test split.
        measured: "epochs", "steps", "parameters", "seconds" (wall time over every stretch of the run),
            "step_seconds" and "data_seconds" (medians over the logged steps: computing, and waiting for data),
            "peak_memory_bytes" and "peak_device_memory_bytes" (of this process; None off CUDA).
    """

    output: Path
    evaluation: Evaluation
    measured: dict[str, Any]


def train(config: Config, *, resume: bool = False, overwrite: bool = False) -> TrainResult:
    """Trains, evaluates, and writes the run folder.

    The reported evaluation is that of the *last* checkpoint: nothing is chosen on the test split. ``checkpoints/best``
    is for users who have a validation split.

    Args:
        config: the run.
        resume: continue the run in ``config.output`` exactly where it was saved (from the start if it never was): on
            the CPU, with the same number of threads, the losses are those of a run that never stopped, bit for bit.
        overwrite: replace the run in ``config.output``.

    Raises:
        RunExists, FileNotFoundError, ConfigError: see :meth:`.run_folder.RunFolder.check`.
        Interrupted: on SIGINT or SIGTERM, after the step under way and with the state saved.
        NonFiniteLoss: before the step that would have spoiled the weights; ``checkpoints/last`` stays as it was.
    """
    run = RunFolder(config.output)
    run.check(config, resume=resume, overwrite=overwrite)
    training = _Training.opened(config, run, resume=resume)
    state, splits = training.state, training.splits
    run.begin(config, splits.train.class_names, resume=resume)
    position = state.position
    with Interruption() as interruption, RunLog(run, epochs=position.epoch, step=position.step) as log:
        evaluation = training.run_epochs(log, interruption)
    measured = _measured(run, state, training.device)
    localization = localize(state.model, splits.test)
    details = {
        "checkpoint": "checkpoints/last",
        "views": views_of(config.data),
        "training": measured,
        "localization": None if localization is None else localization.to_dict(),
        "config": to_dict(config),
    }
    write_evaluation(run.path, Predictions.of(evaluation, splits.test), details)
    if config.report:
        report_run(
            run.path,
            model=state.model,
            clip_set=splits.test,
            evaluation=evaluation,
            localization=localization,
            history=run.history(),
            facts={
                "seed": config.seed,
                **{name: measured[name] for name in ("epochs", "seconds", "step_seconds")},
                **views_of(config.data),
            },
        )
    return TrainResult(run.path, evaluation, measured)


def check_trainable(config: Config) -> None:
    """Opens the data and builds the model as :func:`train` would, resuming where a run is; writes nothing.

    Raises:
        Exception: what :func:`train` would raise before its first step.
    """
    run = RunFolder(config.output)
    resume = run.exists()
    run.check(config, resume=resume, overwrite=False)
    _Training.opened(config, run, resume=resume)


class _Training:
    """The loop over epochs, and within it the loop over batches."""

    @classmethod
    def opened(cls, config: Config, run: RunFolder, *, resume: bool) -> _Training:
        """With its data, and a model that is new or as ``run`` saved it; seeds the global generators."""
        device = resolve_device(config.device)
        splits = Splits.open(config)
        class_names = splits.train.class_names
        seed_everything(config.seed)
        if resume and run.has_checkpoint():
            state = TrainingState.continued(run.last, config, class_names, device)
        else:
            state = TrainingState.fresh(config, class_names, device, splits.train.prompts)
        return cls(config, run, device, splits, state)

    def __init__(
        self, config: Config, run: RunFolder, device: torch.device, splits: Splits, state: TrainingState
    ) -> None:
        self.config, self.run, self.device, self.splits, self.state = config, run, device, splits, state
        # Making these finds missing files, before anything is written.
        self.batches = TrainingBatches(splits.train, config, state.model, device)
        self.test = EvaluationBatches(splits.test, config, state.model, device)
        watched = splits.validation or splits.test
        self.watched_split, self.watched = watched.split, self.test
        if watched is not splits.test or self.test.views > 1:
            self.watched = EvaluationBatches(watched, config, state.model, device, once=True)

    def run_epochs(self, log: RunLog, interruption: Interruption) -> Evaluation:
        """Every epoch that is left, then the evaluation of the last checkpoint on the test split."""
        self.log, self.interruption = log, interruption
        self._began = time.perf_counter() - self.state.position.seconds
        position, epochs = self.state.position, self.config.optim.epochs
        evaluation: Evaluation | None = None
        while position.epoch < epochs:
            self._train_epoch()
            self._save()
            numbers = {
                "mean_loss/total": position.loss_sum / position.clips,
                "top1/train": position.correct / position.clips,
                "epoch_seconds/train": position.epoch_seconds,
            }
            if (position.epoch + 1) % self.config.eval_every == 0 or position.epoch + 1 == epochs:
                evaluation = self._evaluate_epoch(numbers)
            self.log.write("epoch", position.epoch + 1, position.step, numbers)
            tqdm.write(f"epoch {position.epoch + 1}/{epochs}  {_told(numbers)}")
            position.next_epoch()
        if evaluation is None or self.watched is not self.test:
            evaluation = self._evaluate(self.test)
        position.seconds = time.perf_counter() - self._began
        return evaluation

    def _train_epoch(self) -> None:
        position, epochs = self.state.position, self.config.optim.epochs
        self.state.model.train()
        batches = self.batches.epoch(position.epoch, start=position.batch)
        self.state.restore_randomness()  # only now: making the loader may draw from the global generators
        interval = {"steps": 0, "seconds/step": 0.0, "seconds/data": 0.0}
        title = f"epoch {position.epoch + 1}/{epochs}"
        with tqdm(total=len(self.batches), initial=position.batch, desc=title, disable=None, leave=False) as bar:
            while position.batch < len(self.batches):
                asked = time.perf_counter()
                batch = self._next(batches)
                came = time.perf_counter()
                losses, rates = self._step(batch)
                done = time.perf_counter()
                position.epoch_seconds += done - asked
                interval["steps"] += 1
                interval["seconds/step"] += done - came
                interval["seconds/data"] += came - asked
                if position.step % self.config.log_every == 0:
                    steps = interval.pop("steps")
                    means = {name: value / steps for name, value in interval.items()}
                    interval = {"steps": 0, "seconds/step": 0.0, "seconds/data": 0.0}
                    self.log.write("step", position.epoch + 1, position.step, {**losses, **rates, **means})
                bar.update()
                bar.set_postfix(loss=f"{losses['loss/total']:.3f}")
                if self.interruption.requested():
                    self._save()
                    raise self._interrupted()

    def _step(self, batch: Batch) -> tuple[dict[str, float], dict[str, float]]:
        """One optimizer step: the losses and the learning rates, by the names of the log."""
        config, state, position = self.config.optim, self.state, self.state.position
        rates = set_learning_rates(state.optimizers, learning_rate_factor(config, position.step, len(self.batches)))
        batch = self.batches.prepare(batch)
        with autocast(self.device, self.config.precision):
            output = state.model(batch.video)
            terms = state.model.loss(output, batch.targets).named()
        state.scaler.scale(terms["total"]).backward()
        losses, correct = self._checked(terms, (output.logits.argmax(1) == batch.labels).sum(), batch)
        for optimizer in state.optimizers:
            state.scaler.unscale_(optimizer)
        if config.clip_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_grad_norm)
        for optimizer in state.optimizers:
            state.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        state.scaler.update()
        state.model.after_step()
        position.step += 1
        position.batch += 1
        position.clips += len(batch.labels)
        position.correct += correct
        position.loss_sum += losses["loss/total"] * len(batch.labels)
        return losses, {f"lr/{name}": rate for name, rate in rates.items()}

    def _checked(self, terms: dict[str, Tensor], correct: Tensor, batch: Batch) -> tuple[dict[str, float], int]:
        """The terms as numbers, fetched from the device at once."""
        *values, right = torch.stack([*(term.detach().float() for term in terms.values()), correct.float()]).tolist()
        losses = {f"loss/{name}": value for name, value in zip(terms, values, strict=True)}
        wrong = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if wrong:
            position = self.state.position
            clips = ", ".join(str(self.splits.train.clips[i]) for i in batch.indices.tolist())
            kept = (
                f"{self.run.last} holds the last good state" if self.run.has_checkpoint() else "nothing was saved yet"
            )
            told = ", ".join(f"{name} is {value}" for name, value in wrong.items())
            raise NonFiniteLoss(
                f"{told} at step {position.step + 1} (epoch {position.epoch + 1}), clips: {clips}. {kept}; a smaller "
                "optim.lr, optim.clip_grad_norm=1 or precision=fp32 may help"
            )
        return losses, int(right)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        try:
            return next(batches)
        except Exception:  # a data worker that got the same signal is gone, and may have left half a batch behind
            if not self.interruption.requested():
                raise
            self._save()
            raise self._interrupted() from None

    def _evaluate_epoch(self, numbers: dict[str, float]) -> Evaluation:
        began = time.perf_counter()
        split = self.watched_split
        former = [line[f"top1/{split}"] for line in self.run.history() if f"top1/{split}" in line]
        evaluation = self._evaluate(self.watched)
        numbers |= {
            f"top1/{split}": evaluation.top1,
            f"top5/{split}": evaluation.top5,
            f"mean_class_accuracy/{split}": evaluation.mean_class_accuracy,
            "epoch_seconds/evaluation": time.perf_counter() - began,
        }
        if evaluation.top1 > max(former, default=-1.0):
            copy_checkpoint(self.run.last, self.run.best)
        return evaluation

    def _evaluate(self, batches: EvaluationBatches) -> Evaluation:
        try:
            return evaluate(
                self.state.model,
                batches,
                device=self.device,
                precision=self.config.precision,
                groups=batches.groups,
                should_stop=self.interruption.requested,
            )
        except Exception:  # EvaluationStopped, or as in _next
            if not self.interruption.requested():
                raise
            raise self._interrupted() from None  # the epoch was saved before: resuming evaluates it again

    def _save(self) -> None:
        self.state.position.seconds = time.perf_counter() - self._began
        self.state.save(self.run.last)

    def _interrupted(self) -> Interrupted:
        position, number = self.state.position, self.interruption.signal_number
        assert number is not None
        return Interrupted(
            number,
            f"stopped by signal {number} after step {position.step}, {position.batch} of {len(self.batches)} batches "
            f"into epoch {position.epoch + 1}; saved in {self.run.last}, continue with --resume",
        )


def _told(numbers: dict[str, float]) -> str:
    """The numbers of an epoch in one line for the terminal."""
    seconds = sum(value for name, value in numbers.items() if name.startswith("epoch_seconds/"))
    shares = (f"{name.replace('/', ' ')} {100 * value:.1f} %" for name, value in numbers.items() if "top1/" in name)
    return "  ".join([f"loss {numbers['mean_loss/total']:.4g}", *shares, f"{seconds:.1f} s"])


def _measured(run: RunFolder, state: TrainingState, device: torch.device) -> dict[str, Any]:
    steps = [line for line in run.history() if line["event"] == "step"]
    return {
        "epochs": state.position.epoch,
        "steps": state.position.step,
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "seconds": state.position.seconds,
        "step_seconds": median(line["seconds/step"] for line in steps) if steps else None,
        "data_seconds": median(line["seconds/data"] for line in steps) if steps else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_device_memory_bytes": peak_device_memory_bytes(device),
    }
