"""The backbone interface, the registry of backbones, and what backbones share: normalization and checkpoint loading."""

from __future__ import annotations

import difflib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from art._deprecated import renamed_names
from art.terminal import list_names

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Constructor arguments by their former names, which are still accepted and are still the names in state dicts.
_RENAMED = {"colour_mean": "image_mean", "colour_std": "image_std"}
# Keys under which training scripts save the state dict.
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model_state", "model")
_MAX_LISTED = 20


class Features(NamedTuple):
    """Output of a backbone for B clips of T frames.

    Attributes:
        tokens: ``[B, T, N, C]``, the visual tokens of each frame, in row-major order of the grid.
        class_token: ``[B, C]``, the global feature x_cls, the input of a classification head.
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

    @classmethod
    def from_named(
        cls, named: Mapping[str, Tensor], grid: tuple[int, int], layers: Sequence[str] = ("last",)
    ) -> Features:
        """Return features of the output of :meth:`Backbone.named_features`, with T' time steps.

        The tokens of several layers, "last" or the number of a block, are concatenated along the token axis, and their
        grids vertically.
        """
        tokens = [named["tokens" if layer == "last" else f"tokens.{layer}"] for layer in layers]
        joined = tokens[0] if len(tokens) == 1 else torch.cat(tokens, -2)
        return cls(joined, named["class_token"], (len(tokens) * grid[0], grid[1]))


class Backbone(nn.Module, ABC):
    """Base class of the backbones: modules that map a video ``[B, T, 3, H, W]``, uint8 or floating point in 0..1, to
    :class:`Features`. A subclass sets the first three attributes and normalizes the colors itself.

    Attributes:
        channels: C of its features.
        input_size: height and width in pixels of the frames that it is meant for.
        grid: (h, w) of the tokens of such a frame.
        tubelet: number of consecutive frames that share the same tokens.
        framewise: whether each frame is processed separately, so that tokens do not depend on other frames.
        license: of the pretrained weights, as published with them; None if there are none, or it is unknown.
    """

    channels: int
    input_size: int
    grid: tuple[int, int]
    tubelet: int = 1
    framewise: bool = False
    license: str | None = None

    @abstractmethod
    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """Return the features of ``video``.

        Raises:
            ValueError: If the backbone does not support the shape: the number of frames, or their height and width.
            TypeError: If the dtype is neither uint8 nor floating point.
        """

    def named_features(
        self, video: Shaped[Tensor, "b t 3 height width"], layers: Sequence[int] = ()
    ) -> dict[str, Tensor]:
        """Return the features to store, without the repetition over the frames of a tubelet.

        Args:
            video: as in :meth:`forward`.
            layers: blocks, counted from 0, whose tokens are also returned; negative numbers count from the last.

        Returns:
            "tokens" ``[B, T', N, C]`` with T' = T / tubelet, "class_token" ``[B, C]``, "tokens.<layer>" for each of
            ``layers``, and "prefix" ``[B, T' or 1, P, C]``, the class and register tokens, if the backbone has them.
            ValueError is raised if it does not support ``layers``.
        """
        if layers:
            raise ValueError(f"layers is {list(layers)}, but {type(self).__name__} has tokens of its last layer only")
        features = self(video)
        return {"tokens": features.tokens[:, :: self.tubelet], "class_token": features.class_token}

    def video_head(self, num_classes: int) -> nn.Linear:
        """Return a new linear head on ``class_token``. Override to reuse the head of a checkpoint."""
        return nn.Linear(self.channels, num_classes)

    def parameters_by_depth(self) -> list[list[nn.Parameter]] | None:
        """Return every parameter once, grouped into layers from input to output, for layer-wise learning rate decay.

        None if the backbone does not support it. See :func:`group_params_by_layer`.
        """
        return None


def group_params_by_layer(module: nn.Module, stem: Sequence[str], layers: Sequence[str]) -> list[list[nn.Parameter]]:
    """Group the parameters of ``module`` by name prefix, in order and without empty groups.

    Args:
        stem: prefixes of the first group, the parameters in front of the first layer.
        layers: one prefix per layer, in order. All other parameters join the group of the last layer.
    """
    groups: list[list[nn.Parameter]] = [[] for _ in range(1 + len(layers))]
    for name, parameter in module.named_parameters():
        matches = [i for i, prefix in enumerate(layers, start=1) if name.startswith(prefix)]
        groups[0 if name.startswith(tuple(stem)) else matches[0] if matches else -1].append(parameter)
    return [group for group in groups if group]


BackboneFactory = Callable[..., Backbone]
_REGISTRY: dict[str, BackboneFactory] = {}
F = TypeVar("F", bound=BackboneFactory)


def register_backbone(name: str) -> Callable[[F], F]:
    """Return a decorator that registers a class or function as backbone ``name``.

    It is called with the keyword arguments ``num_frames``, ``pretrained``, and the options of the backbone.

    Raises:
        ValueError: If the name is already registered.

    Examples:
        >>> from art.backbones import Tiny, backbone_names, register_backbone
        >>> @register_backbone("narrow")
        ... class Narrow(Tiny):
        ...     def __init__(self, *, num_frames, pretrained=None):
        ...         super().__init__(num_frames=num_frames, pretrained=pretrained, width=8)
        >>> "narrow" in backbone_names()
        True
    """

    def register(factory: F) -> F:
        if name in _REGISTRY:
            raise ValueError(f"backbone {name!r} is already registered; choose another name")
        _REGISTRY[name] = factory
        return factory

    return register


def backbone_names() -> list[str]:
    """Return the names of all registered backbones, sorted.

    Examples:
        >>> from art.backbones import backbone_names
        >>> "uniformerv2_b16" in backbone_names()
        True
    """
    return sorted(_REGISTRY)


def build_backbone(name: str, *, num_frames: int, pretrained: str | None = None, **options: Any) -> Backbone:
    """Build a registered backbone.

    Args:
        name: one of :func:`backbone_names`.
        num_frames: T, frames per clip.
        pretrained: path of initial weights, or a tag that the backbone supports; None initializes them randomly.
        options: options of the backbone.

    Raises:
        ValueError: If the name is unknown, or ``num_frames`` is below 1.
        TypeError: If the backbone has no such option.

    Examples:
        >>> from art import build_backbone
        >>> build_backbone("tiny", num_frames=2, width=16).channels
        96
    """
    if name not in _REGISTRY:
        hint = did_you_mean(name, _REGISTRY)
        raise ValueError(f"backbone {name!r} is unknown; expected one of {', '.join(backbone_names())}{hint}")
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}, expected at least 1")
    options = {_RENAMED.get(option, option): value for option, value in options.items()}
    try:
        return _REGISTRY[name](num_frames=num_frames, pretrained=pretrained, **options)
    except TypeError as error:
        raise TypeError(f"backbone {name!r}: {error}; its options are in the docstring of its class") from error


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return "; did you mean ...?" with the closest of the known names, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def to_float01(video: Shaped[Tensor, "b t 3 height width"]) -> Float[Tensor, "b t 3 height width"]:
    """Return the video as floating point in 0..1; uint8 is divided by 255.

    Raises:
        ValueError: If ``video`` is not ``[B, T, 3, H, W]``.
        TypeError: If its dtype is neither uint8 nor floating point.
    """
    if video.ndim != 5 or video.shape[2] != 3:
        raise ValueError(f"video has shape {list(video.shape)}, expected [B, T, 3, H, W]")
    if video.dtype == torch.uint8:
        return video.to(torch.get_default_dtype()) / 255
    if not video.is_floating_point():
        raise TypeError(f"video has dtype {video.dtype}, expected uint8, or float with values in 0..1")
    return video


A = TypeVar("A", bound="AdaptedBackbone")


class AdaptedBackbone(Backbone):
    """Base class of backbones that wrap a model of another library.

    Transformers among its subclasses also have the option ``gradient_checkpointing``: recompute the activations of each
    block in the backward pass, with less memory, more time, and the same result.

    Args:
        model: the library's model, or the part of it that computes features.
        channels: C of its features.
        input_size, patch_size: height and width of a frame and of a patch in pixels.
        image_mean, image_std: mean and standard deviation of red, green, and blue in training. They belong to the
            weights and are part of the state dict: a saved model keeps those of its pretrained weights.
        frozen: disable gradients and keep the model in eval mode (no dropout, fixed statistics).

    Raises:
        ValueError: If patches do not tile a frame, or ``image_mean`` or ``image_std`` is invalid.
    """

    colour_mean: Tensor
    colour_std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        channels: int,
        input_size: int,
        patch_size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        frozen: bool,
    ) -> None:
        super().__init__()
        check_tiling(input_size, patch_size)
        self.model = model
        self.channels, self.input_size = channels, input_size
        self.grid = (input_size // patch_size, input_size // patch_size)
        for key, name, values in zip(_RENAMED, _RENAMED.values(), (image_mean, image_std), strict=True):
            if len(values) != 3 or (name == "image_std" and min(values) <= 0):
                raise ValueError(
                    f"{name} is {list(values)}, expected three numbers{', above 0' * (name == 'image_std')}: "
                    "of red, green, and blue in 0..1"
                )
            self.register_buffer(key, torch.tensor(list(values), dtype=torch.float32)[:, None, None])
        self.frozen = frozen
        if frozen:
            model.requires_grad_(False)
            model.eval()

    @property
    def image_mean(self) -> Tensor:
        """Mean of red, green, and blue, ``[3, 1, 1]``."""
        return self.colour_mean

    @property
    def image_std(self) -> Tensor:
        """Standard deviation of red, green, and blue, ``[3, 1, 1]``."""
        return self.colour_std

    def train(self: A, mode: bool = True) -> A:
        """Set the mode as ``nn.Module.train`` does; a frozen model stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def normalize(self, video: Shaped[Tensor, "b t 3 height width"]) -> Float[Tensor, "b t 3 height width"]:
        """Normalize the colors with the model's mean and standard deviation.

        Raises:
            ValueError: If the video has another shape, or its frames are not ``input_size`` pixels square.
            TypeError: If its dtype is neither uint8 nor floating point.
        """
        video = to_float01(video)
        check_frame_size(video, self.input_size, self.grid)
        return (video - self.image_mean) / self.image_std


def check_frame_size(video: Shaped[Tensor, "b t 3 height width"], input_size: int, grid: tuple[int, int]) -> None:
    """Raise ValueError unless frames are ``input_size`` pixels square."""
    if video.shape[3:] != (input_size, input_size):
        patch_size = input_size // grid[0]
        raise ValueError(
            f"video has frames of {video.shape[3]}×{video.shape[4]} pixels, but the model is built for "
            f"{grid[0]}×{grid[1]} patches of {patch_size}: expected {input_size}×{input_size}; for another square size "
            f"set input_size to a multiple of {patch_size}"
        )


def convolve_over_time(
    convolution: Callable[[Tensor], Tensor], x: Float[Tensor, "bt c h w"], num_frames: int
) -> Float[Tensor, "bt c h w"]:
    """View B·T frames as images ``[B, C, T, h·w]``, without a copy if they are channels last, and convolve them."""
    bt, c, h, w = x.shape
    clips = x.permute(0, 2, 3, 1).reshape(bt // num_frames, num_frames, h * w, c).permute(0, 3, 1, 2)
    return convolution(clips).permute(0, 2, 3, 1).reshape(bt, h, w, c).permute(0, 3, 1, 2)


def check_layer(layer: int, count: int) -> int:
    """Return the index of a block, counted from 0, or raise ValueError. Negative numbers count from the last."""
    if not -count <= layer < count:
        raise ValueError(f"layers contains {layer}, expected {-count} to {count - 1}: the backbone has {count} blocks")
    return layer % count


def check_tiling(input_size: int, patch_size: int) -> None:
    """Raise ValueError unless patches tile a frame."""
    if input_size < patch_size or input_size % patch_size:
        below = max(1, input_size // patch_size) * patch_size
        raise ValueError(
            f"input_size is {input_size}, expected a multiple of the patch size, {patch_size}, "
            f"such as {below} or {below + patch_size}"
        )


def is_tag(pretrained: str | None, tags: Sequence[str], model: str) -> bool:
    """Return whether ``pretrained`` is one of ``tags``, which the library downloads, and not a file or None.

    Raises:
        FileNotFoundError: If it is neither a tag nor a file.
    """
    if pretrained is None or pretrained in tags:
        return pretrained is not None
    if not Path(pretrained).is_file():
        known = f"a tag of {model} ({', '.join(tags)})" if tags else f"a tag ({model} has none)"
        raise FileNotFoundError(f"pretrained is {pretrained!r}: expected the path of a checkpoint, or {known}")
    return False


def read_checkpoint(path: str | os.PathLike[str], *, prefixes: Sequence[str] = ()) -> dict[str, Tensor]:
    """Read the state dict in a checkpoint file to the CPU.

    Args:
        path: a ``.safetensors`` file, or a file written by ``torch.save`` with a state dict, or with a dict that
            contains one under "state_dict", "model_state_dict", "model_state", or "model". Only tensors and plain
            containers are unpickled.
        prefixes: removed from the start of each name where present, in this order ("module." of a wrapper).

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file contains no state dict, cannot be read by ``torch.load(weights_only=True)``, or two
            names are equal without their prefixes.
    """
    path = Path(path)
    if not path.is_file():
        problem = "is a directory without a checkpoint" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"pretrained is {str(path)!r}: {problem}; expected the path of a checkpoint")
    state: dict[str, Tensor] = {}
    for name, tensor in _read_state_dict(path).items():
        for prefix in prefixes:
            name = name.removeprefix(prefix)
        if name in state:
            raise ValueError(f"{path} contains {name!r} twice, with and without a prefix ({', '.join(prefixes)})")
        state[name] = tensor
    return state


def load_by_name(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str | os.PathLike[str],
    expected: str,
    optional: Collection[str] = (),
) -> list[str]:
    """Load ``state`` into ``module``, converting dtypes. Names and shapes must match.

    The ``num_batches_tracked`` of batch normalization may be missing, as in checkpoints from before PyTorch 0.4.1: it
    has no effect if the momentum is a number.

    Args:
        source, expected: the file and a description of a matching checkpoint, for error messages.
        optional: names that may be missing from ``state``; they keep their values.

    Returns:
        The optional names that are missing from ``state``, in the module's order.

    Raises:
        ValueError: If names are missing or unexpected, or shapes differ. The message lists all of them; nothing is
            loaded.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    errors = {
        "missing": [n for n in missing if n not in optional and not n.endswith("num_batches_tracked")],
        "unexpected": [name for name in state if name not in own],
        "with another shape": [
            f"{name} {list(state[name].shape)}, expected {list(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    if any(errors.values()):
        lines = [f"  {len(names)} {what}: {list_names(names, _MAX_LISTED)}" for what, names in errors.items() if names]
        raise ValueError("\n".join([f"{source} does not match the model:", *lines, f"  Expected {expected}"]))
    module.load_state_dict(dict(state), strict=False)
    return [name for name in missing if name in optional]


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"pretrained: {path} is not a safetensors file: {error}") from error
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # invalid bytes can raise any exception
        raise ValueError(
            f"pretrained: {path} cannot be read with torch.load(weights_only=True), and unpickling anything else could "
            "execute arbitrary code; if you trust the file, save its state dict separately with torch.save. "
            f"{type(error).__name__}: {(str(error) or 'unexpected end of file').splitlines()[0]}"
        ) from error
    nested = [saved[key] for key in _STATE_DICT_KEYS if key in saved] if isinstance(saved, Mapping) else []
    for state in (saved, *nested):
        if isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values()):
            return dict(state)
    keys = (
        f" with the keys {list_names([str(key) for key in saved], _MAX_LISTED)}" if isinstance(saved, Mapping) else ""
    )
    raise ValueError(
        f"pretrained: {path} contains a {type(saved).__name__}{keys}; expected a state dict, or a dict with one under "
        f"{', '.join(_STATE_DICT_KEYS)}"
    )


__getattr__ = renamed_names(__name__, {"as_unit_range": "to_float01", "layered": "group_params_by_layer"})
