"""Building and loading models of any kind, and starting a model from the weights of another one."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

import art.heads  # noqa: F401 - registers all models in VideoClassifier.kinds
from art.backbones.base import load_by_name, read_checkpoint
from art.data.files import read_json_mapping
from art.model import CONFIG_FILE, WEIGHTS_FILE, find_checkpoint
from art.model.files import NonFiniteError, non_finite_names, read_config, read_weights
from art.model.options import ARTOptions
from art.model.pretrained import VideoClassifier
from art.terminal import list_names

__all__ = ["VideoClassifier", "build_model", "load_model"]

_log = logging.getLogger(__name__)

#: Modules whose weights belong to the classes.
_CLASS_MODULES = ("video_head", "final_head", "semantics", "head", "evidence")
_WRAPPERS = ("module.", "_orig_mod.", "model.")  # of DDP, torch.compile, and art.train.parallel.ModelWithLoss


def build_model(
    kind: str, class_names: Sequence[str], options: ARTOptions, prompts: Sequence[str] | None = None
) -> VideoClassifier:
    """Build a model with new weights, or with those of a saved model if ``options.pretrained`` is one.

    ``options.pretrained`` may be a run directory (its last checkpoint), the directory of a checkpoint, or a file with
    the state dict of a whole model (``.safetensors``, or written by ``torch.save``). The backbone must match; all other
    weights are copied where name and shape match, except those that belong to the classes if the classes differ. A log
    message names the modules that keep new weights. Any other value is passed to the backbone.

    Args:
        kind: "art", "backbone" or "probe".
        class_names: Y names, in label order.
        options: of the model.
        prompts: as in :class:`art.ARTModel`.

    Raises:
        ValueError: If ``kind`` is unknown, or the saved model is damaged or has another backbone.
        FileNotFoundError: If ``options.pretrained`` is a path that does not exist.

    Examples:
        >>> from art import ARTOptions, build_model
        >>> build_model("backbone", ["walk", "jump"], ARTOptions(num_frames=2)).kind
        'backbone'
    """
    if kind not in VideoClassifier.kinds:
        raise ValueError(f"kind {kind!r} is unknown; expected one of {', '.join(sorted(VideoClassifier.kinds))}")
    saved = None if options.pretrained is None else _read_saved_model(Path(options.pretrained))
    own = options if saved is None else dataclasses.replace(options, pretrained=None)
    model = VideoClassifier.kinds[kind](class_names, prompts=prompts, **vars(own))
    if saved is not None:
        _copy_weights(model, *saved, source=str(options.pretrained))
        model.options = options
    return model


def load_model(directory: str | os.PathLike[str], *, revision: str | None = None) -> VideoClassifier:
    """Load a model of any kind, in eval mode. Arguments and errors are those of ``VideoClassifier.from_pretrained``.

    Examples:
        >>> from art import load_model
        >>> model = load_model("runs/motion/checkpoints/last")
        >>> model.kind, model.class_names
        ('art', ['run', 'walk'])
    """
    return VideoClassifier.from_pretrained(directory, revision=revision)


def _read_saved_model(path: Path) -> tuple[dict[str, Tensor], list[str] | None] | None:
    """Return the state dict and the class names (None: unknown) of a whole model; None if ``path`` is not one."""
    if path.is_dir():
        try:
            directory = find_checkpoint(path)
        except FileNotFoundError:
            return None
        if "kind" not in read_json_mapping(directory / CONFIG_FILE):  # a model of another library
            return None
        config = read_config(directory)
        return read_weights(directory, config), config.get("class_names")
    if not path.is_file():
        return None
    if path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file():
        return _read_saved_model(path.parent)
    try:
        state = read_checkpoint(path)
    except ValueError:  # the backbone may support another format, and otherwise raises the same error
        return None
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    # The files of some backbones have the prefix "backbone." too, but not the head of a whole model.
    is_whole = {"backbone", "video_head"} <= {name.partition(".")[0] for name in state}
    return (state, None) if is_whole else None


def _copy_weights(
    model: VideoClassifier, state: dict[str, Tensor], class_names: list[str] | None, *, source: str
) -> None:
    if names := non_finite_names(state.items()):
        raise NonFiniteError(f"pretrained is {source!r}: the weights are not finite ({list_names(names)})")
    prefix = "backbone."
    backbone = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    options = model.options
    expected = f"the backbone {options.backbone} with backbone_options={options.backbone_options}"
    load_by_name(model.backbone, backbone, source=f"pretrained {source}", expected=expected)
    same_classes = class_names is None or class_names == model.class_names
    own = model.state_dict()
    copied = {
        name: value
        for name, value in state.items()
        if name in own
        and value.shape == own[name].shape
        and (same_classes or not name.startswith(tuple(f"{module}." for module in _CLASS_MODULES)))
    }
    model.load_state_dict(copied, strict=False)
    if os.environ.get("RANK", "0") != "0":
        return
    message = f"model.pretrained: loaded {len(copied)} of {len(own)} tensors from {source}"
    new = list(dict.fromkeys(name.partition(".")[0] for name in own if name not in copied))
    if class_names is None:
        message += "; the file has no class names, so the classification head is loaded if its shape matches"
    elif not same_classes:
        message += "; its classes are not those of this run, so the classification head starts with new weights"
    _log.warning(message + (f"; with new weights: {', '.join(new)}" if new else ""))
