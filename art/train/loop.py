"""Training: one visible loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from art.eval.evaluate import EvaluationStopped, evaluate, views_of, write_evaluation
from art.eval.metrics import Evaluation
from art.eval.predictions import Predictions
from art.eval.reporting import localize, report_run
from art.eval.similarities import bank_similarities, quantiles
from art.model.art_model import ARTModel
from art.model.pretrained import load_model
from art.train.batches import Batch, EvaluationBatches, Splits, TrainingBatches
from art.train.checkpoint import CheckpointWriter, copy_checkpoint
from art.train.config import Config, to_dict
from art.train.distributed import Ranks, joined
from art.train.gradients import Gradients
from art.train.interruption import Interrupted, Interruption
from art.train.logging import open_observers, require_observers
from art.train.logging.run_log import NoLog, RunLog
from art.train.optim import set_learning_rates
from art.train.parallel import adding_up, answering
from art.train.parts import PartOutcomes, StepOutcome
from art.train.randomness import seed_everything
from art.train.run_dir import Resume, RunFolder
from art.train.runtime import allow_tf32, autocast, peak_device_memory_bytes, peak_memory_bytes, resolve_device
from art.train.schedule import learning_rate_factor
from art.train.state import TrainingState
from art.train.throughput import Pace
from art.train.trace import StepTrace


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
            "peak_memory_bytes" and "peak_device_memory_bytes" (of this process; None off CUDA). Empty but on rank 0.
    """

    output: Path
    evaluation: Evaluation
    measured: dict[str, Any]


def train(config: Config, *, resume: Resume = False, overwrite: bool = False) -> TrainResult:
    """Trains, evaluates, and writes the run folder. Started by torchrun, on all ranks together: rank 0 writes.

    The reported evaluation is that of the *last* checkpoint: nothing is chosen on the test split. ``checkpoints/best``
    is for users who have a validation split.

    Args:
        config: the run.
        resume: continue the run in ``config.output`` exactly where it was saved (from the start if it never was): on
            the CPU, with the same number of threads, the losses are those of a run that never stopped, bit for bit.
            "auto": if a run was begun there, else begin it.
        overwrite: replace the run in ``config.output``.

    Raises:
        RunExists, FileNotFoundError, ConfigError: see :meth:`.run_folder.RunFolder.check`.
        Interrupted: on SIGINT or SIGTERM, on any rank, after the step under way and with the state saved.
        OtherRankError: another rank ended with an error of its own.
        NonFiniteLoss: before the step that would have spoiled the weights; ``checkpoints/last`` stays as it was.

    Examples:
        >>> from art.train.config import load_config
        >>> from art.train.loop import train
        >>> small = ["data.workers=0", "model.num_frames=2", "model.backbone_options.width=8", "report=false"]
        >>> own = ["data.name=folder", "data.root=data/mine", "output=runs/mine", "optim.epochs=1"]
        >>> result = train(load_config(None, own + small + ["log.tensorboard=false"]))  # doctest: +ELLIPSIS
        epoch 1/1  loss ...
        >>> result.measured["steps"]
        1
    """
    run = RunFolder(config.output)
    with joined(config) as ranks:
        resuming = ranks.on_main(lambda: run.check(config, resume=resume, overwrite=overwrite))
        training = _Training.opened(config, run, ranks, resume=resuming)
        ranks.on_main(lambda: run.begin(config, training.splits.train.class_names, resume=resuming))
        with ranks.together():
            run.check_visible()
        position = training.state.position
        log: RunLog | NoLog = NoLog()
        if ranks.is_main:
            observers = open_observers(config, run, step=position.step)
            log = RunLog(run, epochs=position.epoch, step=position.step, observers=observers)
        with Interruption() as interruption, log, training.writer, closing(training.trace):
            evaluation = training.run_epochs(log, interruption)
    if not ranks.is_main:
        return TrainResult(run.path, evaluation, {})
    measured = _measured(run, training.state, training.device)
    _write_results(training, evaluation, measured)
    return TrainResult(run.path, evaluation, measured)


def _write_results(training: _Training, evaluation: Evaluation, measured: dict[str, Any]) -> None:
    """What the last checkpoint answered on the test split, and the report."""
    config, run, test = training.config, training.run, training.splits.test
    model = training.state.model
    sharded = training.ranks.several and config.parallel.strategy == "fsdp"
    if sharded or training.state.average is not None:  # the model here is not the one that was evaluated
        model = load_model(run.last).to(training.device)
    localization = localize(model, test)
    details = {
        "checkpoint": "checkpoints/last",
        "views": views_of(config.data),
        "training": measured,
        "localization": None if localization is None else localization.to_dict(),
        "config": to_dict(config),
    }
    write_evaluation(run.path, Predictions.of(evaluation, test), details)
    if config.report:
        report_run(
            run.path,
            model=model,
            clip_set=test,
            evaluation=evaluation,
            localization=localization,
            history=run.history(),
            facts={
                "seed": config.seed,
                **{name: measured[name] for name in ("epochs", "seconds", "step_seconds")},
                **views_of(config.data),
            },
        )


