"""The interface of heads on frozen features, their registry, and the learned time position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from art.backbones.base import Features, did_you_mean
from art.model.losses import Labels
from art.model.pretrained import Query
from art.terminal import plural

TimePosition = Literal["none", "learned"]


class FeatureShape(NamedTuple):
    """Shape of the features of one clip.

    Attributes:
        num_steps: T', time steps with their own tokens: frames, or tubelets of several frames.
        grid: (h, w) of a time step.
        channels: C.
    """

    num_steps: int
    grid: tuple[int, int]
    channels: int


class HeadOutput(NamedTuple):
    """Output of a head for B clips.

    Attributes:
        logits: ``[B, Y]``.
        maps: ``[B, K, T', h, w]``, non-negative and with sum 1 over T', h and w: where each of the K queries looks.
            None if they were not requested or the head has none.
        details: what the head needs for its own loss, if it has one.
    """

    logits: Float[Tensor, "b y"]
    maps: Float[Tensor, "b k t h w"] | None = None
    details: Any = None


class Head(nn.Module, ABC):
    """Base class of the heads: modules that map the features of a frozen backbone to logits.

    A subclass takes the shape of the features, the class names, and its options as keyword arguments.

    Args:
        shape: of the features.
        class_names: Y names, in label order.
        time_position: "learned" adds a learned vector per time step to the tokens, without which a head that pools all
            tokens does not depend on the order of frames. "none" is meant for video backbones, whose tokens contain it.

    Attributes:
        has_maps: whether the head attends to tokens, so that :meth:`forward` can return maps.
        map_noun: what each map belongs to, in the singular and, if it does not end in "s", in the plural.
    """

    has_maps = False
    map_noun: tuple[str, ...] = ("learned query", "learned queries")

    def __init__(
        self, shape: FeatureShape, class_names: Sequence[str], *, time_position: TimePosition = "none"
    ) -> None:
        super().__init__()
        if time_position not in ("none", "learned"):
            raise ValueError(f"time_position is {time_position!r}, expected 'none' or 'learned'")
        self.shape, self.num_classes = FeatureShape(*shape), len(class_names)
        self.time_position = (
            nn.Parameter(torch.zeros(shape.num_steps, 1, shape.channels)) if time_position == "learned" else None
        )

    @abstractmethod
    def forward(self, features: Features, *, return_maps: bool = False) -> HeadOutput:
        """Classify clips.

        Args:
            features: of B clips, in floating point.
            return_maps: also return the maps, if the head :attr:`has_maps`.
        """

    @staticmethod
    def forward_together(heads: Sequence[Any], features: Features) -> list[HeadOutput]:
        """Return the output of each of several heads of one class with the same shape and options.

        A subclass overrides it to read the tokens once for all heads. It must not use random numbers, because the
        result of a head does not depend on the others.
        """
        return [head(features) for head in heads]

    def tokens(self, features: Features) -> Float[Tensor, "b tn c"]:
        """Return the tokens of each clip in one sequence, with the time position.

        Raises:
            ValueError: If the features have another shape than the head was built for.
        """
        tokens = self.checked(features).tokens
        if self.time_position is not None:
            tokens = tokens + self.time_position
        return tokens.flatten(1, 2)

    def checked(self, features: Features) -> Features:
        """Return the features, which must have the shape that the head was built for; else, raise ValueError."""
        found = FeatureShape(features.tokens.shape[1], features.grid, features.tokens.shape[3])
        if found != self.shape:
            raise ValueError(f"features have {_describe(found)}, but the head was built for {_describe(self.shape)}")
        return features

    @property
    def num_maps(self) -> int:
        """Number of maps that :meth:`frame_maps` returns; 0 if the head has none."""
        return int(self.has_maps)

    def frame_maps(self, output: HeadOutput) -> tuple[Float[Tensor, "b t k h w"], Float[Tensor, "b t k"]]:
        """Return maps of each time step, with sum 1, and the weights of the time steps, from an output with maps.

        K is :attr:`num_maps`: 1, the mean over queries, unless a subclass overrides both.
        """
        assert output.maps is not None
        maps = output.maps.mean(1)[:, :, None]
        saliency = maps.sum((-2, -1))
        return maps / saliency.clamp(min=torch.finfo(maps.dtype).tiny)[..., None, None], saliency

    def map_queries(self, output: HeadOutput, clip: int = 0) -> tuple[Query, ...]:
        """Return what each of the maps belongs to."""
        assert output.maps is not None
        return (Query(f"mean of {plural(output.maps.shape[1], *self.map_noun)}"),)

    def loss(self, output: HeadOutput, labels: Labels) -> Float[Tensor, ""]:
        """Return the training loss: the cross-entropy of the logits, unless a subclass has another.

        ``labels`` are class indices, or class probabilities of mixed videos.
        """
        return F.cross_entropy(output.logits, labels)

    def after_step(self) -> None:
        """Called after every optimizer step."""

    def unflatten_maps(self, maps: Float[Tensor, "b k tn"]) -> Float[Tensor, "b k t h w"]:
        """Restore time and grid."""
        return maps.unflatten(-1, (self.shape.num_steps, *self.shape.grid))


def _describe(shape: FeatureShape) -> str:
    return f"{shape.num_steps} time steps of {shape.grid[0]}×{shape.grid[1]} tokens with {shape.channels} channels"


_REGISTRY: dict[str, Callable[..., Head]] = {}
H = TypeVar("H", bound=Callable[..., Head])


def register_head(name: str) -> Callable[[H], H]:
    """Return a decorator that registers a class or function as head ``name``.

    It is called with a :class:`FeatureShape`, the class names, and the options of the head as keyword arguments.

    Raises:
        ValueError: If the name is already registered.
    """

    def register(factory: H) -> H:
        if name in _REGISTRY:
            raise ValueError(f"head {name!r} is already registered; choose another name")
        _REGISTRY[name] = factory
        return factory

    return register


def head_names() -> list[str]:
    """Return the names of all registered heads, sorted."""
    return sorted(_REGISTRY)


def build_head(name: str, shape: FeatureShape, class_names: Sequence[str], **options: Any) -> Head:
    """Build a registered head with new weights.

    Args:
        name: one of :func:`head_names`.
        shape: of the features.
        class_names: Y names, in label order.
        options: options of the head.

    Raises:
        ValueError: If the name is unknown, or an option is out of range.
        TypeError: If the head has no such option.

    Examples:
        >>> import torch
        >>> from art.backbones import Features
        >>> from art.heads import FeatureShape, build_head
        >>> head = build_head("ep", FeatureShape(4, (7, 7), 64), ["walk", "jump"], num_queries=8)
        >>> features = Features(torch.randn(2, 4, 49, 64), torch.randn(2, 64), (7, 7))
        >>> head(features).logits.shape
        torch.Size([2, 2])
    """
    if name not in _REGISTRY:
        hint = did_you_mean(name, _REGISTRY)
        raise ValueError(f"head {name!r} is unknown; expected one of {', '.join(head_names())}{hint}")
    try:
        return _REGISTRY[name](FeatureShape(*shape), class_names, **options)
    except TypeError as error:
        raise TypeError(f"head {name!r}: {error}; its options are in the docstring of its class") from error
