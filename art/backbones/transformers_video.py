"""Backbones ``videomae``, ``vivit``, and ``timesformer``: video models of transformers (extra ``[transformers]``)."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor, nn

from art.backbones.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AdaptedBackbone,
    Features,
    check_layer,
    check_tiling,
    did_you_mean,
    group_params_by_layer,
    load_by_name,
    register_backbone,
)
from art.extras import import_extra

# Configuration fields that the arguments set, and prefixes of fields of modules that are not used.
FIXED_FIELDS = ("num_frames", "image_size", "num_channels")
UNUSED_FIELDS = ("decoder_", "norm_pix_loss", "pooler_")
# Fields in which a checkpoint may differ: they only affect training or initialization.
TRAINING_FIELDS = ("initializer_range", "hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
# Prefixes of parameters in a checkpoint that are not used: classifier, decoder of masked patches, pooler.
UNUSED_PARAMETERS = ("classifier.", "decoder.", "encoder_to_decoder.", "mask_token", "pooler.", "vivit.pooler.")


@dataclass(frozen=True)
class Family:
    """Properties of one family of video models."""

    name: str  # prefix of the class names in transformers ("<name>Config", "<name>ForVideoClassification")
    image_mean: Sequence[float]  # color normalization in the published training
    image_std: Sequence[float]
    patch: Callable[[Any], tuple[int, int]]  # returns (frames, pixels) of a patch for a configuration
    # Returns tokens [B, T', N, C] and x_cls [B, C], for the hidden state [B, L, C] and T' = frames / frames of a patch.
    split: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    num_prefix: int  # class tokens in front of the hidden state
    fixed: tuple[str, ...]  # which of the fields "num_frames" and "image_size" must equal the checkpoint's
    # Returns a checkpoint's state dict with positions interpolated to those of the model's; None: not supported.
    resize: Callable[[dict[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]] | None = None


def _square(patch: int | Sequence[int]) -> int:
    return patch if isinstance(patch, int) else patch[0]


def _resize_timesformer(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Interpolate positions in space and time as transformers does in its forward pass."""
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
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        patch=lambda config: (config.tubelet_size, _square(config.patch_size)),
        split=lambda hidden, steps: (hidden.unflatten(1, (steps, -1)), hidden.mean(1)),
        num_prefix=0,
        fixed=("image_size",),  # positions are a function of the patch index, which extends to more frames
    ),
    "vivit": Family(
        name="Vivit",
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        patch=lambda config: (config.tubelet_size[0], config.tubelet_size[1]),
        split=lambda hidden, steps: (hidden[:, 1:].unflatten(1, (steps, -1)), hidden[:, 0]),
        num_prefix=1,
        fixed=("num_frames", "image_size"),
    ),
    "timesformer": Family(
        name="Timesformer",
        image_mean=(0.45, 0.45, 0.45),
        image_std=(0.225, 0.225, 0.225),
        patch=lambda config: (1, _square(config.patch_size)),
        split=lambda hidden, steps: (hidden[:, 1:].unflatten(1, (-1, steps)).transpose(1, 2), hidden[:, 0]),
        num_prefix=1,
        fixed=(),
        resize=_resize_timesformer,
    ),
}


