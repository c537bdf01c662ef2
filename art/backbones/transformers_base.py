"""What the backbones from transformers (extra ``[transformers]``) share: configuration, checkpoints and license."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from art.backbones.base import (
    AdaptedBackbone,
    check_tiling,
    did_you_mean,
    group_params_by_layer,
    load_by_name,
    register_backbone,
)
from art.extras import import_extra

# Prefixes of configuration fields of modules that are not used, or that do not change the features.
UNUSED_FIELDS = (
    "decoder_",
    "norm_pix_loss",
    "pooler_",
    "pred_",
    "num_pooler_layers",
    "num_auxiliary_layers",
    "apply_l2norm",
    "_out_",
    "apply_layernorm",
    "reshape_hidden_states",
    "use_mask_token",
    "vision_use_head",
)
# Fields in which a checkpoint may differ: they only affect training or initialization.
TRAINING_FIELDS = (
    "initializer_range",
    "layerscale_value",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "drop_path_rate",
    "pos_embed_shift",
    "pos_embed_jitter",
    "pos_embed_rescale",
)
# Licenses of published weights whose model card cannot be read (offline), by the start of their name on the Hub.
LICENSES = {
    "facebook/dinov2-": "apache-2.0",
    "facebook/dinov3-": "dinov3-license",
    "google/siglip2-": "apache-2.0",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Properties of one family of models."""

    model: str  # class in transformers
    input_size: int = 224  # default height and width of a frame
    image_mean: Sequence[float]  # color normalization in the published training
    image_std: Sequence[float]
    patch: Callable[[Any], tuple[int, int]]  # returns (frames, pixels) of a patch for a configuration
    defaults: Mapping[str, Any] = field(default_factory=dict)  # fields whose default is not that of transformers
    # Names of the configuration fields that the arguments num_frames and input_size and the three colors set.
    size_field: str = "image_size"
    frames_field: str | None = "num_frames"
    colors_field: str = "num_channels"
    fixed: tuple[str, ...] = ()  # which of these must equal the checkpoint's
    # Returns those parameters of a checkpoint, an instance of the class, that have to be interpolated to the number of
    # frames and the frame size of a model with the second argument as state dict and the third as configuration.
    resize: Callable[[Any, Mapping[str, Tensor], Any], dict[str, Tensor]] | None = None
    prune: Callable[[Any], None] = lambda model: None  # removes modules and parameters that are not used
    unused: tuple[str, ...] = ()  # prefixes of parameters that a checkpoint may have or lack
    overrides: Mapping[str, Any] = field(default_factory=dict)  # fields of modules that are built and then pruned
    key_mapping: Mapping[str, str] = field(default_factory=dict)  # pattern in a checkpoint's names → replacement

    @property
    def fixed_fields(self) -> tuple[str, ...]:
        """Fields that are not options: the arguments set them."""
        return tuple(name for name in (self.size_field, self.frames_field, self.colors_field) if name)


def square(patch: int | Sequence[int]) -> int:
    """Return the height and width of a square patch in pixels."""
    return patch if isinstance(patch, int) else patch[0]


