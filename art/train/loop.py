"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from art.eval.evaluate import EvaluationStopped, evaluate, views_of
from art.eval.metrics import Evaluation, bank_similarities, quantiles
from art.eval.predictions import Predictions, write_evaluation
from art.eval.region_use import measure_region_use
from art.eval.report.localization import localize
from art.eval.report.report import report_run
from art.model.art_model import ARTModel
from art.model.files import NonFiniteError
from art.model.loading import load_model
from art.terminal import Progress, ProgressLines, list_names
from art.train.batches import Batch, EvaluationBatches, MicrobatchMetrics, Splits, TrainingBatches
from art.train.checkpoint import CheckpointWriter, DamagedCheckpoint, Resume, RunDir, copy_checkpoint
from art.train.config import Config, to_dict
from art.train.data_record import record_data
from art.train.distributed import DistContext, init_distributed
from art.train.lock import DirectoryInUse, DirectoryLock
from art.train.logging import NullLogger, RunLogger, ThroughputMeter, check_loggers, format_epoch, open_loggers
from art.train.optim import GradientClipper, learning_rate_factor, set_learning_rates
from art.train.parallel import no_sync, unwrap_ddp
from art.train.runtime import (
    DeferSignals,
    Interrupted,
    StepProfiler,
    allow_tf32,
    autocast,
    peak_device_memory_bytes,
    peak_memory_bytes,
    resolve_device,
    seed_everything,
)
from art.train.state import TrainingState

_log = logging.getLogger(__name__)
_MAX_CLIPS = 20  # in a message


class NonFiniteLoss(ArithmeticError):
    """A loss term, a gradient norm, a weight or an output is NaN or infinite. The message names it and the step."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a completed training run.

    Attributes:
        output: the run directory.
        evaluation: evaluation of the last checkpoint on the test split.
        measured: "epochs", "steps", "parameters", "seconds" (wall time, earlier sessions included), "step_seconds" and
            "data_seconds" (medians over logged steps of the compute time and the time waiting for data),
            "peak_memory_bytes" and "peak_device_memory_bytes" (of this process; None except on CUDA). Empty on ranks
            other than 0.
    """

    output: Path
    evaluation: Evaluation
    measured: dict[str, Any]