class TransformersVideo(AdaptedBackbone):
    """A video model of transformers: VideoMAE, ViViT, or TimeSformer.

    ``tokens`` are the last hidden state; the frames of one patch share the same tokens. ``class_token`` is the input of
    the library's classifier: the class token or, for VideoMAE, which has none, the normalized mean of the tokens (with
    ``use_mean_pooling=False`` too, where the library takes the first patch).

    Args:
        family: properties of the family.
        num_frames: T, a multiple of the frames in a patch.
        pretrained: a directory written by ``save_pretrained`` of transformers, or the name "owner/model" on the Hugging
            Face Hub (downloaded on first use). A classifier is ignored. The architecture must be that of the other
            arguments, so that a saved model can be rebuilt without it. Positions of TimeSformer are interpolated to
            ``num_frames`` and ``input_size``; those of VideoMAE support any number of frames of the checkpoint's size;
            those of ViViT support only the checkpoint's number and size.
        input_size: height and width of a frame in pixels, a multiple of the patch size. Default: 224.
        frozen: see :class:`~art.backbones.base.AdaptedBackbone`.
        gradient_checkpointing: see :class:`~art.backbones.base.AdaptedBackbone`.
        image_mean: means of the color normalization. Default: those of the checkpoint, if it has a preprocessor
            configuration, otherwise those of the published training.
        image_std: its standard deviations, with the same default.
        config: fields of the family's configuration in transformers, with the defaults there.

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        FileNotFoundError: If ``pretrained`` is neither a directory nor the name of a repository.
        ValueError: If patches do not tile the video, the configuration rejects a value, or the checkpoint has another
            architecture: the message lists the fields or names that differ.
        TypeError: If the configuration has no such field.
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
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        **config: Any,
    ) -> None:
        transformers = import_extra("transformers", extra="transformers", needed_by=f"backbone {family.name.lower()!r}")
        model_class = getattr(transformers, f"{family.name}ForVideoClassification")
        size = 224 if input_size is None else input_size
        settings = _make_config(model_class.config_class, config, num_frames=num_frames, image_size=size)
        tubelet, patch_size = family.patch(settings)
        if num_frames % tubelet:
            below = num_frames // tubelet * tubelet
            valid = " or ".join(str(n) for n in (below, below + tubelet) if n > 0)
            raise ValueError(
                f"num_frames is {num_frames}, expected a multiple of the {tubelet} frames of a patch (tubelet_size), "
                f"such as {valid}"
            )
        check_tiling(size, patch_size)
        mean, std = family.image_mean, family.image_std
        if pretrained is not None:
            _check_checkpoint(pretrained, family, settings)
            mean, std = _checkpoint_mean_std(pretrained) or (mean, std)
        model = model_class(settings)
        model.classifier = nn.Identity()
        if gradient_checkpointing:
            # transformers 6 renames the method.
            renamed = getattr(model, "activation_checkpointing_enable", None)
            (renamed or model.gradient_checkpointing_enable)({"use_reentrant": False})
        super().__init__(
            model,
            channels=settings.hidden_size,
            input_size=size,
            patch_size=patch_size,
            image_mean=mean if image_mean is None else image_mean,
            image_std=std if image_std is None else image_std,
            frozen=frozen,
        )
        self.family, self.num_frames, self.tubelet = family, num_frames, tubelet
        if pretrained is not None:
            _load(model, pretrained, family)

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """Return the features of ``num_frames`` frames, ``input_size`` pixels square."""
        named = self.named_features(video)
        tokens = named["tokens"]
        if self.tubelet > 1:
            tokens = tokens.repeat_interleave(self.tubelet, dim=1)
        return Features(tokens, named["class_token"], self.grid)

    def named_features(
        self, video: Shaped[Tensor, "b t 3 height width"], layers: Sequence[int] = ()
    ) -> dict[str, Tensor]:
        """Return the features to store; see :meth:`Backbone.named_features`.

        Tokens of ``layers`` are hidden states as the library returns them, before its last normalization.
        """
        video = self.normalize(video)
        if video.shape[1] != self.num_frames:
            raise ValueError(
                f"video has {video.shape[1]} frames per clip (shape {list(video.shape)}), expected {self.num_frames}; "
                f"build the backbone with num_frames={video.shape[1]}"
            )
        model: Any = self.model
        blocks = [check_layer(layer, model.config.num_hidden_layers) for layer in layers]
        output = model.base_model(video, output_hidden_states=bool(blocks))
        hidden, steps = output.last_hidden_state, self.num_frames // self.tubelet
        tokens, class_token = self.family.split(hidden, steps)
        norm = getattr(self.model, "fc_norm", None)
        named = {"tokens": tokens, "class_token": class_token if norm is None else norm(class_token)}
        for layer, block in zip(layers, blocks, strict=True):
            named[f"tokens.{layer}"] = self.family.split(output.hidden_states[block + 1], steps)[0]
        if self.family.num_prefix:
            named["prefix"] = hidden[:, None, : self.family.num_prefix]
        return named

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """Return one group for the embedding and one per block."""
        model: Any = self.model
        base, count = model.base_model_prefix, model.config.num_hidden_layers
        layers = f"{base}.layers" if hasattr(model.base_model, "layers") else f"{base}.encoder.layer"
        return group_params_by_layer(model, (f"{base}.embeddings.",), [f"{layers}.{i}." for i in range(count)])


def _make_config(config_class: Any, options: Mapping[str, Any], **fixed: int) -> Any:
    """Build the configuration and check that its fields exist and that this backbone supports their values."""
    from huggingface_hub.errors import StrictDataclassError

    known = [name for name in _used_fields(config_class) if name not in FIXED_FIELDS]
    for name in options:
        if name not in known:
            hint = "; did you mean 'input_size'?" if name == "image_size" else did_you_mean(name, known)
            hint = hint or f"; the fields are {', '.join(known)}"
            raise TypeError(f"{config_class.__name__} has no configurable field {name!r}{hint}")
    try:
        settings = config_class(**options, **fixed)
    except StrictDataclassError as error:
        raise ValueError(f"{config_class.__name__}: {' '.join(str(error).split())}") from error
    patch = settings.tubelet_size[1:] if settings.model_type == "vivit" else settings.patch_size
    if not isinstance(patch, int) and len(set(patch)) != 1:
        raise ValueError(f"a patch has {list(patch)} pixels, expected a square")
    if getattr(settings, "attention_type", "") == "space_only":
        raise ValueError(
            "attention_type is 'space_only', which does not attend across frames; "
            "expected 'divided_space_time' or 'joint_space_time'"
        )
    if settings.hidden_size % settings.num_attention_heads:
        raise ValueError(
            f"hidden_size is {settings.hidden_size}, expected a multiple of num_attention_heads, "
            f"{settings.num_attention_heads}"
        )
    return settings


def _used_fields(config_class: Any) -> list[str]:
    """Return the names of the family's fields, except those of modules that are not used."""
    return [
        name for name in config_class.__annotations__ if name != "model_type" and not name.startswith(UNUSED_FIELDS)
    ]


