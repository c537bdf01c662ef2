"""What every backbone gives, and the registry of backbones by name."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


class Features(NamedTuple):
    """What a backbone says of B clips of T frames.

    Attributes:
        tokens: ``[B, T, N, C]``, the visual tokens of each frame, row by row of the grid.
        class_token: ``[B, C]``, the global feature x_cls as it enters a classification head.
        grid: (h, w) with h·w = N.

    Examples:
        >>> import torch
        >>> from art import build_backbone
        >>> features = build_backbone("tiny", num_frames=2)(torch.rand(1, 2, 3, 112, 112))
        >>> features.tokens.shape, features.class_token.shape, features.grid
        (torch.Size([1, 2, 196, 144]), torch.Size([1, 144]), (14, 14))
    """

    tokens: Float[Tensor, "b t n c"]
    class_token: Float[Tensor, "b c"]
    grid: tuple[int, int]


class Backbone(nn.Module, ABC):
    """Base of the backbones: a module called with a video ``[B, T, 3, H, W]``, uint8 or float in 0..1, that returns
    :class:`Features`. A subclass sets the two attributes and normalises the colours itself.

    Attributes:
        channels: C of its features.
        input_size: the frame height and width that it is meant for (pixels).
    """

    channels: int
    input_size: int

    @abstractmethod
    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """Features of ``video``."""

    def video_head(self, num_classes: int) -> nn.Linear:
        """A linear head on ``class_token``; a backbone that can keep its checkpoint's overrides this."""
        return nn.Linear(self.channels, num_classes)

    def parameters_by_depth(self) -> list[list[nn.Parameter]] | None:
        """Every parameter once, in layers from the pixels on, for learning rates that fall towards them; None where the
        backbone does not say. See :func:`layered`."""
        return None


def layered(module: nn.Module, before: Sequence[str], layers: Sequence[str]) -> list[list[nn.Parameter]]:
    """The parameters of ``module`` by the beginnings of their names.

    Args:
        module: what has the parameters.
        before: of what comes before the first layer, and makes one of its own.
        layers: of each layer, in order. Everything else comes after them, and belongs to the last.
    """
    groups: list[list[nn.Parameter]] = [[] for _ in range(1 + len(layers))]
    for name, parameter in module.named_parameters():
        found = [i for i, start in enumerate(layers, start=1) if name.startswith(start)]
        groups[0 if name.startswith(tuple(before)) else found[0] if found else -1].append(parameter)
    return [group for group in groups if group]


Maker = Callable[..., Backbone]
_MAKERS: dict[str, Maker] = {}
M = TypeVar("M", bound=Maker)


def register_backbone(name: str) -> Callable[[M], M]:
    """Make a class or function, called with ``num_frames``, ``pretrained`` and its options, known as ``name``.

    Examples:
        >>> from art.backbones import Tiny, backbone_names, register_backbone
        >>> @register_backbone("narrow")
        ... class Narrow(Tiny):
        ...     def __init__(self, *, num_frames, pretrained=None):
        ...         super().__init__(num_frames=num_frames, pretrained=pretrained, width=8)
        >>> "narrow" in backbone_names()
        True
    """

    def register(maker: M) -> M:
        if name in _MAKERS:
            raise ValueError(f"backbone {name!r} is registered already; choose another name")
        _MAKERS[name] = maker
        return maker

    return register


def backbone_names() -> list[str]:
    """The names that :func:`build_backbone` knows, sorted.

    Examples:
        >>> from art.backbones import backbone_names
        >>> "uniformerv2_b16" in backbone_names()
        True
    """
    return sorted(_MAKERS)


def build_backbone(name: str, *, num_frames: int, pretrained: str | None = None, **options: Any) -> Backbone:
    """Build backbone ``name``.

    Args:
        name: one of :func:`backbone_names`.
        num_frames: T, frames a clip.
        pretrained: a path (or a tag that the backbone knows) of weights to begin with; None begins from scratch.
        options: the backbone's own.

    Raises:
        ValueError: an unknown name, or ``num_frames`` below 1.
        TypeError: an option that this backbone does not have.

    Examples:
        >>> from art import build_backbone
        >>> build_backbone("tiny", num_frames=2, width=16).channels
        96
    """
    if name not in _MAKERS:
        near = difflib.get_close_matches(name, _MAKERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"backbone {name!r} is unknown; expected one of {', '.join(backbone_names())}{hint}")
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}, expected at least 1")
    try:
        return _MAKERS[name](num_frames=num_frames, pretrained=pretrained, **options)
    except TypeError as error:
        raise TypeError(f"backbone {name!r}: {error}; its options are in the docstring of its class") from error


def as_unit_range(video: Shaped[Tensor, "b t 3 height width"]) -> Float[Tensor, "b t 3 height width"]:
    """The video as floats in 0..1; uint8 is divided by 255.

    Raises:
        ValueError: another rank or number of channels.
        TypeError: another dtype.
    """
    if video.ndim != 5 or video.shape[2] != 3:
        raise ValueError(f"video has shape {list(video.shape)}, expected [B, T, 3, H, W]")
    if video.dtype == torch.uint8:
        return video.to(torch.get_default_dtype()) / 255
    if not video.is_floating_point():
        raise TypeError(f"video has dtype {video.dtype}, expected uint8, or float with values in 0..1")
    return video