class TransformersBackbone(AdaptedBackbone):
    """Base class of the backbones from transformers.

    Args:
        name: of the backbone, for error messages.
        family: properties of the family.
        num_frames: T.
        pretrained, input_size, frozen, gradient_checkpointing, image_mean, image_std, config: see the subclasses.
    """

    def __init__(
        self,
        name: str,
        family: Any,
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
        transformers = import_extra("transformers", extra="transformers", needed_by=f"backbone {name!r}")
        model_class = getattr(transformers, family.model, None)
        if model_class is None:
            raise ImportError(
                f"backbone {name!r} needs {family.model}, which transformers {transformers.__version__} lacks: "
                "pip install --upgrade transformers"
            )
        size = family.input_size if input_size is None else input_size
        settings = _make_config(family, model_class.config_class, config, num_frames=num_frames, input_size=size)
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
        family.prune(model)
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
            self.license = checkpoint_license(pretrained)

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """Return one group for the embedding and one per block."""
        model, names = self.model, block_names(self.model)
        stem = {n.partition("embeddings.")[0] for n, _ in model.named_parameters() if "embeddings." in n}
        return group_params_by_layer(model, [f"{prefix}embeddings." for prefix in stem], [f"{name}." for name in names])


def block_names(model: nn.Module) -> list[str]:
    """Return the names of the blocks of a model, from input to output."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [f"{name}.{child}" for name in outer for child, _ in model.get_submodule(name).named_children()]


def register_families(backbone: Any, families: Mapping[str, Family]) -> None:
    """Register a backbone per family."""
    for name, family in families.items():
        register_backbone(name)(functools.partial(backbone, name, family))


def _make_config(
    family: Family, config_class: Any, options: Mapping[str, Any], *, num_frames: int, input_size: int
) -> Any:
    """Build the configuration and check that its fields exist and that this backbone supports their values."""
    from huggingface_hub.errors import StrictDataclassError

    known = [name for name in _used_fields(config_class) if name not in family.fixed_fields]
    for name in options:
        if name not in known:
            hint = "; did you mean 'input_size'?" if name == family.size_field else did_you_mean(name, known)
            hint = hint or f"; the fields are {', '.join(known)}"
            raise TypeError(f"{config_class.__name__} has no configurable field {name!r}{hint}")
    fixed: dict[str, Any] = {family.size_field: input_size, **family.overrides}
    if family.frames_field:
        fixed[family.frames_field] = num_frames
    try:
        settings = config_class(**{**family.defaults, **options, **fixed})
    except StrictDataclassError as error:
        raise ValueError(f"{config_class.__name__}: {' '.join(str(error).split())}") from error
    patch = getattr(settings, "patch_size", None)
    patch = settings.tubelet_size[1:] if patch is None else patch
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
    try:
        saved, _ = config_class.get_config_dict(pretrained)
    except OSError as error:
        raise FileNotFoundError(
            f"pretrained is {pretrained!r}, whose config.json could not be read: {str(error).splitlines()[0]} Expected "
            "a directory with it, or 'owner/model' on the Hugging Face Hub, which must be reachable or cached"
        ) from error
    saved = saved.get(config_class.base_config_key or "", saved)  # of a model with a text tower
    if saved.get("model_type") != settings.model_type:
        raise ValueError(
            f"{pretrained} is a checkpoint of {saved.get('model_type')!r}, expected one of {settings.model_type!r}"
        )
    names = [n for n in _used_fields(config_class) if n not in (*family.fixed_fields, *TRAINING_FIELDS)]
    saved_values, own_values = (
        {name: _list_from_tuple(getattr(config, name)) for name in (*names, *family.fixed)}
        for config in (config_class.from_dict(saved), settings)
    )
    differing = [name for name in saved_values if saved_values[name] != own_values[name]]
    if differing:
        options = {family.size_field: "input_size"}
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

    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"):
        path = cached_file(pretrained, name, _raise_exceptions_for_missing_entries=False)
        config = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
        config = config.get("video_processor") or config.get("image_processor") or config
        if config.get("do_normalize") is False:
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if "image_mean" in config and "image_std" in config:
            return config["image_mean"], config["image_std"]
    return None


def checkpoint_license(pretrained: str) -> str | None:
    """Return the license of a checkpoint of transformers, None if it is unknown.

    It is read from the metadata of its model card, ``README.md``: "license", or "license_name" if that is "other".
    Without the file, which may not be reachable, published weights have the license of :data:`LICENSES`.
    """
    from huggingface_hub import ModelCard
    from transformers.utils import cached_file

    quiet = {
        f"_raise_exceptions_for_{problem}": False for problem in ("missing_entries", "connection_errors", "gated_repo")
    }
    path = cached_file(pretrained, "README.md", **quiet)
    if path is not None:
        card = ModelCard.load(path, ignore_metadata_errors=True).data
        name = card.get("license_name") if card.get("license") in (None, "other") else None
        return name or card.get("license")
    if Path(pretrained).is_dir():
        return None
    return next((name for prefix, name in LICENSES.items() if pretrained.startswith(prefix)), None)


def _load(model: Any, pretrained: str, family: Family) -> None:
    """Load a checkpoint with the same architecture, without the parameters that are not used."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # no report of the parameters that are not used; all others are checked here
    try:
        published, info = type(model).from_pretrained(
            pretrained,
            dtype=torch.float32,
            output_loading_info=True,
            key_mapping=dict(family.key_mapping) or None,
            **family.overrides,
        )
    finally:
        logging.set_verbosity(verbosity)
    errors = {
        "missing": [n for n in info["missing_keys"] if not n.startswith(family.unused)],
        "unexpected": [n for n in info["unexpected_keys"] if not n.startswith(family.unused)],
        "with another shape": [str(entry) for entry in info["mismatched_keys"]],
    }
    messages = [f"{len(names)} {what}: {', '.join(sorted(names)[:20])}" for what, names in errors.items() if names]
    if messages:
        raise ValueError(f"{pretrained} does not match its configuration: {'; '.join(messages)}")
    family.prune(published)
    state = published.state_dict()
    if family.resize is not None:
        state |= family.resize(published, model.state_dict(), model.config)
    load_by_name(model, state, source=pretrained, expected=f"a checkpoint of {type(model).__name__}")