def _check_checkpoint(pretrained: str, family: Family, settings: Any) -> None:
    """Check that a checkpoint exists and has the architecture of ``settings``."""
    if not Path(pretrained).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", pretrained):
        raise FileNotFoundError(
            f"pretrained is {pretrained!r}: expected a directory written by save_pretrained of transformers, or "
            "'owner/model' on the Hugging Face Hub"
        )
    config_class = type(settings)
    saved, _ = config_class.get_config_dict(pretrained)
    if saved.get("model_type") != settings.model_type:
        raise ValueError(
            f"{pretrained} is a checkpoint of {saved.get('model_type')!r}, expected one of {settings.model_type!r}"
        )
    names = [name for name in _used_fields(config_class) if name not in (*FIXED_FIELDS, *TRAINING_FIELDS)]
    saved_values, own_values = (
        {name: _list_from_tuple(getattr(config, name)) for name in (*names, *family.fixed)}
        for config in (config_class.from_dict(saved), settings)
    )
    differing = [name for name in saved_values if saved_values[name] != own_values[name]]
    if differing:
        options = {"image_size": "input_size"}
        raise ValueError(
            f"{pretrained} has another architecture: "
            + ", ".join(f"{name} is {saved_values[name]}, here {own_values[name]}" for name in differing)
            + ". Matching options: "
            + ", ".join(f"{options.get(name, name)}={saved_values[name]!r}" for name in differing)
        )


def _list_from_tuple(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _checkpoint_mean_std(pretrained: str) -> tuple[Sequence[float], Sequence[float]] | None:
    """Return mean and standard deviation of a checkpoint's preprocessor configuration, None if it has none."""
    from transformers.utils import cached_file

    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        path = cached_file(pretrained, name, _raise_exceptions_for_missing_entries=False)
        config = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
        if "image_mean" in config and "image_std" in config:
            return config["image_mean"], config["image_std"]
    return None


def _load(model: Any, pretrained: str, family: Family) -> None:
    """Load a checkpoint with the same architecture, without its classifier."""
    published, info = type(model).from_pretrained(pretrained, dtype=torch.float32, output_loading_info=True)
    # A checkpoint without a classifier has no normalization in front of it either.
    errors = {
        "missing": [n for n in info["missing_keys"] if not n.startswith(("classifier.", "fc_norm."))],
        "unexpected": [n for n in info["unexpected_keys"] if not n.startswith(UNUSED_PARAMETERS)],
        "with another shape": [str(entry) for entry in info["mismatched_keys"]],
    }
    messages = [f"{len(names)} {what}: {', '.join(sorted(names)[:20])}" for what, names in errors.items() if names]
    if messages:
        raise ValueError(f"{pretrained} does not match its configuration: {'; '.join(messages)}")
    published.classifier = nn.Identity()
    state = published.state_dict()
    if family.resize is not None:
        state = family.resize(state, model.state_dict())
    load_by_name(model, state, source=pretrained, expected=f"a checkpoint of {type(model).__name__}")


for _name, _family in FAMILIES.items():
    register_backbone(_name)(functools.partial(TransformersVideo, _family))