def train(
    config: Config, *, resume: Resume = False, overwrite: bool = False, allow_changed_data: bool = False
) -> TrainResult:
    """Train, evaluate, and write the run directory. With torchrun, every rank calls it, and rank 0 writes.

    The reported evaluation is that of the *last* checkpoint. ``checkpoints/best`` is selected on the validation split;
    without one it is selected on the test split, and its test accuracy is biased.

    Args:
        config: configuration of the run.
        resume: continue the run in ``config.output`` from its last checkpoint (from the start if there is none; from an
            earlier one if it is damaged). On the CPU, with the same number of threads, losses are bitwise equal to
            those of an uninterrupted run. "auto" resumes if a run was started there, else starts one.
        overwrite: replace the run in ``config.output``.
        allow_changed_data: resume even if the clips are not those that the run was started with.

    Raises:
        RunExists, FileNotFoundError, ConfigError: see :meth:`art.train.checkpoint.RunDir.check`.
        DirectoryInUse: another training run writes to ``config.output``.
        CheckpointError: every checkpoint of the run to resume is damaged.
        DataChanged: the clips of the run to resume have changed.
        Interrupted: SIGINT or SIGTERM on any rank; raised after the current step, with the state saved.
        OtherRankError: another rank failed.
        NonFiniteLoss: training diverged. Losses are checked in every step, before the optimizer step, and weights and
            optimizer states before every save, so that ``checkpoints/last`` is never overwritten with such values.

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
    run = RunDir(config.output)
    with DirectoryLock(run.path) as lock:
        return _train(config, run, lock, resume, overwrite, allow_changed_data)


def _train(
    config: Config, run: RunDir, lock: DirectoryLock, resume: Resume, overwrite: bool, allow_changed_data: bool
) -> TrainResult:
    def check() -> bool:
        if run.path.is_dir():
            lock.acquire()
        return run.check(config, resume=resume, overwrite=overwrite)

    def begin() -> None:
        run.path.mkdir(parents=True, exist_ok=True)
        if check() != resuming:
            raise DirectoryInUse(f"{run.path}: another process has started a run here in the meantime")
        if trainer.adopted is not None:
            run.adopt(*trainer.adopted)
        record = trainer.record or record_data(trainer.splits.all())
        run.begin(config, trainer.splits.train.class_names, resume=resuming, record=record)
        trainer.splits.save(run.path)

    with init_distributed(config.device, config.parallel.timeout) as dist_ctx:
        resuming = dist_ctx.run_on_rank0(check)
        trainer = _Trainer.create(config, run, dist_ctx, resume=resuming, allow_changed_data=allow_changed_data)
        dist_ctx.run_on_rank0(begin)
        with dist_ctx.sync_errors():
            run.check_visible()
        position = trainer.state.position
        log: RunLogger | NullLogger = NullLogger()
        with dist_ctx.sync_errors():
            if dist_ctx.is_main:
                loggers = open_loggers(config.log, run, to_dict(config), step=position.step)
                log = RunLogger(run, epochs=position.epoch, step=position.step, loggers=loggers)
        with DeferSignals() as signals, log, trainer.writer, closing(trainer.profiler):
            evaluation = trainer.run_epochs(log, signals)
    if not dist_ctx.is_main:
        return TrainResult(run.path, evaluation, {})
    measured = trainer.measured()
    return TrainResult(run.path, _write_results(trainer, evaluation, measured), measured)


def check_trainable(config: Config) -> None:
    """Open the data and build or resume the model as :func:`train` does, without writing anything.

    Raises:
        Exception: any error that :func:`train` would raise before its first step.
    """
    run = RunDir(config.output)
    resume = run.check(config, resume="auto", overwrite=False)
    _Trainer.create(config, run, DistContext(resolve_device(config.device)), resume=resume)


def _write_results(trainer: _Trainer, evaluation: Evaluation, measured: dict[str, Any]) -> Evaluation:
    """Write predictions, metrics and report of the last checkpoint on the test split; return them with region use."""
    config, run, test = trainer.config, trainer.run, trainer.splits.test
    model = trainer.state.model
    is_sharded = trainer.dist_ctx.is_distributed and config.parallel.strategy == "fsdp"
    if is_sharded or trainer.state.ema is not None:  # this model is not the one that was evaluated
        model = load_model(run.last).to(trainer.device)
    evaluation = replace(evaluation, region_use=measure_region_use(model, test))
    localization, views = localize(model, test), views_of(config.data)
    details = {
        "checkpoint": "checkpoints/last",
        "views": views,
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
            facts={"seed": config.seed, **{n: measured[n] for n in ("epochs", "seconds", "step_seconds")}, **views},
        )
    return evaluation


class _Trainer:
    """The components of a run, the loop over epochs, and the loop over batches."""

    #: The checkpoint that was loaded, and newer ones that are damaged; None: a new run.
    adopted: tuple[Path, dict[Path, DamagedCheckpoint]] | None = None
    #: Record of the clips; None on ranks other than 0.
    record: dict[str, Any] | None = None

    @classmethod
    def create(
        cls, config: Config, run: RunDir, dist_ctx: DistContext, *, resume: bool, allow_changed_data: bool = False
    ) -> _Trainer:
        """Open the data, seed the global generators, and build the model or load the state of ``run``."""
        allow_tf32(config.tf32)
        with dist_ctx.sync_errors():
            check_loggers(config.log)
            splits = Splits.open(config.data, run.path if resume else None)
            for problem in splits.problems() if dist_ctx.is_main else ():
                _log.warning("data: %s", problem)
            class_names = splits.train.class_names
            record = record_data(splits.all()) if resume and dist_ctx.is_main else None
            if record is not None:
                run.check_data(record, allow_changes=allow_changed_data)
        seed_everything(config.seed)
        checkpoint, damaged = dist_ctx.run_on_rank0(run.find_checkpoint) if resume else (None, {})
        if checkpoint is not None:
            state = TrainingState.resume(checkpoint, config, class_names, dist_ctx)
        else:
            state = TrainingState.create(config, class_names, dist_ctx, splits.train.prompts)
        with dist_ctx.sync_errors():
            trainer = cls(config, run, splits, state)
        trainer.record = record
        trainer.adopted = None if checkpoint is None else (checkpoint, damaged)
        return trainer

    def __init__(self, config: Config, run: RunDir, splits: Splits, state: TrainingState) -> None:
        self.config, self.run, self.splits, self.state = config, run, splits, state
        dist_ctx = self.dist_ctx = state.dist_ctx
        device = self.device = dist_ctx.device
        saving = config.checkpoints
        self.writer = CheckpointWriter(run.last, dist_ctx, keep=saving.keep, asynchronous=saving.asynchronous)
        self.clipper = GradientClipper(state.model.parameter_groups(), config.optim.clip_grad_norm)
        self.meter = ThroughputMeter(device)
        rank = dist_ctx.rank if dist_ctx.is_distributed else None
        self.profiler = StepProfiler(run.trace, config.log.profile, device, rank)
        args = config.data, config.optim, state.model, device  # missing files are found below, before any are written
        self.batches = TrainingBatches(splits.train, *args, seed=config.seed, dist_ctx=dist_ctx)
        self.test = EvaluationBatches(splits.test, *args, dist_ctx=dist_ctx)
        validation = splits.validation or splits.test
        self.validation_split, self.validation = validation.split, self.test
        if validation is not splits.test or self.test.views > 1:
            self.validation = EvaluationBatches(validation, *args, single_view=True, dist_ctx=dist_ctx)
        self._rates: dict[str, float] = {}  # of the last step, like the losses
        self._losses: dict[str, float] = {}

    def run_epochs(self, log: RunLogger | NullLogger, signals: DeferSignals) -> Evaluation:
        """Run the remaining epochs and return the evaluation of the last checkpoint on the test split."""
        self.log, self.signals = log, signals
        self._start_time = time.perf_counter() - self.state.position.seconds
        position, epochs, lines = self.state.position, self.config.optim.epochs, ProgressLines()
        evaluation: Evaluation | None = None
        while position.epoch < epochs:
            self._train_epoch()
            self._save()
            metrics = {
                "mean_loss/total": position.loss_sum / max(1, position.clips),
                "top1/train": position.correct / max(1, position.clips),
                "epoch_seconds/train": position.epoch_seconds,
            }
            if (position.epoch + 1) % self.config.eval_every == 0 or position.epoch + 1 == epochs:
                evaluation = self._evaluate_epoch(metrics)
            self.log.write("epoch", position.epoch + 1, position.step, metrics)
            if self.dist_ctx.is_main:
                line = f"epoch {position.epoch + 1}/{epochs}  {format_epoch(metrics)}"
                lines.print(line, always=position.epoch + 1 == epochs)
            position.next_epoch()
        self.writer.wait()
        if evaluation is None or self.validation is not self.test:
            evaluation = self._evaluate(self.test)
        position.seconds = time.perf_counter() - self._start_time
        return evaluation

    def measured(self) -> dict[str, Any]:
        """Return :attr:`TrainResult.measured`."""
        position, model = self.state.position, self.state.model
        steps = [line for line in self.run.history() if line["event"] == "step"]
        return {
            "epochs": position.epoch,
            "steps": position.step,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds": position.seconds,
            "step_seconds": median(line["seconds/step"] for line in steps) if steps else None,
            "data_seconds": median(line["seconds/data"] for line in steps) if steps else None,
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_device_memory_bytes": peak_device_memory_bytes(self.device),
        }

    def _train_epoch(self) -> None:
        position, epochs = self.state.position, self.config.optim.epochs
        self.state.model.train()
        batches = self.batches.epoch(position.epoch, start=min(position.batch, len(self.batches)))
        self.state.restore_rng()  # not earlier: building the loader may advance the global generators
        title = f"epoch {position.epoch + 1}/{epochs}"
        main, done = self.dist_ctx.is_main, position.batch
        with Progress(title, len(self.batches), "step", initial=done, show=main, leave=False) as bar:
            while position.batch < len(self.batches):
                self.profiler.begin_step(position.step + 1)
                start = time.perf_counter()
                batch = self._next_batch(batches)
                loaded = time.perf_counter()
                metrics, clips = self._step(batch)
                end = time.perf_counter()
                position.epoch_seconds += end - start
                self.meter.update(clips, data_seconds=loaded - start, compute_seconds=end - loaded)
                self.profiler.end_step(position.step)
                if self._is_logged(position.step):
                    metrics |= self.meter.compute()
                    self.log.write("step", position.epoch + 1, position.step, metrics)
                bar.update(loss=f"{metrics['loss/total']:.3f}")
                every = self.config.checkpoints.every_steps
                if every is not None and position.step % every == 0 and position.batch < len(self.batches):
                    self._save()

    def _step(self, batch: Batch) -> tuple[dict[str, float], int]:
        """Run one optimizer step. Returns its metrics by name and the number of clips over all ranks."""
        optim, state, position = self.config.optim, self.state, self.state.position
        rates = set_learning_rates(state.optimizers, learning_rate_factor(optim, position.step, len(self.batches)))
        collected, microbatches = MicrobatchMetrics(), batch.split(self.batches.microbatch_size)
        for number, microbatch in enumerate(microbatches, start=1):
            with no_sync(state.model_with_loss) if number < len(microbatches) else nullcontext():
                microbatch = self.batches.prepare(microbatch)
                with autocast(self.device, self.config.precision):
                    outputs, terms = state.model_with_loss(microbatch.video, microbatch.targets)
                # Loss terms are means over clips: weight each microbatch by its fraction of the batch.
                state.scaler.scale(terms["total"] * (len(microbatch.labels) / len(batch.labels))).backward()
            collected.add(terms, outputs, microbatch)
        reduced = collected.reduce(self.dist_ctx)
        self._rates, self._losses = rates, reduced.losses
        if non_finite := _non_finite(reduced.losses):
            raise self._diverged(f"{non_finite} at", position.step + 1, reduced.non_finite_clips)
        for optimizer in state.optimizers:
            state.scaler.unscale_(optimizer)
        measure = self.config.log.gradient_norms and self._is_logged(position.step + 1)
        norms = self.clipper.clip(measure=measure)
        if not state.scaler.is_enabled() and (non_finite := _non_finite(norms)):  # the scaler skips such steps
            raise self._diverged(f"{non_finite} at", position.step + 1)
        extra = norms | self._log_similarities(position.step + 1, collected)
        for optimizer in state.optimizers:
            state.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        state.scaler.update()
        state.after_optimizer_step()
        position.step += 1
        position.batch += 1
        position.clips += reduced.clips
        position.correct += reduced.correct
        position.loss_sum += reduced.losses["loss/total"] * reduced.clips
        return {**reduced.losses, **{f"lr/{name}": rate for name, rate in rates.items()}, **extra}, reduced.clips

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every == 0 or self._has_histograms(step)

    def _has_histograms(self, step: int) -> bool:
        every = self.config.log.histograms_every
        return every is not None and step % every == 0 and isinstance(self.state.model, ARTModel)

    def _log_similarities(self, step: int, collected: MicrobatchMetrics) -> dict[str, float]:
        """Log histograms of the similarities of rank 0's clips if due, and return their percentiles."""
        if not self._has_histograms(step):
            return {}
        assert isinstance(self.state.model, ARTModel)
        histograms = bank_similarities(self.state.model.semantics, collected.video_latent, collected.labels)
        self.log.histograms(step, histograms)
        return quantiles(histograms)

    def _diverged(self, problem: str, step: int, indices: Sequence[int] = ()) -> NonFiniteLoss:
        """Return the same error on all ranks; ``indices`` are this rank's clips with a non-finite loss term."""
        position, rate = self.state.position, max(self._rates.values(), default=0.0)
        all_indices = [i for own in self.dist_ctx.gather_objects(list(indices)) for i in own]
        clips = list_names([str(self.splits.train.clips[i]) for i in all_indices], _MAX_CLIPS)
        self.writer.wait()
        saved = self.dist_ctx.run_on_rank0(self.run.has_checkpoint)
        kept = f"{self.run.last} has the last valid state" if saved else "nothing has been saved yet"
        precision = ", precision=fp32" if self.config.precision != "fp32" else ""
        terms = "" if _non_finite(self._losses) else f", loss/total {self._losses.get('loss/total', math.nan):.4g}"
        return NonFiniteLoss(
            f"{problem} step {step} (epoch {position.epoch + 1}), learning rate {rate:g}, "
            f"optim.lr={self.config.optim.lr:g}{terms}{f', clips: {clips}' if clips else ''}. {kept}; a smaller "
            f"optim.lr, optim.warmup_epochs{precision} or optim.clip_grad_norm=1 may help, in a new run"
        )

    def _next_batch(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch; save and raise if any rank received a signal."""
        batch, sync = self.dist_ctx.next_item(batches, self.signals.received)
        if sync.signal:
            self._save()
            raise self._interrupted(sync.signal)
        assert batch is not None  # all ranks have the same number of batches
        return batch

    def _evaluate_epoch(self, metrics: dict[str, float]) -> Evaluation:
        start = time.perf_counter()
        split = self.validation_split
        evaluation = self._evaluate(self.validation)
        metrics |= {
            f"top1/{split}": evaluation.top1,
            f"top5/{split}": evaluation.top5,
            f"mean_class_accuracy/{split}": evaluation.mean_class_accuracy,
            "epoch_seconds/evaluation": time.perf_counter() - start,
        }
        self.writer.wait()
        self.dist_ctx.run_on_rank0(lambda: self._keep_best(f"top1/{split}", evaluation.top1))
        return evaluation

    def _keep_best(self, name: str, top1: float) -> None:
        earlier = [line[name] for line in self.run.history() if name in line]
        if top1 > max(earlier, default=-1.0):
            copy_checkpoint(self.run.last, self.run.best)

    def _evaluate(self, batches: EvaluationBatches) -> Evaluation:
        self.state.broadcast_buffers()
        try:
            with self.state.eval_weights():
                return evaluate(
                    self.state.model,
                    batches,
                    device=self.device,
                    precision=self.config.precision,
                    groups=batches.groups,
                    should_stop=self.signals.received,
                    dist_ctx=self.dist_ctx,
                    model_with_loss=unwrap_ddp(self.state.model_with_loss),
                )
        except NonFiniteError as error:  # the same on all ranks
            raise self._diverged(f"evaluation: {error}, after", self.state.position.step) from error
        except EvaluationStopped as stopped:  # the epoch has been saved; a resumed run evaluates it again
            raise self._interrupted(stopped.signal_number) from None

    def _save(self) -> None:
        if names := self.state.non_finite():
            step = self.state.position.step
            raise self._diverged(f"the weights or optimizer states ({list_names(names)}) are not finite after", step)
        self.state.position.seconds = time.perf_counter() - self._start_time
        self.state.save(self.writer)

    def _interrupted(self, number: int) -> Interrupted:
        self.writer.wait()
        position = self.state.position
        return Interrupted(
            number,
            f"stopped by signal {number} after step {position.step}, {position.batch} of {len(self.batches)} batches "
            f"into epoch {position.epoch + 1}; saved to {self.run.last}, continue with --resume",
        )


def _non_finite(values: Mapping[str, float]) -> str:
    """Return the values that are NaN or infinite as text, empty if there are none."""
    return ", ".join(f"{name} is {value}" for name, value in values.items() if not math.isfinite(value))