def check_trainable(config: Config) -> None:
    """Opens the data and builds the model as :func:`train` would, resuming where a run is; writes nothing.

    Raises:
        Exception: what :func:`train` would raise before its first step.
    """
    run = RunFolder(config.output)
    resume = run.check(config, resume="auto", overwrite=False)
    _Training.opened(config, run, Ranks(resolve_device(config.device)), resume=resume)


class _Training:
    """The loop over epochs, and within it the loop over batches."""

    @classmethod
    def opened(cls, config: Config, run: RunFolder, ranks: Ranks, *, resume: bool) -> _Training:
        """With its data, and a model that is new or as ``run`` saved it; seeds the global generators."""
        allow_tf32(config.tf32)
        with ranks.together():
            require_observers(config.log)
            splits = Splits.open(config)
        class_names = splits.train.class_names
        seed_everything(config.seed)
        if resume and ranks.on_main(run.has_checkpoint):
            state = TrainingState.continued(run.last, config, class_names, ranks)
        else:
            state = TrainingState.fresh(config, class_names, ranks, splits.train.prompts)
        with ranks.together():
            return cls(config, run, splits, state)

    def __init__(self, config: Config, run: RunFolder, splits: Splits, state: TrainingState) -> None:
        self.config, self.run, self.splits, self.state = config, run, splits, state
        self.ranks, self.device = state.ranks, state.ranks.device
        kept = config.checkpoints
        self.writer = CheckpointWriter(run.last, self.ranks, keep=kept.keep, asynchronous=kept.asynchronous)
        self.gradients = Gradients(state.model.parameter_groups(), config.optim.clip_grad_norm)
        self.pace = Pace(self.device)
        self.trace = StepTrace(
            run.trace, config.log.profile, self.device, self.ranks.rank if self.ranks.several else None
        )
        # Making these finds missing files, before anything is written.
        among: dict[str, Any] = {"ranks": self.ranks}
        self.batches = TrainingBatches(splits.train, config, state.model, self.device, **among)
        self.test = EvaluationBatches(splits.test, config, state.model, self.device, **among)
        watched = splits.validation or splits.test
        self.watched_split, self.watched = watched.split, self.test
        if watched is not splits.test or self.test.views > 1:
            self.watched = EvaluationBatches(watched, config, state.model, self.device, once=True, **among)

    def run_epochs(self, log: RunLog | NoLog, interruption: Interruption) -> Evaluation:
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
            if self.ranks.is_main:
                tqdm.write(f"epoch {position.epoch + 1}/{epochs}  {_told(numbers)}")
            position.next_epoch()
        self.writer.wait()
        if evaluation is None or self.watched is not self.test:
            evaluation = self._evaluate(self.test)
        position.seconds = time.perf_counter() - self._began
        return evaluation

    def _train_epoch(self) -> None:
        position, epochs = self.state.position, self.config.optim.epochs
        self.state.model.train()
        batches = self.batches.epoch(position.epoch, start=position.batch)
        self.state.restore_randomness()  # only now: making the loader may draw from the global generators
        title = f"epoch {position.epoch + 1}/{epochs}"
        hidden = None if self.ranks.is_main else True  # None: where there is no terminal
        with tqdm(total=len(self.batches), initial=position.batch, desc=title, disable=hidden, leave=False) as bar:
            while position.batch < len(self.batches):
                self.trace.before(position.step + 1)
                asked = time.perf_counter()
                batch = self._next(batches)
                came = time.perf_counter()
                numbers, clips = self._step(batch)
                done = time.perf_counter()
                position.epoch_seconds += done - asked
                self.pace.count(clips, waiting=came - asked, computing=done - came)
                self.trace.after(position.step)
                if self._is_logged(position.step):
                    numbers |= self.pace.numbers()
                    self.log.write("step", position.epoch + 1, position.step, numbers)
                bar.update()
                bar.set_postfix(loss=f"{numbers['loss/total']:.3f}")
                every = self.config.checkpoints.every_steps
                if every is not None and position.step % every == 0 and position.batch < len(self.batches):
                    self._save()

    def _step(self, batch: Batch) -> tuple[dict[str, float], int]:
        """One optimizer step: what the log has of it, by name, and how many clips it took."""
        config, state, position = self.config.optim, self.state, self.state.position
        rates = set_learning_rates(state.optimizers, learning_rate_factor(config, position.step, len(self.batches)))
        outcomes, parts = PartOutcomes(), batch.split(self.batches.part_size)
        for number, part in enumerate(parts, start=1):
            with adding_up(state.objective) if number < len(parts) else nullcontext():
                part = self.batches.prepare(part)
                with autocast(self.device, self.config.precision):
                    answers, terms = state.objective(part.video, part.targets)
                # Terms are means over clips: each part counts by its share of the batch.
                state.scaler.scale(terms["total"] * (len(part.labels) / len(batch.labels))).backward()
            outcomes.add(terms, answers, part)
        outcome = self._checked(outcomes.fetched(self.ranks))
        for optimizer in state.optimizers:
            state.scaler.unscale_(optimizer)
        measure = self.config.log.gradient_norms and self._is_logged(position.step + 1)
        told = self.gradients.clip(measure=measure) | self._similarities(position.step + 1, outcomes)
        for optimizer in state.optimizers:
            state.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        state.scaler.update()
        state.after_step()
        position.step += 1
        position.batch += 1
        position.clips += outcome.clips
        position.correct += outcome.correct
        position.loss_sum += outcome.losses["loss/total"] * outcome.clips
        return {**outcome.losses, **{f"lr/{name}": rate for name, rate in rates.items()}, **told}, outcome.clips

    def _checked(self, outcome: StepOutcome) -> StepOutcome:
        wrong = {name: value for name, value in outcome.losses.items() if not math.isfinite(value)}
        if wrong:
            raise self._non_finite(wrong, outcome.suspects)
        return outcome

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every == 0 or self._shows_histograms(step)

    def _shows_histograms(self, step: int) -> bool:
        every = self.config.log.histograms_every
        return every is not None and step % every == 0 and isinstance(self.state.model, ARTModel)

    def _similarities(self, step: int, outcomes: PartOutcomes) -> dict[str, float]:
        """Of rank 0's clips; nothing where it is not their turn."""
        model = self.state.model
        if not self._shows_histograms(step):
            return {}
        assert isinstance(model, ARTModel)
        histograms = bank_similarities(model.semantics, outcomes.video_latent, outcomes.labels)
        self.log.histograms(step, histograms)
        return quantiles(histograms)

    def _non_finite(self, wrong: dict[str, float], indices: list[int]) -> NonFiniteLoss:
        """On all ranks the same; ``indices`` are this rank's clips, if one of its terms is not finite."""
        position = self.state.position
        clips = ", ".join(str(self.splits.train.clips[i]) for own in self.ranks.gather_objects(indices) for i in own)
        self.writer.wait()
        saved = self.ranks.on_main(self.run.has_checkpoint)
        kept = f"{self.run.last} holds the last good state" if saved else "nothing was saved yet"
        told = ", ".join(f"{name} is {value}" for name, value in wrong.items())
        return NonFiniteLoss(
            f"{told} at step {position.step + 1} (epoch {position.epoch + 1}), clips: {clips}. {kept}; a smaller "
            "optim.lr, optim.clip_grad_norm=1 or precision=fp32 may help"
        )

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The next batch; saves and stops where a signal came to one of the ranks."""
        batch, turn = self.ranks.turn(batches, self.interruption.arrived)
        if turn.signal:
            self._save()
            raise self._interrupted(turn.signal)
        assert batch is not None  # all ranks have as many
        return batch

    def _evaluate_epoch(self, numbers: dict[str, float]) -> Evaluation:
        began = time.perf_counter()
        split = self.watched_split
        evaluation = self._evaluate(self.watched)
        numbers |= {
            f"top1/{split}": evaluation.top1,
            f"top5/{split}": evaluation.top5,
            f"mean_class_accuracy/{split}": evaluation.mean_class_accuracy,
            "epoch_seconds/evaluation": time.perf_counter() - began,
        }
        self.writer.wait()
        self.ranks.on_main(lambda: self._keep_best(f"top1/{split}", evaluation.top1))
        return evaluation

    def _keep_best(self, name: str, top1: float) -> None:
        former = [line[name] for line in self.run.history() if name in line]
        if top1 > max(former, default=-1.0):
            copy_checkpoint(self.run.last, self.run.best)

    def _evaluate(self, batches: EvaluationBatches) -> Evaluation:
        self.state.share_buffers()
        try:
            with self.state.evaluated():
                return evaluate(
                    self.state.model,
                    batches,
                    device=self.device,
                    precision=self.config.precision,
                    groups=batches.groups,
                    should_stop=self.interruption.arrived,
                    ranks=self.ranks,
                    objective=answering(self.state.objective),
                )
        except EvaluationStopped as stopped:  # the epoch was saved before: resuming evaluates it again
            raise self._interrupted(stopped.signal_number) from None

    def _save(self) -> None:
        self.state.position.seconds = time.perf_counter() - self._began
        self.state.save(self.writer)

    def _interrupted(self, number: int) -> Interrupted:
        self.writer.wait()
        position = self.state.position
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
