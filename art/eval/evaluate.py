"""Evaluation of a model on a set of clips, and the files that hold the answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from art.eval.metrics import Evaluation, averaged_views, measure
from art.eval.predictions import Predictions
from art.eval.reporting import localize, report_run
from art.model.pretrained import CONFIG_FILE, VideoClassifier, load_model
from art.train.batches import Batch, EvaluationBatches, open_split
from art.train.checkpoint import recover
from art.train.config import ConfigError, DataConfig, load_config
from art.train.distributed import Ranks
from art.train.parallel import Objective, put_away
from art.train.randomness import untouched_random_state
from art.train.run_dir import RunFolder
from art.train.runtime import allow_tf32, autocast, provenance, resolve_device


class EvaluationStopped(Exception):
    """``should_stop`` said so between two batches.

    Attributes:
        signal_number: what it said.
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
    ranks: Ranks | None = None,
    objective: nn.Module | None = None,
) -> Evaluation:
    """Runs the model over all batches in eval mode and counts; leaves its mode and the random generators as they were.

    Of several ranks each runs batches of its own, and all get the same result: every clip once, in the set's order.

    Args:
        model: on ``device``.
        batches: clips in any order, on ``device``; a clip that could not be read is not in them. Of a clip that comes
            several times, in as many views as the others, the probabilities are averaged.
        device: for mixed precision.
        precision: "fp32", "bf16" or "fp16"; the softmax is float32 in each.
        should_stop: asked before each batch for the signal that has come, 0 for none.
        groups: for each class the group that it is counted in (``ClipSet.groups``).
        ranks: who evaluates; None: this process alone.
        objective: ``model`` as :func:`.parallel.answering` gives it, which may be sharded; None: ``model`` itself.

    Raises:
        EvaluationStopped: when ``should_stop`` returned a signal, on one of the ranks.
        ValueError: when no clip came, some came in more views than others, or a probability is not finite.
    """
    ranks, objective = ranks or Ranks(device), objective or Objective(model)
    answered: list[tuple[Tensor, ...]] = []
    was_training = objective.training
    objective.eval()
    try:
        with untouched_random_state(), torch.no_grad():
            own_batches = iter(batches)
            while True:
                batch, turn = ranks.turn(own_batches, should_stop)
                if turn.signal:
                    raise EvaluationStopped(turn.signal)
                if not turn.anything:
                    break
                # A rank whose clips are done goes on with an empty picture: shards are put together by all.
                video = _nothing(model, device) if batch is None else batch.video
                with autocast(device, precision):
                    answers, _ = objective(video)
                if batch is not None:
                    own = (answers["logits"].float().softmax(dim=1), batch.labels, batch.indices)
                    answered.append(tuple(t.cpu() for t in (*own, *([answers["order"]] if "order" in answers else []))))
    finally:
        objective.train(was_training)
        put_away(objective)
    if not (answered := [part for of_rank in ranks.gather_objects(answered) for part in of_rank]):
        raise ValueError("batches: got no clip that could be read, expected at least one")
    probabilities, labels, indices, *order = (torch.cat(parts).numpy() for parts in zip(*answered, strict=True))
    if ranks.several:
        place = indices.argsort(kind="stable")
        probabilities, labels, indices, *order = (rows[place] for rows in (probabilities, labels, indices, *order))
    of_clips = averaged_views(probabilities, labels, indices)
    return measure(*of_clips, model.class_names, order[0] if order else None, groups)


def _nothing(model: VideoClassifier, device: torch.device) -> Float[Tensor, "1 t 3 size size"]:
    return torch.zeros(1, model.num_frames, 3, model.input_size, model.input_size, device=device)


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint that a path means: itself, or the last one of a run folder.

    Raises:
        FileNotFoundError: if it is neither.
    """
    for candidate in (folder, RunFolder(folder).last):
        recover(candidate)
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    raise FileNotFoundError(f"checkpoint: no {CONFIG_FILE} in {folder}, expected a checkpoint or the folder of a run")


def evaluate_checkpoint(
    checkpoint: Path, *, split: str | None = None, overrides: Sequence[str] = (), report: Path | None = None
) -> Evaluation:
    """Evaluates a saved model on a split; what ``art evaluate`` does.

    Args:
        checkpoint: see :func:`find_checkpoint`. The configuration is that of the run it lies in, else the defaults.
        split: None takes ``data.test_split``.
        overrides: of ``data.*``, ``device``, ``precision``, ``tf32`` and ``optim.batch_size``; the rest is as it was
            trained.
        report: where to write ``evaluation.json``, ``predictions.npz`` and ``report.html``; None writes nothing.

    Raises:
        ConfigError: for an override of something else.
        ClassMismatch: before the first batch, if the data has other classes than the checkpoint.

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
        if not key.startswith("data.") and key not in ("device", "precision", "tf32", "optim.batch_size"):
            raise ConfigError(f"{key}: is the checkpoint's; expected data.*, device, precision, tf32, optim.batch_size")
    checkpoint = find_checkpoint(checkpoint)
    run = RunFolder(checkpoint.parent.parent)
    of_run = run.config if checkpoint.parent.name == "checkpoints" and run.config.is_file() else None
    model = load_model(checkpoint)
    # A run says how it samples; a checkpoint alone knows it too.
    own = [] if of_run else [f"data.sampling={model.sampling.kind}", f"data.stride={model.sampling.stride}"]
    if any(override.startswith("optim.batch_size=") for override in overrides):
        own.append("optim.accumulate=1")  # nothing is added up here: as many clips at once as were asked for
    config = load_config(of_run, [*own, *overrides])
    device = resolve_device(config.device)
    allow_tf32(config.tf32)
    clip_set = open_split(config, split or config.data.test_split)
    model.sampling = config.data.frame_sampling
    model = model.to(device)
    batches = EvaluationBatches(clip_set, config, model, device)
    evaluation = evaluate(model, batches, device=device, precision=config.precision, groups=clip_set.groups)
    if report is not None:
        localization = localize(model, clip_set)
        limbs = None if localization is None else localization.to_dict()
        details = {"checkpoint": str(checkpoint), "views": views_of(config.data), "localization": limbs}
        write_evaluation(report, Predictions.of(evaluation, clip_set), details)
        report_run(
            report,
            model=model,
            clip_set=clip_set,
            evaluation=evaluation,
            localization=localization,
            facts={"checkpoint": checkpoint, **views_of(config.data)},
        )
    return evaluation


def views_of(data: DataConfig) -> dict[str, Any]:
    """How the clips of an evaluation were looked at, for its files."""
    dense = data.sampling == "dense"
    sampling = f"dense, stride {data.stride}" if dense else data.sampling
    return {"sampling": sampling, "views": data.test_views, "crops": data.test_crops}


def write_evaluation(folder: Path, predictions: Predictions, details: dict[str, Any]) -> None:
    """Writes ``predictions.npz`` and then ``evaluation.json`` (so that the JSON file tells that both are there).

    Args:
        folder: made if need be.
        predictions: what was evaluated, and the answers.
        details: further entries of the JSON file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    predictions.save(folder / "predictions.npz")
    content = {
        "dataset": predictions.dataset,
        "split": predictions.split,
        "unreadable_clips": predictions.listed - predictions.evaluation.total,
        **predictions.evaluation.summary(),
        **details,
        "provenance": provenance(),
    }
    write_json(folder / "evaluation.json", content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file that is either whole or absent."""
    incoming = path.with_name(f".{path.name}.incoming")
    incoming.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    incoming.replace(path)
