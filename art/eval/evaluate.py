"""Evaluation of a model on a set of clips: the loop over batches, and ``art evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from art.data.files import read_json_mapping
from art.eval.metrics import Evaluation, average_views, compute_metrics
from art.eval.predictions import Predictions, write_evaluation
from art.eval.region_use import measure_region_use
from art.eval.report.localization import localize
from art.eval.report.report import report_run
from art.model import find_checkpoint
from art.model.loading import load_model
from art.model.pretrained import VideoClassifier
from art.train.batches import Batch, EvaluationBatches, open_split
from art.train.checkpoint import RunDir
from art.train.config import ConfigError, DataConfig, load_config, load_saved_config
from art.train.distributed import DistContext
from art.train.parallel import ModelWithLoss, reshard_modules
from art.train.runtime import allow_tf32, autocast, fork_rng, resolve_device

#: Result of ``art fit`` in its run directory.
FIT = "fit.json"
#: Keys outside of data.* that do not belong to the checkpoint.
_OVERRIDABLE = ("device", "precision", "tf32", "optim.batch_size")


class EvaluationStopped(Exception):
    """``should_stop`` returned a signal between two batches.

    Attributes:
        signal_number: the signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


def evaluate(
    model: VideoClassifier,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    precision: str = "fp32",
    should_stop: Callable[[], int] = lambda: 0,
    groups: Sequence[str] = (),
    dist_ctx: DistContext | None = None,
    model_with_loss: nn.Module | None = None,
) -> Evaluation:
    """Run the model over all batches in eval mode, without changing its mode or the state of the random generators.

    In distributed runs each rank evaluates its batches, and all return the same result: every clip once, in the order
    of the clip set.

    Args:
        model: model on ``device``.
        batches: clips on ``device``, in any order, without those that could not be read. The probabilities of a clip
            that occurs several times are averaged; all clips must have the same number of views.
        device: device type for autocast.
        precision: "fp32", "bf16" or "fp16"; the softmax is always float32.
        should_stop: called before each batch; returns the received signal, 0 if none.
        groups: the group of each class for per-group accuracy (``ClipSet.groups``).
        dist_ctx: the ranks; None: this process only.
        model_with_loss: output of :func:`art.train.parallel.unwrap_ddp`, which may be sharded; None: ``model`` itself.

    Raises:
        EvaluationStopped: If ``should_stop`` returned a signal on one of the ranks.
        NonFiniteError: If a probability is not finite.
        ValueError: If there are no clips, or their numbers of views differ.
    """
    dist_ctx, model_with_loss = dist_ctx or DistContext(device), model_with_loss or ModelWithLoss(model)
    outputs: list[tuple[Tensor, ...]] = []
    was_training = model_with_loss.training
    model_with_loss.eval()
    try:
        with fork_rng(), torch.no_grad():
            own_batches = iter(batches)
            while True:
                batch, sync = dist_ctx.next_item(own_batches, should_stop)
                if sync.signal:
                    raise EvaluationStopped(sync.signal)
                if not sync.has_item:
                    break
                if batch is None:  # this rank is done, but gathering FSDP shards requires every rank: use a dummy clip
                    video = torch.zeros(1, model.num_frames, 3, model.input_size, model.input_size, device=device)
                else:
                    video = batch.video
                with autocast(device, precision):
                    output, _ = model_with_loss(video)
                if batch is not None:
                    rows = [output["logits"].float().softmax(dim=1), batch.labels, batch.indices]
                    outputs.append(tuple(t.cpu() for t in (*rows, *([output["order"]] if "order" in output else []))))
    finally:
        model_with_loss.train(was_training)
        reshard_modules(model_with_loss)
    if not (outputs := [part for rank_outputs in dist_ctx.gather_objects(outputs) for part in rank_outputs]):
        raise ValueError("batches: got no clip that could be read, expected at least one")
    probabilities, labels, indices, *order = (torch.cat(parts).numpy() for parts in zip(*outputs, strict=True))
    if dist_ctx.is_distributed:
        by_index = indices.argsort(kind="stable")
        probabilities, labels, indices, *order = (array[by_index] for array in (probabilities, labels, indices, *order))
    per_clip = average_views(probabilities, labels, indices)
    return compute_metrics(*per_clip, model.class_names, order[0] if order else None, groups)


