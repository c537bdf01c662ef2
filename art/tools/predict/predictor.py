"""A saved model that answers for many clips, in batches, decoded in processes of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from art.data.decoding.video import VideoError
from art.data.inputs import Item
from art.data.transforms.shown import ShownViews
from art.eval.evaluate import find_checkpoint
from art.model.pretrained import evaluating, load_model
from art.train.runtime import autocast, resolve_device


@dataclass(frozen=True)
class PredictionSettings:
    """How clips are predicted.

    Attributes:
        checkpoint: a checkpoint, or the folder of a run, whose last one is meant.
        top_k: classes to name.
        views: views of a clip to average over.
        crops: of each view, 1 or 3.
        batch_size: views that the model takes at once.
        workers: processes that decode, for each process that predicts; 0 decodes in that one.
        precision: "fp32", "bf16" or "fp16".
        decoder: of video files, one of :data:`art.data.decoding.video.DECODERS`.

    Raises:
        ValueError: one of them is out of its range.

    Examples:
        >>> from pathlib import Path
        >>> from art.tools.predict import PredictionSettings
        >>> PredictionSettings(Path("runs/motion"), crops=2)
        Traceback (most recent call last):
        ValueError: crops: got 2, expected 1 or 3
    """

    checkpoint: Path
    top_k: int = 5
    views: int = 1
    crops: int = 1
    batch_size: int = 8
    workers: int = 0
    precision: str = "fp32"
    decoder: str = "pyav"

    def __post_init__(self) -> None:
        for name, least in (("top_k", 1), ("views", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if self.crops not in (1, 3):
            raise ValueError(f"crops: got {self.crops}, expected 1 or 3")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise ValueError(f"precision: got {self.precision!r}, expected fp32, bf16 or fp16")


@dataclass(frozen=True)
class Answer:
    """What a model says of one clip.

    Attributes:
        item: the clip.
        probabilities: ``[Y]``, in the order of the model's classes; None where it could not be read.
        error: why it could not be read.

    Examples:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from art.tools.predict import Answer, Item
        >>> answer = Answer(Item("clip.mp4", Path("clip.mp4")), np.array([0.25, 0.75], dtype=np.float32))
        >>> answer.best(["run", "walk"], count=1)
        [('walk', 0.75)]
    """

    item: Item
    probabilities: Float32[np.ndarray, " y"] | None
    error: str | None = None

    def best(self, class_names: Sequence[str], count: int) -> list[tuple[str, float]]:
        """The ``count`` most probable classes with their probabilities, the best first; none without an answer."""
        if self.probabilities is None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(class_names[i], float(self.probabilities[i])) for i in order]


class ClipPredictor:
    """The model of a checkpoint on one device. Called with clips, it gives an :class:`Answer` for each, in order.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the device is not there.

    Examples:
        >>> from pathlib import Path
        >>> from art.tools.predict import ClipPredictor, PredictionSettings, find_sources
        >>> predictor = ClipPredictor(PredictionSettings(Path("runs/motion")), device="cpu")
        >>> clips = [item for source in find_sources([Path("data/mine/test")], 8) for item in source.open()]
        >>> [answer.error for answer in predictor(clips)]
        [None, None]
    """

    def __init__(self, settings: PredictionSettings, device: str = "auto") -> None:
        self.settings = settings
        self.device = resolve_device(device)
        self.model = load_model(find_checkpoint(settings.checkpoint)).to(self.device)
        self.class_names = tuple(self.model.class_names)
        self._shown = ShownViews(
            self.model.num_frames,
            self.model.centre_crop,
            self.model.sampling,
            settings.views,
            settings.crops,
            settings.decoder,
        )

    def __call__(self, items: Iterable[Item]) -> Iterator[Answer]:
        """Answers as they come. A clip that cannot be read has an error in its answer, and stops nothing."""
        items = list(items)
        clips_at_once = max(1, self.settings.batch_size // (self.settings.views * self.settings.crops))
        loader: DataLoader[Any] = DataLoader(
            _Shown(items, self._shown),
            batch_size=clips_at_once,
            num_workers=min(self.settings.workers, -(-len(items) // clips_at_once)),
            collate_fn=list,
        )
        left = iter(items)
        for batch in loader:
            read = [views for views in batch if not isinstance(views, str)]
            answers = iter(self._probabilities(torch.stack(read)) if read else ())
            for item, views in zip(itertools.islice(left, len(batch)), batch, strict=True):
                yield Answer(item, None, views) if isinstance(views, str) else Answer(item, next(answers))

    def _probabilities(self, clips: Tensor) -> Float32[np.ndarray, "b y"]:
        """Of ``[B, V, T, 3, S, S]``, the mean over the views."""
        views = clips.flatten(0, 1)
        parts = []
        with evaluating(self.model):
            for part in views.split(self.settings.batch_size):
                with autocast(self.device, self.settings.precision):
                    logits = self.model(part.to(self.device)).logits
                parts.append(logits.float().softmax(1).cpu())
        return torch.cat(parts).unflatten(0, clips.shape[:2]).mean(1).numpy()


class _Shown(Dataset[Any]):
    """The views of each clip, or why there are none."""

    def __init__(self, items: Sequence[Item], shown: ShownViews) -> None:
        self._items, self._shown = items, shown

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor | str:
        item = self._items[index]
        if item.place is None:
            return item.problem or "is missing"
        try:
            return self._shown(item.place, item.start, item.end)
        except VideoError as error:
            return error.reason
