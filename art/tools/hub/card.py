"""The card of a model: what it is, what it was measured to do, how to use it. Nothing in it is not in the files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from art.extras import import_extra
from art.model.options import ARTOptions
from art.model.pretrained import VideoClassifier

CARD_FILE = "README.md"
PAPER = "https://arxiv.org/abs/2511.21202"
_MEASURES = (("top1", "top-1"), ("top5", "top-5"), ("mean_class_accuracy", "mean class accuracy"))


def model_card(
    model: VideoClassifier,
    repository: str,
    evaluation: Mapping[str, Any] | None = None,
    *,
    license: str | None = None,
) -> str:
    """Markdown with the Hub's metadata in front.

    Args:
        model: what is described.
        repository: "user/name".
        evaluation: what ``evaluation.json`` holds; None: the card says that nothing was measured.
        license: of the weights, by the Hub's names; None says nothing.

    Raises:
        ValueError: the evaluation is of other classes than the model's.
        ModuleNotFoundError: the extra ``hub`` is not installed.

    Examples:
        >>> from art import BackboneClassifier
        >>> from art.tools.hub import model_card
        >>> card = model_card(BackboneClassifier(["walk", "run"], num_frames=2), "user/walk-or-run")
        >>> "No evaluation came with this model." in card
        True
    """
    if evaluation is not None:
        measured = [entry["name"] for entry in evaluation["per_class"]]
        if measured != model.class_names:
            raise ValueError(
                f"evaluation is of {len(measured)} classes that are not the model's {len(model.class_names)}; "
                "evaluate this checkpoint with art evaluate --report, and give that evaluation.json"
            )
    sections = [
        f"---\n{_metadata(model, repository, evaluation, license)}\n---",
        f"# {repository.partition('/')[2]}",
        _what(model),
        _how(model, repository),
        "## Measured\n\n"
        + (_measured(evaluation) if evaluation is not None else "No evaluation came with this model."),
        "## Classes\n\n" + "\n".join(f"{index}. {_plain(name)}" for index, name in enumerate(model.class_names)),
        "## Options that are not the default\n\n" + _options(model.options),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(
    model: VideoClassifier, repository: str, evaluation: Mapping[str, Any] | None, license: str | None
) -> str:
    hub = import_extra("huggingface_hub", extra="hub", needed_by="a model card")
    results = [
        hub.EvalResult(
            task_type="video-classification",
            dataset_type=evaluation["dataset"],
            dataset_name=evaluation["dataset"],
            dataset_split=evaluation["split"],
            metric_type="accuracy",
            metric_name=told,
            metric_value=evaluation[name],
        )
        for name, told in _MEASURES
        if evaluation is not None and evaluation.get(name) is not None
    ]
    data = hub.ModelCardData(
        library_name="art-kernels",
        pipeline_tag="video-classification",
        tags=["video-classification", "action-recognition", "arxiv:2511.21202"],
        license=license,
        model_name=repository.partition("/")[2],
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _what(model: VideoClassifier) -> str:
    o, sampling = model.options, model.sampling
    kind = (
        f"Action-Region Tracking ([arXiv 2511.21202]({PAPER})) with {o.num_tracklets} tracklets"
        if model.kind == "art"
        else "The backbone alone"
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    stride = f", every {sampling.stride}th frame" if sampling.stride > 1 else ""
    return (
        f"{kind}, on backbone `{o.backbone}`: {len(model.class_names)} classes, {model.num_frames} frames of "
        f"{model.input_size}×{model.input_size} pixels a clip ({sampling.kind} sampling{stride}), {count:,} parameters."
    )


def _how(model: VideoClassifier, repository: str) -> str:
    return (
        "## Use\n\n```python\n"
        f"from art import {type(model).__name__}\n\n"
        f'model = {type(model).__name__}.from_pretrained("{repository}")\n'
        'model.predict("clip.mp4")  # [(class, probability), ...]\n```'
    )


def _measured(evaluation: Mapping[str, Any]) -> str:
    lines = [f"On split `{evaluation['split']}` of `{evaluation['dataset']}`, {evaluation['clips']} clips.", ""]
    lines += ["| | % |", "| --- | --- |"]
    lines += [
        f"| {told} | {100 * evaluation[name]:.2f} |" for name, told in _MEASURES if evaluation.get(name) is not None
    ]
    if evaluation.get("unreadable_clips"):
        lines += ["", f"{evaluation['unreadable_clips']} clips could not be read and are in no number."]
    looked = [f"{name} {evaluation[name]}" for name in ("sampling", "views", "crops") if name in evaluation]
    source = evaluation.get("provenance", {})
    made = [f"{name} {source[name]}" for name in ("art", "torch", "date") if name in source]
    lines += ["", ", ".join(looked + made) + "."] if looked or made else []
    return "\n".join(lines)


def _options(options: ARTOptions) -> str:
    """What is not at its default, as a list."""
    defaults = asdict(ARTOptions())
    chosen = {name: value for name, value in asdict(options).items() if value != defaults[name]}
    if options.pretrained is not None:
        chosen["pretrained"] = Path(options.pretrained).name  # where it lay is nobody's business
    return "\n".join(f"- `{name}`: `{value}`" for name, value in chosen.items()) or "None."


def _plain(name: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{letter}" if letter in r"\`*_[]<>#|" else letter for letter in name)
