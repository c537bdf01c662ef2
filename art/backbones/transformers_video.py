"""``videomae``, ``vivit``, ``timesformer``: the video models of transformers (extra ``[transformers]``)."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from art.backbones.adapted import IMAGENET_COLOURS, AdaptedBackbone, Colours, check_tiling, chosen_colours
from art.backbones.checkpoint import load_by_name
from art.backbones.interface import Features, layered, register_backbone
from art.extras import import_extra

# Fields of a configuration that this file sets, and that concern parts that are not used here.
SET_HERE = ("num_frames", "image_size", "num_channels")
OF_OTHER_PARTS = ("decoder_", "norm_pix_loss", "pooler_")
# Fields that a checkpoint does not decide: they act in training, or before it.
FREE = ("initializer_range", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
# What a checkpoint may hold beside the features: a classifier, a decoder of masked patches, a pooler.
BESIDE = ("classifier.", "decoder.", "encoder_to_decoder.", "mask_token", "pooler.", "vivit.pooler.")


@dataclass(frozen=True)
class Family:
    """What one family of video models has of its own.

    Attributes:
        name: of transformers' classes, before "Config" and "ForVideoClassification".
        colours: mean and deviation of its published training, where a checkpoint does not say.
        patch: (frames, pixels) of a patch, from a configuration.
        split: tokens ``[B, T', N, C]`` in order and x_cls ``[B, C]``, from the last hidden state ``[B, L, C]`` of T'
            frames of tokens.
        fit: a checkpoint's state for other numbers of frames and pixels, from the state and what it shall fit.
        fixed: which of the fields "num_frames" and "image_size" a checkpoint decides, because its positions cannot be
            interpolated.
    """

    name: str
    colours: Colours
    patch: Callable[[Any], tuple[int, int]]
    split: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    fit: Callable[[dict[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]
    fixed: tuple[str, ...]


def _side(patch: int | Sequence[int]) -> int:
    return patch if isinstance(patch, int) else patch[0]


def _mean_of_all(hidden: Float[Tensor, "b l c"], num_frames: int) -> tuple[Tensor, Tensor]:
    return hidden.unflatten(1, (num_frames, -1)), hidden.mean(1)


def _class_token_first(hidden: Float[Tensor, "b l c"], num_frames: int) -> tuple[Tensor, Tensor]:
    return hidden[:, 1:].unflatten(1, (num_frames, -1)), hidden[:, 0]


def _time_innermost(hidden: Float[Tensor, "b l c"], num_frames: int) -> tuple[Tensor, Tensor]:
    return hidden[:, 1:].unflatten(1, (-1, num_frames)).transpose(1, 2), hidden[:, 0]


def _as_it_is(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return state


def _nearest(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """TimeSformer's positions in space and time, interpolated as transformers does in its forward pass."""
    space, time = (f"timesformer.embeddings.{name}_embeddings" for name in ("position", "time"))
    state = dict(state)
    if space in state and state[space].shape != own[space].shape:
        side, target = (int((positions.shape[1] - 1) ** 0.5) for positions in (state[space], own[space]))
        grid = state[space][:, 1:].transpose(1, 2).unflatten(2, (side, side))
        grid = F.interpolate(grid, (target, target), mode="nearest").flatten(2).transpose(1, 2)
        state[space] = torch.cat([state[space][:, :1], grid], dim=1)
    if time in state and state[time].shape != own[time].shape:
        length = own[time].shape[1]
        state[time] = F.interpolate(state[time].transpose(1, 2), length, mode="nearest").transpose(1, 2)
    return state


FAMILIES = {
    "videomae": Family(
        name="VideoMAE",
        colours=IMAGENET_COLOURS,
        patch=lambda config: (config.tubelet_size, _side(config.patch_size)),
        split=_mean_of_all,
        fit=_as_it_is,
        fixed=("image_size",),  # its positions are a formula of the number of the patch, which more frames go on with
    ),
    "vivit": Family(
        name="Vivit",
        colours=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        patch=lambda config: (config.tubelet_size[0], config.tubelet_size[1]),
        split=_class_token_first,
        fit=_as_it_is,
        fixed=("num_frames", "image_size"),
    ),
    "timesformer": Family(
        name="Timesformer",
        colours=((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
        patch=lambda config: (1, _side(config.patch_size)),
        split=_time_innermost,
        fit=_nearest,
        fixed=(),
    ),
}


class TransformersVideo(AdaptedBackbone):
    """A video model of transformers: VideoMAE, ViViT or TimeSformer.

    ``tokens`` are its last hidden state; where a patch covers several frames, these get the same tokens.
    ``class_token`` is what enters the library's classifier: the class token, or for VideoMAE, which has none, the
    normalised mean of the tokens (the mean too with ``use_mean_pooling=False``, where the library takes the first
    patch).

    Args:
        family: which.
        num_frames: T, a multiple of the frames in a patch.
        pretrained: a folder that ``save_pretrained`` of transformers wrote, or a name on its hub, as "owner/model"
            (downloaded on first use); with or without a classifier, which is left out. Its architecture must be that of
            the other arguments, so that a saved model can be built without it. TimeSformer's positions are interpolated
            to ``num_frames`` and ``input_size``; VideoMAE's fit any number of frames, but only the checkpoint's size of
            frames; ViViT's fit only the checkpoint's of both.
        input_size: height and width of a frame in pixels, a multiple of the patch size; None is 224.
        frozen: no gradients, no dropout.
        gradient_checkpointing: keep only the input of each block in training and compute the block again in the
            backward pass: less memory, more time, the same result.
        colour_mean: of red, green and blue; None is the checkpoint's, where it says, else that of the published
            training.
        colour_std: likewise, the deviations.
        config: fields of transformers' configuration of the family, each with its default there.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        FileNotFoundError: ``pretrained`` is no folder and no name on the hub.
        ValueError: frames or sizes that do not fit the patches; a value that the configuration refuses; a checkpoint of
            another architecture: which fields differ, or which names.
        TypeError: a field that the configuration does not have.
    """

    def __init__(
        self,
        family: Family,
        *,
        num_frames: int,
        pretrained: str | None = None,
        input_size: int | None = None,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
        colour_mean: Sequence[float] | None = None,
        colour_std: Sequence[float] | None = None,
        **config: Any,
    ) -> None:
        transformers = import_extra("transformers", extra="transformers", needed_by=f"backbone {family.name.lower()!r}")
        maker = getattr(transformers, f"{family.name}ForVideoClassification")
        size = 224 if input_size is None else input_size
        settings = _configuration(maker.config_class, config, num_frames=num_frames, image_size=size)
        tubelet, patch_size = family.patch(settings)
        _check_frames(num_frames, tubelet)
        check_tiling(size, patch_size)
        told = None if pretrained is None else _checked_source(pretrained, family, settings)
        whole = maker(settings)
        whole.classifier = nn.Identity()
        if gradient_checkpointing:
            # transformers renames it on the way to version 6.
            newer = getattr(whole, "activation_checkpointing_enable", None)
            (newer or whole.gradient_checkpointing_enable)({"use_reentrant": False})
        super().__init__(
            whole,
            channels=settings.hidden_size,
            input_size=size,
            patch_size=patch_size,
            colours=chosen_colours(colour_mean, colour_std, told or family.colours),
            frozen=frozen,
        )
        self.family, self.num_frames, self.tubelet = family, num_frames, tubelet
        if pretrained is not None:
            _load(whole, pretrained, family)

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """See :class:`~art.backbones.interface.Backbone`.

        Raises:
            ValueError: another shape, another number of frames than ``num_frames``, or another size of them than
                ``input_size``.
            TypeError: another dtype.
        """
        video = self.prepared(video)
        if video.shape[1] != self.num_frames:
            raise ValueError(
                f"video has {video.shape[1]} frames a clip (shape {list(video.shape)}), expected {self.num_frames}, "
                f"for which there are positions; build the backbone with num_frames={video.shape[1]}"
            )
        hidden = self.model.base_model(video).last_hidden_state  # type: ignore[operator]
        tokens, class_token = self.family.split(hidden, self.num_frames // self.tubelet)
        norm = getattr(self.model, "fc_norm", None)
        if self.tubelet > 1:
            tokens = tokens.repeat_interleave(self.tubelet, dim=1)
        return Features(tokens, class_token if norm is None else norm(class_token), self.grid)

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """The embedding, and each block."""
        whole: Any = self.model
        base, count = whole.base_model_prefix, whole.config.num_hidden_layers
        layers = f"{base}.layers" if hasattr(whole.base_model, "layers") else f"{base}.encoder.layer"
        return layered(whole, (f"{base}.embeddings.",), [f"{layers}.{i}." for i in range(count)])


def _configuration(config_class: Any, given: Mapping[str, Any], **set_here: int) -> Any:
    """transformers' configuration, from fields that it knows."""
    from huggingface_hub.errors import StrictDataclassError

    known = [name for name in _fields(config_class) if name not in SET_HERE]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            instead = "input_size" if name == "image_size" else near[0] if near else ""
            hint = f"did you mean {instead!r}?" if instead else f"the fields are {', '.join(known)}"
            raise TypeError(f"{config_class.__name__} has no field {name!r} to be set; {hint}")
    try:
        settings = config_class(**given, **set_here)
    except StrictDataclassError as error:
        raise ValueError(f"{config_class.__name__}: {' '.join(str(error).split())}") from error
    _check_supported(settings)
    return settings


def _fields(config_class: Any) -> list[str]:
    """The fields of a family's own that concern what is used here."""
    return [
        name for name in config_class.__annotations__ if name != "model_type" and not name.startswith(OF_OTHER_PARTS)
    ]


def _check_supported(settings: Any) -> None:
    """Raise ValueError at what the configuration allows and this adapter does not."""
    patch = settings.tubelet_size[1:] if settings.model_type == "vivit" else settings.patch_size
    if not isinstance(patch, int) and len(set(patch)) != 1:
        raise ValueError(f"a patch has {list(patch)} pixels, expected a square")
    if getattr(settings, "attention_type", "") == "space_only":
        raise ValueError(
            "attention_type is 'space_only', for which transformers has no answer for a whole clip; "
            "expected 'divided_space_time' or 'joint_space_time'"
        )
    if settings.hidden_size % settings.num_attention_heads:
        raise ValueError(
            f"hidden_size is {settings.hidden_size}, expected a multiple of num_attention_heads, "
            f"{settings.num_attention_heads}"
        )


def _check_frames(num_frames: int, tubelet: int) -> None:
    if num_frames % tubelet:
        below = num_frames // tubelet * tubelet
        fitting = " or ".join(str(n) for n in (below, below + tubelet) if n > 0)
        raise ValueError(
            f"num_frames is {num_frames}, expected a multiple of the {tubelet} frames of a patch (tubelet_size), "
            f"such as {fitting}"
        )


def _checked_source(pretrained: str, family: Family, settings: Any) -> Colours | None:
    """The colours that a checkpoint tells, if it does.

    Raises:
        FileNotFoundError: ``pretrained`` is no folder and no name on the hub.
        ValueError: its architecture is not that of ``settings``.
    """
    if not Path(pretrained).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", pretrained):
        raise FileNotFoundError(
            f"pretrained is {pretrained!r}: expected a folder written by save_pretrained of transformers, or a name on "
            "its hub as 'owner/model'"
        )
    told, _ = type(settings).get_config_dict(pretrained)
    if told.get("model_type") != settings.model_type:
        raise ValueError(
            f"{pretrained} is a checkpoint of {told.get('model_type')!r}, expected one of {settings.model_type!r}"
        )
    theirs = type(settings).from_dict(told)
    names = [name for name in _fields(type(settings)) if name not in SET_HERE and name not in FREE]
    differ = [name for name in (*names, *family.fixed) if _plain(theirs, name) != _plain(settings, name)]
    if differ:
        options = {"image_size": "input_size"}
        raise ValueError(
            f"{pretrained} is of another architecture: "
            + ", ".join(f"{name} is {_plain(theirs, name)}, here {_plain(settings, name)}" for name in differ)
            + ". What would fit: "
            + ", ".join(f"{options.get(name, name)}={_plain(theirs, name)!r}" for name in differ)
        )
    return _told_colours(pretrained)


def _plain(settings: Any, name: str) -> Any:
    value = getattr(settings, name)
    return list(value) if isinstance(value, tuple) else value


def _told_colours(pretrained: str) -> Colours | None:
    from transformers.utils import cached_file

    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        path = cached_file(pretrained, name, _raise_exceptions_for_missing_entries=False)
        told = {} if path is None else json.loads(Path(path).read_text())
        if "image_mean" in told and "image_std" in told:
            return told["image_mean"], told["image_std"]
    return None


def _load(whole: Any, pretrained: str, family: Family) -> None:
    """Fill ``whole`` with the checkpoint, of the same architecture, without its classifier.

    Raises:
        ValueError: names or shapes differ.
    """
    published, info = type(whole).from_pretrained(pretrained, dtype=torch.float32, output_loading_info=True)
    # The normalisation before a classifier is as new as the classifier is where a checkpoint has none.
    faults = {
        "missing": [n for n in info["missing_keys"] if not n.startswith(("classifier.", "fc_norm."))],
        "unexpected": [n for n in info["unexpected_keys"] if not n.startswith(BESIDE)],
        "of another shape": [str(entry) for entry in info["mismatched_keys"]],
    }
    found = [f"{len(names)} {what}: {', '.join(sorted(names)[:20])}" for what, names in faults.items() if names]
    if found:
        raise ValueError(f"{pretrained} does not fit its configuration: {'; '.join(found)}")
    published.classifier = nn.Identity()
    state = family.fit(published.state_dict(), whole.state_dict())
    load_by_name(whole, state, source=pretrained, fits=f"a checkpoint of {type(whole).__name__}")


for _name, _family in FAMILIES.items():
    register_backbone(_name)(functools.partial(TransformersVideo, _family))