def evaluate_checkpoint(
    checkpoint: Path, *, split: str | None = None, overrides: Sequence[str] = (), report: Path | None = None
) -> Evaluation:
    """Evaluate a saved model on a split, as ``art evaluate`` does.

    Args:
        checkpoint: directory of a checkpoint or a run, see :func:`art.model.find_checkpoint`. The configuration
            is that of the run that contains it, or the default one.
        split: None: ``data.test_split``.
        overrides: of ``data.*``, ``device``, ``precision``, ``tf32`` and ``optim.batch_size``; other keys keep their
            values from training.
        report: directory to write ``evaluation.json``, ``predictions.npz`` and ``report.html`` to; None writes nothing.

    Raises:
        ConfigError: If another key is overridden.
        ClassMismatch: If the data and the checkpoint have different classes; raised before the first batch.
        NonFiniteError: If weights or outputs of the model are not finite.
        ValueError: If a file of the checkpoint, or the configuration of its run, is damaged, or the clips of the run
            were all used for training by ``art fit``.

    Examples:
        >>> from pathlib import Path
        >>> from art.eval.evaluate import evaluate_checkpoint
        >>> own = ["data.name=folder", "data.root=data/mine", "data.frame_size=112", "data.workers=0"]
        >>> evaluation = evaluate_checkpoint(Path("runs/motion/checkpoints/last"), overrides=own)
        >>> evaluation.total, evaluation.confusion.shape
        (2, (2, 2))
    """
    for override in overrides:
        key = override.partition("=")[0]
        if not key.startswith("data.") and key not in _OVERRIDABLE:
            raise ConfigError(f"{key}: belongs to the checkpoint; expected data.*, {', '.join(_OVERRIDABLE)}")
    checkpoint = find_checkpoint(checkpoint)
    run = RunDir(checkpoint.parent.parent)
    run_config = run.config if checkpoint.parent.name == "checkpoints" and run.config.is_file() else None
    if run_config and (run.path / FIT).is_file() and not any(o.startswith("data.root=") for o in overrides):
        folds = read_json_mapping(run.path / FIT)["folds"]
        if folds:
            raise ValueError(
                f"{run.path}: all of its clips were used for training; its accuracy, by {folds}-fold cross-validation, "
                f"is in {run.path / FIT}. To evaluate other clips, pass data.root=DIRECTORY"
            )
    model = load_model(checkpoint)
    # The configuration of a run contains the sampling; without it, use that of the checkpoint.
    defaults = [] if run_config else [f"data.sampling={model.sampling.kind}", f"data.stride={model.sampling.stride}"]
    if any(override.startswith("optim.batch_size=") for override in overrides):
        defaults.append("optim.accumulate=1")  # the batch size is the number of clips per forward pass
    overrides = [*defaults, *overrides]
    config = load_config(None, overrides) if run_config is None else load_saved_config(run_config, overrides)
    device = resolve_device(config.device)
    allow_tf32(config.tf32)
    clip_set = open_split(config.data, split or config.data.test_split, run.path if run_config else None)
    model.sampling = config.data.frame_sampling
    model = model.to(device)
    batches = EvaluationBatches(clip_set, config.data, config.optim, model, device)
    evaluation = evaluate(model, batches, device=device, precision=config.precision, groups=clip_set.groups)
    evaluation = replace(evaluation, region_use=measure_region_use(model, clip_set))
    if report is not None:
        localization = localize(model, clip_set)
        limbs = None if localization is None else localization.to_dict()
        views = views_of(config.data)
        details = {"checkpoint": str(checkpoint), "views": views, "localization": limbs}
        write_evaluation(report, Predictions.of(evaluation, clip_set), details)
        report_run(
            report,
            model=model,
            clip_set=clip_set,
            evaluation=evaluation,
            localization=localization,
            facts={"checkpoint": checkpoint, **views},
        )
    return evaluation


def views_of(data: DataConfig) -> dict[str, Any]:
    """Return the sampling and the views of an evaluation, for its files."""
    sampling = f"dense, stride {data.stride}" if data.sampling == "dense" else data.sampling
    return {"sampling": sampling, "views": data.test_views, "crops": data.test_crops}
