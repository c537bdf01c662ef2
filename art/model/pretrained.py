"""VideoClassifier, the base class of the models: class names, saving, loading, prediction; and the baseline."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from safetensors.torch import save_file
from torch import Tensor, nn

from art._deprecated import renamed_attribute
from art.backbones import build_backbone
from art.backbones.base import Backbone
from art.data.files import DamagedFile, file_sha256
from art.data.transforms.augment import CenterCrop
from art.data.transforms.sampling import SPARSE, FrameSampling
from art.model import CONFIG_FILE, WEIGHTS_FILE, find_checkpoint
from art.model.files import NonFiniteError, check_finite, read_config, read_weights, write_config
from art.model.losses import Labels, LossTerms
from art.model.options import ARTOptions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Query:
    """What a map of a model belongs to: the class text that queries a tracklet, or a learned query.

    Attributes:
        name: the name of the class, or a description of the learned query.
        label: class index; None for a learned query.
        prompt: the prompt of the class that is most similar to the clip; None for a learned query.
        similarity: cosine similarity of that prompt and the clip; None for a learned query.
    """

    name: str
    label: int | None = None
    prompt: str | None = None
    similarity: float | None = None

    def title(self, k: int) -> str:
        """Return a title for map ``k``, counted from 0."""
        return f"Attention, {self.name}" if self.label is None else f"Tracklet {k + 1}, query “{self.name}”"


C = TypeVar("C", bound="VideoClassifier")


class VideoClassifier(nn.Module, ABC):
    """Base class of the video classifiers. A subclass defines ``kind``, the name of its class in saved models.

    Attributes:
        class_names: Y names, in the order of the logits.
        options: the options that the model was built with.
        input_size: height and width of an input frame in pixels.
        sampling: how frames are sampled from a clip in training and inference; saved with the model. Default: sparse.
        prompts: the texts that the prompt templates were filled with to compute the semantics; saved with the model.
            None if there are none, or they are unknown.

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
        self.options = ARTOptions.from_kwargs(options)
        self.sampling: FrameSampling = SPARSE

    @property
    def num_frames(self) -> int:
        """T, the number of frames per clip."""
        return self.options.num_frames

    @property
    def num_maps(self) -> int:
        """K, the number of maps per frame that the model returns if they are requested; 0 if it has none."""
        return 0

    def map_queries(self, output: Any, clip: int = 0) -> tuple[Query, ...]:
        """Return what each of the maps belongs to.

        Args:
            output: what :meth:`forward` returned with maps.
            clip: number of the clip in the batch.
        """
        return ()

    def evidence_maps(self, output: Any, classes: Int[Tensor, "b k"]) -> Float[Tensor, "b t k h w"] | None:
        """Return what each region adds to the logit of a class; None for a model that does not add evidence.

        Args:
            output: what :meth:`forward` returned.
            classes: K classes for each clip.
        """
        return None

    def region_parts(self, output: Any) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """Return what the logits are computed from; None for a model without tracklets.

        Returns:
            The part that does not depend on regions ``[B, ...]``, the part of the regions ``[B, ...]``, the aggregated
            tracklets ``[B, K, d]``, and the classes of their queries ``[B, K]``. :meth:`combine_parts` returns the
            logits of the first two.
        """
        return None

    def combine_parts(self, context: Tensor, regions: Tensor) -> Float[Tensor, "b y"]:
        """Return the logits of the parts of :meth:`region_parts`, which may be changed or of different clips."""
        raise TypeError(f"{type(self).__name__} has no tracklets")

    @property
    def center_crop(self) -> CenterCrop:
        """The crop of evaluation and prediction, resized to ``input_size``."""
        return CenterCrop(self.input_size, fraction=self.options.test_crop)

    centre_crop = renamed_attribute("centre_crop", "center_crop")

    @abstractmethod
    def forward(self, video: Shaped[Tensor, "b t 3 height width"], *, return_maps: bool = False) -> Any:
        """Return the output for ``video``, an object with ``.logits``."""

    @abstractmethod
    def loss(self, output: Any, labels: Labels, group: ProcessGroup | None = None) -> LossTerms:
        """Compute the training loss.

        Args:
            output: what :meth:`forward` returned.
            labels: class indices ``[B]``, or class probabilities ``[B, Y]`` of mixed videos.
            group: processes that the batch is distributed over, in equal parts; the loss of the batch is the mean of
                their results. None: this process has the whole batch.
        """

    @classmethod
    @abstractmethod
    def _from_shapes(cls: type[C], class_names: Sequence[str], options: ARTOptions, shapes: dict[str, list[int]]) -> C:
        """Return a model whose state dict has these names and shapes; its weights are loaded later."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return all parameters by group: "backbone", "bank" (the agent bank, if any), and "head" (all others)."""
        groups: dict[str, list[nn.Parameter]] = {"backbone": [], "head": [], "bank": []}
        for name, parameter in self.named_parameters():
            group = "backbone" if name.startswith("backbone.") else "bank" if name == "semantics.agent" else "head"
            groups[group].append(parameter)
        return groups

    def update_bank(self) -> None:
        """Update the semantics bank. Call after every optimizer step; models without a bank do nothing."""

    after_step = renamed_attribute("after_step", "update_bank")

    def check_video(self, video: Tensor) -> None:
        """Raise ValueError unless ``video`` is ``[B, T, 3, H, W]`` with this model's T."""
        if video.ndim != 5 or video.shape[1] != self.num_frames or video.shape[2] != 3:
            raise ValueError(
                f"video has shape {list(video.shape)}, expected [B, {self.num_frames}, 3, H, W]; "
                "num_frames is fixed when the model is built"
            )

    def save_pretrained(self, directory: str | os.PathLike[str], weights: Mapping[str, Tensor] | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``, each to a temporary file that then replaces the old one.

        ``config.json`` has the checksums of both, see :mod:`art.model.files`.

        Args:
            directory: created if it does not exist.
            weights: the state dict to save; None saves the model's own.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = {
            "kind": self.kind,
            "class_names": self.class_names,
            "prompts": self.prompts,
            "input_size": self.input_size,
            "num_parameters": sum(parameter.numel() for parameter in self.parameters()),
            "sampling": asdict(self.sampling),
            "options": asdict(self.options),
        }
        state = {name: value.detach().cpu().contiguous() for name, value in (weights or self.state_dict()).items()}
        staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
        try:
            save_file(state, staging / WEIGHTS_FILE, metadata={"format": "pt"})
            write_config(staging / CONFIG_FILE, config, file_sha256(staging / WEIGHTS_FILE))
            (staging / WEIGHTS_FILE).chmod((staging / CONFIG_FILE).stat().st_mode)  # safetensors writes for one user
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                (staging / name).replace(directory / name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload this model to the Hugging Face Hub and return the URL of the commit.

        Keyword arguments are those of :func:`art.tools.hub.push_to_hub`.
        """
        from art.tools.hub import push_to_hub

        return push_to_hub(self, repository, **options)

    @classmethod
    def from_pretrained(cls: type[C], directory: str | os.PathLike[str], *, revision: str | None = None) -> C:
        """Load a model that :meth:`save_pretrained` wrote, in eval mode. Does not need the text encoder.

        Args:
            directory: a local directory (of a run, its last checkpoint is loaded), or the name "user/name" of a
                repository on the Hugging Face Hub. A string is a repository only if no such local path exists.
            revision: branch, tag, or commit on the Hub; None loads the newest.

        Raises:
            FileNotFoundError: If one of the two files, or the repository, does not exist.
            ValueError: If a file is damaged, the model is of another kind, or its weights have other names or shapes,
                or are not finite.
            OSError: If the Hub cannot be reached.
        """
        from art.tools.hub import download, is_repository

        path = Path(directory)
        if is_repository(directory):
            path = download(str(directory), revision=revision)
        elif revision is not None:
            raise ValueError(f"revision is {revision!r}, but {directory} is a local path; omit revision")
        elif (path / "checkpoints").is_dir() and not (path / CONFIG_FILE).is_file():
            path = find_checkpoint(path)
        config = read_config(path)
        loadable = {kind: subclass for kind, subclass in VideoClassifier.kinds.items() if issubclass(subclass, cls)}
        if config.get("kind") not in loadable:
            raise ValueError(
                f"{directory} holds a model of kind {config.get('kind')!r}, expected {' or '.join(sorted(loadable))}; "
                "art.load_model loads all known kinds"
            )
        state = read_weights(path, config)
        model = loadable[config["kind"]]._from_config(config, state, path)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            details = " ".join(str(error).split())
            raise ValueError(f"{path / WEIGHTS_FILE} does not match its {CONFIG_FILE}: {details}") from error
        check_finite(model, path / WEIGHTS_FILE)
        return model.eval()

    @classmethod
    def _from_config(cls: type[C], config: dict[str, Any], state: Mapping[str, Tensor], path: Path) -> C:
        """Return a model with the options and attributes of ``config.json``, and any weights."""
        shapes = {name: list(value.shape) for name, value in state.items()}
        try:
            options = ARTOptions.from_kwargs(config["options"])
            # The saved weights replace the pretrained ones of the backbone, which may no longer exist.
            unset = dataclasses.replace(options, pretrained=None)
            model = cls._from_shapes(config["class_names"], unset, shapes)
            model.sampling = FrameSampling(**config.get("sampling", {}))  # absent in files from before it was an option
        except ImportError:
            raise
        except Exception as error:  # invalid values can raise any exception
            details = " ".join(f"{type(error).__name__}: {error}".split())
            raise DamagedFile(f"{path / CONFIG_FILE}: no model can be built from it ({details})") from error
        model.options = options
        model.prompts = config.get("prompts")
        return model

    def predict(
        self, clip: str | os.PathLike[str], top_k: int = 5, *, views: int = 1, crops: int = 1
    ) -> list[tuple[str, float]]:
        """Return the ``top_k`` most probable classes of a video file with their probabilities, in descending order.

        Args:
            clip: path of the file.
            top_k: number of classes.
            views: number of views, each T frames chosen by :attr:`sampling`; probabilities are averaged.
            crops: crops per view: 1, the center, or 3, squares along the longer side of the frame.

        Raises:
            art.data.VideoError: If the file cannot be decoded.
            ValueError: If ``views`` is below 1, ``crops`` is neither 1 nor 3, or the output is not finite.
        """
        from art.data.transforms.augment import EvalViews

        shown = EvalViews(self.num_frames, self.center_crop, self.sampling, views, crops)(clip)
        with eval_mode(self) as device:
            per_view = [self(view[None].to(device)).logits[0].float().softmax(0) for view in shown]
            probabilities = torch.stack(per_view).mean(0)
        if not probabilities.isfinite().all():
            raise NonFiniteError(f"{clip}: the model's output is not finite")
        best = probabilities.topk(min(top_k, len(self.class_names)))
        return [(self.class_names[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]


@dataclass(frozen=True)
class BackboneOutput:
    """Output of :class:`BackboneClassifier` for B clips.

    Attributes:
        logits: ``[B, Y]``.
        class_token: ``[B, C]``, x_cls.
    """

    logits: Float[Tensor, "b y"]
    class_token: Float[Tensor, "b c"]


class BackboneClassifier(VideoClassifier):
    """The backbone's global feature, dropout, and a linear head, trained with cross-entropy.

    Accepts the arguments of :class:`art.ARTModel` and ignores those of ART's stages, so that both models can share one
    configuration.

    Examples:
        >>> import torch
        >>> from art import BackboneClassifier
        >>> model = BackboneClassifier(["walk", "jump"], num_frames=2)
        >>> model(torch.rand(1, 2, 3, 112, 112)).logits.shape
        torch.Size([1, 2])
    """

    kind = "backbone"

    def __init__(
        self,
        class_names: Sequence[str],
        backbone: str = "tiny",
        num_frames: int = 16,
        *,
        prompts: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(class_names, backbone=backbone, num_frames=num_frames, **options)
        o = self.options
        self.backbone = build_backbone(
            o.backbone, num_frames=o.num_frames, pretrained=o.pretrained, **o.backbone_options
        )
        self.input_size = self.backbone.input_size
        self.video_head = self.backbone.video_head(len(self.class_names))

    def forward(self, video: Shaped[Tensor, "b t 3 height width"], *, return_maps: bool = False) -> BackboneOutput:
        """Classify videos, uint8 or floating point with values in 0..1.

        Raises:
            ValueError: If ``video`` is not ``[B, T, 3, H, W]`` with this model's T, or ``return_maps`` is True: this
                model has no response maps.
        """
        self.check_video(video)
        if return_maps:
            raise ValueError("return_maps is True, but BackboneClassifier has no response maps; use ARTModel")
        class_token = self.backbone(video).class_token
        logits = self.video_head(F.dropout(class_token, self.options.dropout, self.training))
        return BackboneOutput(logits, class_token)

    def loss(self, output: BackboneOutput, labels: Labels, group: ProcessGroup | None = None) -> LossTerms:
        """Compute L_v, the only term. Arguments are those of :meth:`art.VideoClassifier.loss`."""
        video = F.cross_entropy(output.logits, labels)
        return LossTerms(total=video, video=video)

    @classmethod
    def _from_shapes(
        cls, class_names: Sequence[str], options: ARTOptions, shapes: dict[str, list[int]]
    ) -> BackboneClassifier:
        return cls(class_names, **vars(options))


@contextmanager
def eval_mode(model: VideoClassifier) -> Iterator[torch.device]:
    """Disable gradients and switch ``model`` to eval mode, and restore its mode on exit. Yields the model's device."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(training)


def check_class_names(class_names: Sequence[str]) -> list[str]:
    """Return the names as a list.

    Raises:
        TypeError: If ``class_names`` is a single string.
        ValueError: If there are fewer than two names, or one is empty, repeated, or not a string.
    """
    if isinstance(class_names, str):
        raise TypeError(f"class_names is the single string {class_names!r}, expected a sequence of strings")
    names = list(class_names)
    if len(names) < 2:
        raise ValueError(f"class_names has {len(names)} names, expected at least 2")
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError("class_names contains an empty name or an element that is not a string")
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ValueError(f"class_names contains {min(repeated)!r} more than once; names must be unique")
    return names
