"""What every video classifier of this package shares: its classes, saving, loading, predicting."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from jaxtyping import Shaped
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from art.backbones.interface import Backbone
from art.data.transforms.augment import CentreCrop
from art.data.transforms.sampling import SPARSE, FrameSampling
from art.model.losses import Labels, LossTerms
from art.model.options import ARTOptions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

C = TypeVar("C", bound="VideoClassifier")


class VideoClassifier(nn.Module, ABC):
    """Base of the classifiers. ``kind`` tells a saved folder which class wrote it.

    Attributes:
        class_names: Y names; the order is the order of the logits.
        options: how the model was built.
        sampling: which frames of a clip it is shown, in training and after: saved with it, sparse unless changed.
        prompts: what the templates said of each class when the semantics were made, saved with it; None: nothing was
            said, or it is not known.

    Examples:
        >>> from art import ARTModel
        >>> model = ARTModel(["walk", "jump"], num_frames=2).eval()
        >>> model.save_pretrained("saved")
        >>> best, *_ = ARTModel.from_pretrained("saved").predict("clip.mp4", top_k=1)
        >>> best[0] in model.class_names
        True
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[VideoClassifier]]] = {}
    input_size: int
    backbone: Backbone
    prompts: list[str] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        VideoClassifier.kinds[cls.kind] = cls

    def __init__(self, class_names: Sequence[str], **options: Any) -> None:
        super().__init__()
        self.class_names = check_class_names(class_names)
        self.options = options_from_keywords(options)
        self.sampling: FrameSampling = SPARSE

    @property
    def num_frames(self) -> int:
        """T, the number of frames that :meth:`forward` takes."""
        return self.options.num_frames

    @property
    def centre_crop(self) -> CentreCrop:
        """What evaluation and prediction show of each frame, at the size that :meth:`forward` wants."""
        return CentreCrop(self.input_size, share=self.options.test_crop)

    @abstractmethod
    def forward(self, video: Shaped[Tensor, "b t 3 height width"], *, return_maps: bool = False) -> Any:
        """The model's output for ``video``, with ``.logits``."""

    @abstractmethod
    def loss(self, output: Any, labels: Labels, group: ProcessGroup | None = None) -> LossTerms:
        """The objective of this model for its own output; ``labels`` as in :data:`.losses.Labels`. ``group`` are the
        processes among which the clips of a batch are divided: each takes the loss of its own, and the mean is that of
        the batch where they have as many each; None: this process has them all."""

    @classmethod
    @abstractmethod
    def _from_shapes(cls: type[C], class_names: Sequence[str], options: ARTOptions, shapes: dict[str, list[int]]) -> C:
        """A model with weights still to be loaded, of the given names and shapes."""

    @abstractmethod
    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters by group: "backbone", "head", "bank"."""

    def after_step(self) -> None:
        """To be called after every optimizer step."""

    def check_video(self, video: Tensor) -> None:
        """Raise ValueError unless ``video`` is ``[B, T, 3, H, W]`` with this model's T."""
        if video.ndim != 5 or video.shape[1] != self.num_frames or video.shape[2] != 3:
            raise ValueError(
                f"video has shape {list(video.shape)}, expected [B, {self.num_frames}, 3, H, W]; "
                "num_frames is fixed when the model is built"
            )

    def save_pretrained(self, folder: str | os.PathLike[str], weights: Mapping[str, Tensor] | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder``.

        Both are written beside it first, so that an interruption leaves no half of a model.

        Args:
            folder: made if need be.
            weights: what to write, by the names of ``state_dict``; None: the model's own.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "kind": self.kind,
            "class_names": self.class_names,
            "prompts": self.prompts,
            "sampling": asdict(self.sampling),
            "options": asdict(self.options),
        }
        state = {name: value.detach().cpu().contiguous() for name, value in (weights or self.state_dict()).items()}
        staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        try:
            save_file(state, staging / WEIGHTS_FILE, metadata={"format": "pt"})
            (staging / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                (staging / name).replace(folder / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Put this model on the Hugging Face Hub; ``options`` as in :func:`art.tools.hub.push_to_hub`. Gives the address."""
        from art.tools.hub import push_to_hub

        return push_to_hub(self, repository, **options)

    @classmethod
    def from_pretrained(cls: type[C], folder: str | os.PathLike[str], *, revision: str | None = None) -> C:
        """The model that :meth:`save_pretrained` wrote, in eval mode. Needs no text encoder.

        Args:
            folder: a local folder, which needs no network; or, as a string under which there is no local path,
                "user/name" on the Hugging Face Hub.
            revision: on the Hub: branch, tag or commit; None is the newest.

        Raises:
            FileNotFoundError: the folder lacks one of the two files; there is no such repository.
            ValueError: it holds a model of another kind, or weights of other names or shapes.
            OSError: the Hub cannot be reached.
        """
        model = load_model(folder, revision=revision)
        if not isinstance(model, cls):
            raise ValueError(f"{folder} holds a model of kind {model.kind!r}; load it with {type(model).__name__}")
        return model

    def predict(
        self, clip: str | os.PathLike[str], top_k: int = 5, *, views: int = 1, crops: int = 1
    ) -> list[tuple[str, float]]:
        """The ``top_k`` most probable classes of a video file, with their probabilities, the best first.

        Args:
            clip: the file.
            top_k: how many classes.
            views: so many times T frames of the file, as :attr:`sampling` chooses them; probabilities are averaged.
            crops: 1, the middle of each frame, or 3, squares along its longer side, averaged likewise.

        Raises:
            art.data.decoding.video.VideoError: the file cannot be decoded.
            ValueError: ``views`` is below 1, or ``crops`` is neither 1 nor 3.
        """
        from art.data.transforms.shown import ShownViews

        shown = ShownViews(self.num_frames, self.centre_crop, self.sampling, views, crops)(clip)
        with evaluating(self) as device:
            answers = [self(view[None].to(device)).logits[0].float().softmax(0) for view in shown]
            probabilities = torch.stack(answers).mean(0)
        best = probabilities.topk(min(top_k, len(self.class_names)))
        return [(self.class_names[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


@contextmanager
def evaluating(model: VideoClassifier) -> Iterator[torch.device]:
    """Without gradients and dropout; the model's mode is put back afterwards. Gives the model's device."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def build_model(
    kind: str, class_names: Sequence[str], options: ARTOptions, prompts: Sequence[str] | None = None
) -> VideoClassifier:
    """A new model of ``kind``, "art" or "backbone"; ``prompts`` as in :class:`art.ARTModel`.

    Raises:
        ValueError: an unknown kind.

    Examples:
        >>> from art import ARTOptions, build_model
        >>> build_model("backbone", ["walk", "jump"], ARTOptions(num_frames=2)).kind
        'backbone'
    """
    return _class_of(kind)(class_names, prompts=prompts, **vars(options))


def _class_of(kind: object) -> type[VideoClassifier]:
    from art.model import baseline  # noqa: F401 - they enter themselves into ``kinds``

    if kind not in VideoClassifier.kinds:
        raise ValueError(f"kind {kind!r} is unknown; expected one of {', '.join(sorted(VideoClassifier.kinds))}")
    return VideoClassifier.kinds[str(kind)]


def load_model(folder: str | os.PathLike[str], *, revision: str | None = None) -> VideoClassifier:
    """The model that ``save_pretrained`` wrote into ``folder``, whatever its kind, in eval mode.

    Arguments and errors as of :meth:`VideoClassifier.from_pretrained`.

    Examples:
        >>> from art import load_model
        >>> model = load_model("runs/motion/checkpoints/last")
        >>> model.kind, model.class_names
        ('art', ['run', 'walk'])
    """
    from art.tools.hub.repository import from_hub, is_repository

    if is_repository(folder):
        return from_hub(str(folder), revision=revision)
    if revision is not None:
        raise ValueError(f"revision is {revision!r}, but {folder} is a local path; leave it out")
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist; expected a folder written by save_pretrained")
    config = json.loads((folder / CONFIG_FILE).read_text())
    try:
        cls = _class_of(config.get("kind"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error
    # The weights are all in the file: nothing else is to be loaded to build the model.
    options = dataclasses.replace(ARTOptions(**config["options"]), pretrained=None)
    model = cls._from_shapes(config["class_names"], options, _shapes(folder / WEIGHTS_FILE))
    try:
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE}: {error}") from error
    model.options = ARTOptions(**config["options"])
    model.prompts = config.get("prompts")
    model.sampling = FrameSampling(**config.get("sampling", {}))  # a folder without it was written when there was one
    return model.eval()


def options_from_keywords(options: dict[str, Any]) -> ARTOptions:
    """ARTOptions from keyword arguments; an unknown one is a TypeError that names the nearest."""
    known = [f.name for f in fields(ARTOptions)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the options are {', '.join(known)}"
            raise TypeError(f"unknown option {name!r}{hint}")
    return ARTOptions(**options)


def check_class_names(class_names: Sequence[str]) -> list[str]:
    """The names as a list; ValueError unless there are at least two, none empty and none twice."""
    if isinstance(class_names, str):
        raise TypeError(f"class_names is the single string {class_names!r}, expected a sequence of strings")
    names = list(class_names)
    if len(names) < 2:
        raise ValueError(f"class_names has {len(names)} names, expected at least 2")
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError("class_names holds an empty name or something that is no string; every class needs a name")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"class_names holds {twice[0]!r} more than once; names must differ")
    return names


def _shapes(path: Path) -> dict[str, list[int]]:
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
