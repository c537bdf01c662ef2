"""Building and loading models of any kind."""

from __future__ import annotations

import os
from collections.abc import Sequence

import art.model.art_model  # noqa: F401 - registers ARTModel in VideoClassifier.kinds
from art.model.options import ARTOptions
from art.model.pretrained import VideoClassifier

__all__ = ["VideoClassifier", "build_model", "load_model"]


def build_model(
    kind: str, class_names: Sequence[str], options: ARTOptions, prompts: Sequence[str] | None = None
) -> VideoClassifier:
    """Build a model with new weights.

    Args:
        kind: "art" or "backbone".
        class_names: Y names, in label order.
        options: of the model.
        prompts: as in :class:`art.ARTModel`.

    Raises:
        ValueError: If ``kind`` is unknown.

    Examples:
        >>> from art import ARTOptions, build_model
        >>> build_model("backbone", ["walk", "jump"], ARTOptions(num_frames=2)).kind
        'backbone'
    """
    if kind not in VideoClassifier.kinds:
        raise ValueError(f"kind {kind!r} is unknown; expected one of {', '.join(sorted(VideoClassifier.kinds))}")
    return VideoClassifier.kinds[kind](class_names, prompts=prompts, **vars(options))


def load_model(directory: str | os.PathLike[str], *, revision: str | None = None) -> VideoClassifier:
    """Load a model of any kind, in eval mode. Arguments and errors are those of ``VideoClassifier.from_pretrained``.

    Examples:
        >>> from art import load_model
        >>> model = load_model("runs/motion/checkpoints/last")
        >>> model.kind, model.class_names
        ('art', ['run', 'walk'])
    """
    return VideoClassifier.from_pretrained(directory, revision=revision)
