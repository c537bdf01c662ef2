"""A saved model that predicts many clips in batches, decoded in worker processes."""

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
from art.data.transforms.augment import EvalViews
from art.model import find_checkpoint
from art.model.loading import load_model
from art.model.pretrained import eval_mode
from art.train.runtime import autocast, resolve_device


@dataclass(frozen=True)
class PredictionSettings:
    """Settings of a prediction.

    Attributes:
        checkpoint: a checkpoint, or a run directory, whose last one is used.
        top_k: number of classes to report.
        views: number of views of a clip to average.
        crops: crops per view, 1 or 3.
        batch_size: views per forward pass.
        workers: decoding processes per predicting process; 0 decodes in the predicting process.
        precision: "fp32", "bf16" or "fp16".
        decoder: for video files, one of :data:`art.data.decoding.video.DECODERS`.

    Raises:
        ValueError: a value is out of range.

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
        for name, minimum in (("top_k", 1), ("views", 1), ("batch_size", 1), ("workers", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least {minimum}")
        if self.crops not in (1, 3):
            raise ValueError(f"crops: got {self.crops}, expected 1 or 3")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise ValueError(f"precision: got {self.precision!r}, expected fp32, bf16 or fp16")


@dataclass(frozen=True)
class Prediction:
    """Prediction for one clip.

    Attributes:
        item: the clip.
        probabilities: ``[Y]``, in the order of the model's classes; None after an error.
        error: why there are none: the clip could not be read, or the model's output is not finite.

    Examples:
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from art.tools.predict import Item, Prediction
        >>> prediction = Prediction(Item("clip.mp4", Path("clip.mp4")), np.array([0.25, 0.75], dtype=np.float32))
        >>> prediction.best(["run", "walk"], count=1)
        [('walk', 0.75)]
    """

    item: Item
    probabilities: Float32[np.ndarray, " y"] | None
    error: str | None = None

    def best(self, class_names: Sequence[str], count: int) -> list[tuple[str, float]]:
        """Return the ``count`` most probable classes with their probabilities, best first; empty after an error."""
        if self.probabilities is None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(class_names[i], float(self.probabilities[i])) for i in order]


class ClipPredictor:
    """The model of a checkpoint on one device. Called with clips, it yields a :class:`Prediction` for each, in order.

    Raises:
        FileNotFoundError: there is no checkpoint.
        NonFiniteError: the weights are not finite.
        ValueError: the device does not exist, or a file of the checkpoint is damaged.

    Examples:
        >>> from pathlib import Path
        >>> from art.tools.predict import ClipPredictor, PredictionSettings, open_inputs
        >>> predictor = ClipPredictor(PredictionSettings(Path("runs/motion")), device="cpu")
        >>> clips = [item for source in open_inputs([Path("data/mine/test")], 8) for item in source.open()]
        >>> [prediction.error for prediction in predictor(clips)]
        [None, None]
    """

    def __init__(self, settings: PredictionSettings, device: str = "auto") -> None:
        self.settings = settings
        self.device = resolve_device(device)
        self.model = load_model(find_checkpoint(settings.checkpoint)).to(self.device)
        self.class_names = tuple(self.model.class_names)
        self._views = EvalViews(
            self.model.num_frames,
            self.model.center_crop,
            self.model.sampling,
            settings.views,
            settings.crops,
            settings.decoder,
        )

    def __call__(self, items: Iterable[Item]) -> Iterator[Prediction]:
        """Yield predictions as they are computed; an unreadable clip yields one with an error."""
        items = list(items)
        batch_clips = max(1, self.settings.batch_size // (self.settings.views * self.settings.crops))
        loader: DataLoader[Any] = DataLoader(
            _ClipViews(items, self._views),
            batch_size=batch_clips,
            num_workers=min(self.settings.workers, -(-len(items) // batch_clips)),
            collate_fn=list,
        )
        remaining = iter(items)
        for batch in loader:
            read = [views for views in batch if not isinstance(views, str)]
            results = iter(self._probabilities(torch.stack(read)) if read else ())
            for item, views in zip(itertools.islice(remaining, len(batch)), batch, strict=True):
                if isinstance(views, str):
                    yield Prediction(item, None, views)
                elif np.isfinite(probabilities := next(results)).all():
                    yield Prediction(item, probabilities)
                else:
                    yield Prediction(item, None, f"the model's output is not finite with {self.settings.precision}")

    def _probabilities(self, clips: Tensor) -> Float32[np.ndarray, "b y"]:
        """Return the mean over the views of ``clips`` [B, V, T, 3, S, S]."""
        views = clips.flatten(0, 1)
        parts = []
        with eval_mode(self.model):
            for part in views.split(self.settings.batch_size):
                with autocast(self.device, self.settings.precision):
                    logits = self.model(part.to(self.device)).logits
                parts.append(logits.float().softmax(1).cpu())
        return torch.cat(parts).unflatten(0, clips.shape[:2]).mean(1).numpy()


class _ClipViews(Dataset[Any]):
    """The views of each clip, or the reason why it cannot be read."""

    def __init__(self, items: Sequence[Item], views: EvalViews) -> None:
        self._items, self._views = items, views

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Tensor | str:
        item = self._items[index]
        if item.place is None:
            return item.problem or "is missing"
        try:
            return self._views(item.place, item.start, item.end)
        except VideoError as error:
            return error.reason
