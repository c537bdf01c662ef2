"""``art probe``: heads on stored features, with settings selected on held-out training clips and one test evaluation.

All heads, learning rates and seeds are trained together, in the same batches: the features are read once per epoch. The
protocol has two rounds. In the first, heads are trained on a part of the training clips, and the learning rate and the
number of epochs with the best accuracy on the remaining clips are selected for each head. In the second, heads with
the selected settings are trained on all training clips and evaluated once on the test split.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from art.data.features import CONFIG, FeatureError, FeatureSplit, JoinedFeatures, read_manifest
from art.data.files import check_writable, write_text
from art.eval.metrics import Evaluation, compute_metrics
from art.experiments.probe_report import best_head, write_report
from art.experiments.probe_training import (
    KNN,
    Candidate,
    ProbeSettings,
    Selection,
    fit,
    head_arguments,
    holdout_mask,
    make_candidate,
    predict,
    select,
)
from art.heads import Head, ProbeClassifier
from art.model.files import state_sha256
from art.model.loading import build_model
from art.train.checkpoint import RunDir
from art.train.config import Config, load_saved_config, save_config, with_values
from art.train.runtime import fork_rng, provenance, resolve_device
from art_kernels.flops import flop_formulas

_NEIGHBORS = (1, 5, 10, 20, 50)
_BOOTSTRAP = 2000


def run_probe(directory: Path, out: Path, settings: ProbeSettings) -> str:
    """Run ``art probe`` and return its table; writes ``probe.json``, ``probe.md``, ``report.html``, and a run directory
    for each head.

    Args:
        directory: of the features, with splits "train" and "test" or those named so by the extraction.
        out: output directory.
        settings: how heads are trained.
    """
    check_writable(out, "out")
    read_manifest(directory)
    config = load_saved_config(directory / CONFIG)
    names = config.data.train_split, config.data.test_split
    train, test = (FeatureSplit(directory, name, layers=settings.layers) for name in names)
    model = None if settings.save == "none" else frozen_model(config, train.manifest)
    result, heads = probe(train, test, settings)
    if model is not None:
        for name in heads if settings.save == "all" or not heads else [best_head(result)]:
            save_run(model, heads[name], name, settings, train.manifest, config, out / name)
    table = to_markdown(result)
    write_text(out / "probe.md", table)
    write_text(out / "probe.json", json.dumps({**result, "provenance": provenance()}, indent=1) + "\n")
    write_report(out / "report.html", result, heads, test)
    return table


def frozen_model(config: Config, manifest: Mapping[str, Any]) -> ProbeClassifier:
    """Build a model with the backbone of the features, and any head.

    Raises:
        FeatureError: If the weights of the backbone are not those that the features were computed with.
    """
    with fork_rng():
        torch.manual_seed(config.seed)  # of a backbone without pretrained weights
        model = build_model("probe", manifest["class_names"], replace(config.model, head="mean", head_options={}))
    if state_sha256(model.backbone) != manifest["backbone"]["sha256"]:
        raise FeatureError(
            f"model.pretrained: the weights of {config.model.pretrained or 'the backbone'} are not those that the "
            "features were extracted with, so the heads cannot be saved; restore the file, extract again, or pass "
            "save=none"
        )
    assert isinstance(model, ProbeClassifier)
    model.sampling = config.data.frame_sampling
    return model


def save_run(
    model: ProbeClassifier,
    head: Head,
    name: str,
    settings: ProbeSettings,
    manifest: Mapping[str, Any],
    config: Config,
    directory: Path,
) -> None:
    """Save a head with its backbone as a run directory, which ``art predict``, ``evaluate``, ``explain``, ... accept.

    Args:
        model: output of :func:`frozen_model`; its head is replaced.
        head: the trained head.
        name: of the head in tables.
        settings: of the training.
        manifest: of the features.
        config: of the extraction.
        directory: of the run.
    """
    registered, options = head_arguments(name, manifest, settings)
    values = {
        "kind": "probe", "output": str(directory), "model.head": registered, "model.head_options": options,
        "model.head_layers": list(settings.layers),
    }  # fmt: skip
    own = with_values(config, values, "art probe")
    model.head, model.options = head.cpu().eval(), own.model
    run = RunDir(directory)
    model.save_pretrained(run.last)
    save_config(own, run.config)


@dataclass(frozen=True)
class TrainedHeads:
    """Result of :func:`train_heads`.

    Attributes:
        candidates: heads of the first round: all learning rates and seeds.
        selected: the settings that were selected for each head.
        final: heads with those settings, one for each seed.
        held_out: ``[n]``, the clips on which they were selected.
    """

    candidates: list[Candidate]
    selected: dict[str, Selection]
    final: list[Candidate]
    held_out: Bool[Tensor, " n"]


def train_heads(
    split: FeatureSplit | JoinedFeatures, settings: ProbeSettings, subset: Bool[Tensor, " n"], device: torch.device
) -> TrainedHeads:
    """Run both rounds of training on the clips of ``subset``: select settings on held-out clips, and train on all."""
    names, manifest = [name for name in settings.heads if name != KNN], split.manifest
    held_out = torch.zeros_like(subset)
    numbers = subset.nonzero()[:, 0]
    groups = [split.groups[number] for number in numbers.tolist()]
    held_out[numbers] = holdout_mask(split.labels[numbers], groups, settings.holdout, settings.seed)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    first = [
        make_candidate(name, manifest, settings, lr, seed, settings.epochs, device)
        for name in names for lr in settings.lrs for seed in seeds
    ]  # fmt: skip
    fit(first, split, settings, subset & ~held_out, device, validation=held_out)
    selected = {name: select([each for each in first if each.name == name]) for name in names}
    final = [
        make_candidate(name, manifest, settings, selection.lr, seed, selection.epochs, device)
        for name, selection in selected.items() for seed in seeds
    ]  # fmt: skip
    fit(final, split, settings, subset, device)
    return TrainedHeads(first, selected, final, held_out)


def probe(train: FeatureSplit, test: FeatureSplit, settings: ProbeSettings) -> tuple[dict[str, Any], dict[str, Head]]:
    """Train and evaluate all heads; see the top of this module.

    Returns:
        The results: "heads", by name, the selected settings and the results of each seed; "candidates", accuracy of
        every candidate of the first round; "chance"; "clips"; "settings". And the trained heads of the first seed.

    Raises:
        ValueError: a head or option is unknown, or the clips cannot be divided; raised before any training.
    """
    device = resolve_device(settings.device)
    trained = train_heads(train, settings, torch.ones(len(train.labels), dtype=torch.bool), device)
    best_on_test = _best_by_name(trained.candidates, test, settings, device)
    heads = {
        name: {
            "lr": selection.lr,
            "epochs": selection.epochs,
            "holdout_accuracy": selection.accuracy,
            "best_on_test": best_on_test[name],
            **evaluate_seeds([each for each in trained.final if each.name == name], test, settings, device),
        }
        for name, selection in trained.selected.items()
    }
    if KNN in settings.heads:
        heads[KNN] = nearest_neighbors(train, test, trained.held_out, settings)
    candidates = [
        {"head": each.name, "lr": each.lr, "seed": each.seed, "holdout_accuracy": each.accuracy}
        for each in trained.candidates
    ]
    result = {
        "heads": {name: heads[name] for name in settings.heads},
        "candidates": candidates,
        "chance": float(torch.bincount(test.labels).max() / len(test.labels)),
        "clips": {"train": len(train), "holdout": int(trained.held_out.sum()), "test": len(test)},
        "settings": asdict(settings),
    }
    return result, {each.name: each.head for each in trained.final if each.seed == settings.seed}


def _best_by_name(
    candidates: Sequence[Candidate], test: FeatureSplit, settings: ProbeSettings, device: torch.device
) -> dict[str, float]:
    """Return the best test accuracy over all settings and seeds after the last epoch, as many papers report it."""
    best: dict[str, float] = {}
    for each, (logits, labels) in zip(candidates, predict(candidates, test, settings, device), strict=True):
        best[each.name] = max(best.get(each.name, 0.0), float((logits.argmax(1) == labels).float().mean()))
    return best


def evaluate_seeds(
    candidates: Sequence[Candidate], test: FeatureSplit, settings: ProbeSettings, device: torch.device
) -> dict[str, Any]:
    """Return accuracy of each seed with confidence intervals, accuracy on reversed clips, and costs."""
    names, groups = test.manifest["class_names"], test.manifest["groups"]
    forward = predict(candidates, test, settings, device)
    backward = predict(candidates, test, settings, device, reverse=True)
    evaluations = [_evaluation(logits, labels, names, groups) for logits, labels in forward]
    correct = np.stack([np.asarray(logits.argmax(1) == labels) for logits, labels in forward])
    return {
        "top1": [each.top1 for each in evaluations],
        "mean_class_accuracy": [each.mean_class_accuracy for each in evaluations],
        "reversed_top1": [float((logits.argmax(1) == labels).float().mean()) for logits, labels in backward],
        "interval_over_seeds": seed_interval([each.top1 for each in evaluations]),
        "interval_over_clips": clip_interval(correct.mean(0)),
        "seconds": mean(each.seconds for each in candidates),
        **costs(candidates[0], test),
    }


def _evaluation(
    logits: Float[Tensor, "n y"], labels: Int64[Tensor, " n"], names: Sequence[str], groups: Sequence[str]
) -> Evaluation:
    return compute_metrics(logits.softmax(1).numpy(), labels.numpy(), np.arange(len(labels)), names, groups=groups)


#: 97.5 % quantiles of Student's t distribution for 1 to 9 degrees of freedom; above, the normal distribution's is used.
_T = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def seed_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return a 95 % confidence interval of the mean over seeds (Student's t); None for a single seed."""
    if len(values) < 2:
        return None
    t = _T[len(values) - 2] if len(values) <= len(_T) + 1 else 1.96
    half = t * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def clip_interval(correct: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Return a 95 % bootstrap interval of the accuracy over test clips; ``correct`` is the mean over seeds of each."""
    draws = np.random.default_rng(0).integers(len(correct), size=(_BOOTSTRAP, len(correct)))
    low, high = np.quantile(correct[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)


def costs(candidate: Candidate, split: FeatureSplit) -> dict[str, float]:
    """Return trainable parameters, floating-point operations of a forward pass, and MiB read, per clip."""
    batch = next(iter(split.batches(1)))
    device = next(candidate.head.parameters()).device
    tokens, class_token, _ = batch.features
    # Without no_grad(), in which the counter fails if a module has an input that is a view of a parameter.
    with FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter:
        candidate.head.eval()(batch.features._replace(tokens=tokens.to(device), class_token=class_token.to(device)))
    return {
        "parameters": sum(parameter.numel() for parameter in candidate.head.parameters() if parameter.requires_grad),
        "flops": counter.get_total_flops(),
        "mib_per_clip": split.num_bytes / max(1, len(split)) / 2**20,
    }


def nearest_neighbors(
    train: FeatureSplit, test: FeatureSplit, held_out: Bool[Tensor, " n"], settings: ProbeSettings
) -> dict[str, Any]:
    """Classify the mean of the tokens by a vote of the nearest training clips, weighted by cosine similarity.

    The number of neighbors is selected on the held-out clips.
    """
    vectors, labels, clips = _mean_tokens(train, settings.batch_size)
    fitted = ~held_out[clips]
    accuracy = {
        k: _vote(vectors[fitted], labels[fitted], vectors[~fitted], labels[~fitted], k)
        for k in _NEIGHBORS if k <= int(fitted.sum())
    }  # fmt: skip
    k = max(accuracy, key=lambda each: accuracy[each].mean())
    found, expected, _ = _mean_tokens(test, settings.batch_size)
    correct = _vote(vectors, labels, found, expected, k)
    return {
        "neighbors": k, "holdout_accuracy": float(accuracy[k].mean()), "top1": [float(correct.mean())],
        "interval_over_clips": clip_interval(correct), "parameters": 0,
    }  # fmt: skip


def _mean_tokens(split: FeatureSplit, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    batches = [(b.features.tokens.mean((1, 2)), b.labels, b.clips) for b in split.batches(batch_size)]
    vectors, labels, clips = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return F.normalize(vectors, dim=1), labels, clips


def _vote(vectors: Tensor, labels: Tensor, queries: Tensor, expected: Tensor, k: int) -> Float[np.ndarray, " n"]:
    """Return 1 for every query whose class is correct, else 0."""
    similarity, nearest = (queries @ vectors.mT).topk(k, dim=1)
    votes = torch.zeros(len(queries), int(labels.max()) + 1).scatter_add_(1, labels[nearest], (similarity / 0.07).exp())
    return (votes.argmax(1) == expected).double().numpy()


def to_markdown(result: Mapping[str, Any]) -> str:
    """Format the result of :func:`probe` as a table."""
    lines = [
        "| head | top-1 | 95 % over seeds | 95 % over clips | mean class | reversed clips | lr | epochs | parameters | "
        "MFLOP / clip | s | best on test |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in result["heads"].items():
        cells = [
            name, _percent(mean(row["top1"])), _interval(row.get("interval_over_seeds")),
            _interval(row["interval_over_clips"]), _mean_percent(row, "mean_class_accuracy"),
            _mean_percent(row, "reversed_top1"), f"{row['lr']:g}" if "lr" in row else f"k = {row['neighbors']}",
            str(row.get("epochs", "-")), f"{row['parameters']:,}",
            f"{row['flops'] / 1e6:.1f}" if "flops" in row else "-",
            f"{row['seconds']:.1f}" if "seconds" in row else "-",
            _percent(row["best_on_test"]) if "best_on_test" in row else "-",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    clips = result["clips"]
    lines += [
        "",
        f"{clips['train']} training clips, {clips['holdout']} of them held out to select learning rate and epochs; "
        f'{clips["test"]} test clips; largest class {_percent(result["chance"])}. "best on test" is the best of all '
        "learning rates and seeds on the test split, as many papers report it; it is optimistic.",
    ]
    return "\n".join(lines) + "\n"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _mean_percent(row: Mapping[str, Any], key: str) -> str:
    return _percent(mean(row[key])) if key in row else "-"


def _interval(pair: Sequence[float] | None) -> str:
    return "-" if pair is None else f"{100 * pair[0]:.1f} to {100 * pair[1]:.1f}"
