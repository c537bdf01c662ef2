"""Backbones ``timm_vit``, ``clip_vit``, and ``clip_vit_*``: image transformers applied to each frame.

They wrap models of timm (extra ``[timm]``) and image towers of open_clip (extra ``[clip]``), some of which are timm's.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn

from art.backbones.base import (
    AdaptedBackbone,
    Features,
    check_layer,
    check_tiling,
    did_you_mean,
    group_params_by_layer,
    is_tag,
    load_by_name,
    read_checkpoint,
    register_backbone,
)
from art.backbones.uniformerv2_weights import interpolate_positions
from art.extras import import_extra

# Modules of timm whose models return the patch tokens of one grid, after the prefix tokens.
TIMM_MODULES = (
    "vision_transformer",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vitamin",
    "deit",
    "eva",
    "beit",
)
# Prefixes of the parameters of timm's classifiers.
TIMM_CLASSIFIERS = ("head.", "head_dist.")
# Names for the common sizes; any other model of open_clip is an option of ``clip_vit``.
CLIP_SIZES = {
    "clip_vit_b_32": "ViT-B-32",
    "clip_vit_b_16": "ViT-B-16",
    "clip_vit_l_14": "ViT-L-14",
    "clip_vit_l_14_336": "ViT-L-14-336",
    "clip_vit_h_14": "ViT-H-14",
    "clip_vit_g_14": "ViT-g-14",
    "clip_vit_bigg_14": "ViT-bigG-14",
}


class ImageViT(AdaptedBackbone):
    """Base class of the image transformers, which process each frame separately."""

    uses_timm = True
    framewise = True

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """Return the features of ``video``; ``class_token`` is the mean over the frames."""
        frames = self.normalize(video).flatten(0, 1)
        model: Any = self.model
        if self.uses_timm:
            hidden = model.forward_features(frames)
            tokens, pooled = hidden[:, model.num_prefix_tokens :], model.forward_head(hidden, pre_logits=True)
        else:
            pooled, tokens = model(frames)
        batch = video.shape[:2]
        return Features(tokens.unflatten(0, batch), pooled.unflatten(0, batch).mean(1), self.grid)

    def named_features(
        self, video: Shaped[Tensor, "b t 3 height width"], layers: Sequence[int] = ()
    ) -> dict[str, Tensor]:
        """Return the features to store; see :meth:`Backbone.named_features`.

        Tokens of ``layers`` are normalized as those of the last. For open_clip's own towers, there is no prefix, and
        ``layers`` are not supported.
        """
        if not self.uses_timm:
            return super().named_features(video, layers)
        model: Any = self.model
        frames, batch, prefix = self.normalize(video).flatten(0, 1), video.shape[:2], model.num_prefix_tokens
        blocks = [check_layer(layer, len(model.blocks)) for layer in layers]
        hidden, found = model.forward_intermediates(frames, indices=blocks, norm=True, output_fmt="NLC")
        # timm returns each block once, in order.
        tokens = dict(zip(sorted(set(blocks)), found, strict=True))
        pooled = model.forward_head(hidden, pre_logits=True)
        named = {"tokens": hidden[:, prefix:], "class_token": pooled}
        named |= {f"tokens.{layer}": tokens[block] for layer, block in zip(layers, blocks, strict=True)}
        if prefix:
            named["prefix"] = hidden[:, :prefix]
        named = {name: tensor.unflatten(0, batch) for name, tensor in named.items()}
        return {**named, "class_token": named["class_token"].mean(1)}

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """Return one group for the embedding and one per block; for timm's models, the layers that timm defines."""
        model: Any = self.model
        if not self.uses_timm:
            stem = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.")
            count = len(model.transformer.resblocks)
            return group_params_by_layer(model, stem, [f"transformer.resblocks.{i}." for i in range(count)])
        from timm.models import group_parameters

        parameters = dict(model.named_parameters())
        groups = group_parameters(model, model.group_matcher(coarse=False))  # layer number → names
        layers: list[list[nn.Parameter]] = []
        for number in sorted(groups):
            is_after_blocks = len(layers) > 1 and not any(name.startswith("blocks.") for name in groups[number])
            if not is_after_blocks:
                layers.append([])
            layers[-1] += [parameters[name] for name in groups[number]]
        return layers

    def _load_timm(self, state: Mapping[str, Tensor], *, source: str, model: str) -> None:
        """Load a state dict with timm's names, without its classifier; interpolate positions to the grid."""
        from timm.layers import resample_abs_pos_embed

        state = {name: tensor for name, tensor in state.items() if not name.startswith(TIMM_CLASSIFIERS)}
        own = self.model.state_dict().get("pos_embed")
        positions = state.get("pos_embed")
        if own is not None and positions is not None and positions.ndim == 3 and positions.shape != own.shape:
            prefix = own.shape[1] - self.grid[0] * self.grid[1]  # some models have no position for the class token
            state["pos_embed"] = resample_abs_pos_embed(positions, list(self.grid), num_prefix_tokens=prefix)
        load_by_name(self.model, state, source=source, expected=f"a checkpoint of {model}, with timm's names")


@register_backbone("timm_vit")
class TimmViT(ImageViT):
    """A vision transformer of timm, applied to each frame.

    ``tokens`` are the patch tokens of timm's ``forward_features``; ``class_token`` is the mean over time of the input
    of timm's classifier: the class token, or the mean or attention pooling of the patches, depending on the model.

    Args:
        num_frames: T; any number works.
        pretrained: a tag of the model in timm (downloaded on first use), or the path of a checkpoint with timm's names,
            as ``.safetensors`` or written by ``torch.save``; its classifier is ignored. Positions are interpolated to
            ``input_size``.
        model: timm's name of a ViT, DeiT, EVA, BEiT, or ViTamin.
        input_size: height and width of a frame in pixels, a multiple of the patch size. Default: the model's.
        drop_path: stochastic depth rate of the last block, rising linearly from 0 at the first.
        frozen: see :class:`~art.backbones.base.AdaptedBackbone`.
        gradient_checkpointing: see :class:`~art.backbones.base.AdaptedBackbone`.
        image_mean: means of the color normalization. Default: those of the tag, or of the model's first tag.
        image_std: its standard deviations, with the same default.

    Raises:
        ModuleNotFoundError: If timm is not installed.
        FileNotFoundError: If ``pretrained`` is neither a tag of the model nor a file.
        ValueError: If timm has no such model, the model is not supported, the checkpoint does not match, or a value is
            out of range.
    """

    def __init__(
        self,
        *,
        num_frames: int,
        pretrained: str | None = None,
        model: str = "vit_base_patch16_224",
        input_size: int | None = None,
        drop_path: float = 0.0,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> None:
        timm = import_extra("timm", extra="timm", needed_by="backbone 'timm_vit'")
        name = _check_timm_model(timm, model)
        tags = [full.removeprefix(f"{name}.") for full in timm.list_pretrained(f"{name}.*")]
        from_tag = is_tag(pretrained, tags, name)
        # Always pass the size: a saved model is rebuilt without the tag, which must not determine it.
        size = timm.get_pretrained_cfg(name).input_size[-1] if input_size is None else input_size
        options: dict[str, Any] = {"num_classes": 0, "img_size": size, "drop_path_rate": drop_path}
        vit = timm.create_model(f"{name}.{pretrained}" if from_tag else model, pretrained=from_tag, **options)
        vit.set_grad_checkpointing(gradient_checkpointing)
        super().__init__(
            vit,
            channels=vit.num_features,
            input_size=size,
            patch_size=vit.patch_embed.feat_ratio(),
            image_mean=vit.pretrained_cfg["mean"] if image_mean is None else image_mean,
            image_std=vit.pretrained_cfg["std"] if image_std is None else image_std,
            frozen=frozen,
        )
        if from_tag:
            self.license = vit.pretrained_cfg.get("license")
        elif pretrained is not None:
            state = read_checkpoint(pretrained, prefixes=("module.",))
            self._load_timm(state, source=pretrained, model=f"timm's {name}")


class ClipViT(ImageViT):
    """The image tower of an open_clip model, applied to each frame.

    ``tokens`` are its patch tokens and ``class_token`` is the mean over time of its pooled features, both before the
    projection into the joint space with text. The last LayerNorm applies to both, or to ``class_token`` alone if the
    tower pools first. Towers that open_clip takes from timm (SigLIP, EVA, ViTamin) have the features of
    :class:`TimmViT`.

    Args:
        num_frames: T; any number works.
        pretrained: a tag of the model in open_clip (downloaded on first use), or the path of a checkpoint with
            open_clip's names: the whole model or its image tower, with or without "visual.". Positions are interpolated
            to ``input_size``. A file does not record whether it was trained with QuickGELU.
        model: open_clip's name of a model with a ViT.
        input_size: height and width of a frame in pixels, a multiple of the patch size. Default: the model's.
        quick_gelu: use QuickGELU, x · sigmoid(1.702 x), as OpenAI's weights do. Default: the model's setting. It must
            match that of the tag.
        frozen: see :class:`~art.backbones.base.AdaptedBackbone`.
        gradient_checkpointing: see :class:`~art.backbones.base.AdaptedBackbone`.
        image_mean: means of the color normalization. Default: those of the tag; without one, those of the model's tags
            if they agree, otherwise OpenAI's.
        image_std: its standard deviations, with the same default.

    Raises:
        ModuleNotFoundError: If open_clip is not installed.
        FileNotFoundError: If ``pretrained`` is neither a tag of the model nor a file.
        ValueError: If open_clip has no such model, its image tower is not a ViT, the tag has another activation, the
            checkpoint does not match, or a value is out of range.
    """

    def __init__(
        self,
        *,
        num_frames: int,
        pretrained: str | None = None,
        model: str = "ViT-B-16",
        input_size: int | None = None,
        quick_gelu: bool | None = None,
        frozen: bool = False,
        gradient_checkpointing: bool = False,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
    ) -> None:
        open_clip = import_extra("open_clip", extra="clip", needed_by="backbone 'clip_vit'")
        config = _clip_config(open_clip, model)
        tags = open_clip.list_pretrained_tags_by_model(model)
        tag = pretrained if is_tag(pretrained, tags, model) else None
        config["quick_gelu"] = config.get("quick_gelu", False) if quick_gelu is None else quick_gelu
        if tag is not None:
            trained = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)
            if trained != config["quick_gelu"]:
                raise ValueError(
                    f"{tag!r} of {model} was trained with quick_gelu={trained}, but the backbone has quick_gelu="
                    f"{config['quick_gelu']}; pass quick_gelu={trained}, which is saved with the model"
                )
        tower, size, patch_size, channels = _build_tower(open_clip, model, config, input_size, tag)
        tower.set_grad_checkpointing(gradient_checkpointing)
        mean, std = _clip_mean_std(open_clip, model, tags if tag is None else [tag])
        super().__init__(
            tower,
            channels=channels,
            input_size=size,
            patch_size=patch_size,
            image_mean=mean if image_mean is None else image_mean,
            image_std=std if image_std is None else image_std,
            frozen=frozen,
        )
        self.uses_timm = "timm_model_name" in config["vision_cfg"]
        if pretrained is not None and tag is None:
            self._load(pretrained, model)

    def _load(self, path: str, model: str) -> None:
        state = read_checkpoint(path, prefixes=("module.",))
        if any(name.startswith("visual.") for name in state):  # a whole model, with the text tower
            state = {n.removeprefix("visual."): tensor for n, tensor in state.items() if n.startswith("visual.")}
        if self.uses_timm:
            state = {n.removeprefix("trunk."): tensor for n, tensor in state.items() if not n.startswith("head.")}
            self._load_timm(state, source=path, model=f"open_clip's {model}")
            return
        state.pop("proj", None)
        if "positional_embedding" in state:
            own = self.model.state_dict()["positional_embedding"]
            state["positional_embedding"] = interpolate_positions(state["positional_embedding"], own.shape)
        expected = f"a checkpoint of open_clip's {model}, or of its image tower"
        load_by_name(self.model, state, source=path, expected=expected)


def _check_timm_model(timm: Any, model: str) -> str:
    """Return the name of a model without its tag, or raise ValueError if it is unknown or unsupported."""
    name = model.split(".")[0]
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(module=""))
        raise ValueError(f"model {model!r} is not a model of timm{hint}; see timm.list_models()")
    if not timm.models.is_model_in_modules(name, TIMM_MODULES):
        raise ValueError(
            f"model {model!r} has no patch tokens of one grid; expected a model of timm's modules "
            f"{', '.join(TIMM_MODULES)}, such as 'vit_base_patch16_224'"
        )
    return name


def _clip_config(open_clip: Any, model: str) -> dict[str, Any]:
    """Return open_clip's configuration of a model, or raise ValueError if it is unknown or unsupported."""
    known = open_clip.list_models()
    if model not in known:
        raise ValueError(
            f"model {model!r} is not a model of open_clip{did_you_mean(model, known)}; see open_clip.list_models()"
        )
    config = open_clip.get_model_config(model)
    vision = config["vision_cfg"]
    if name := vision.get("timm_model_name"):
        timm = import_extra("timm", extra="timm", needed_by=f"model {model!r}")
        supported = timm.models.is_model_in_modules(name, TIMM_MODULES)
    else:
        supported = not isinstance(vision.get("layers"), list)  # a list: a ResNet
    if not supported or vision.get("attentional_pool"):
        raise ValueError(
            f"the image tower of model {model!r} has no patch tokens of one grid; expected a ViT without attentional "
            "pooling, such as 'ViT-B-16'"
        )
    return config


def _build_tower(
    open_clip: Any, model: str, config: dict[str, Any], input_size: int | None, tag: str | None
) -> tuple[Any, int, int, int]:
    """Return the image tower without its projection, the frame and patch sizes in pixels, and its channels."""
    vision, quick_gelu = config["vision_cfg"], config["quick_gelu"]
    size = vision.get("image_size", 224) if input_size is None else input_size
    uses_timm = "timm_model_name" in vision
    if not uses_timm:
        check_tiling(size, vision.get("patch_size", 16))  # open_clip would ignore the rest of the frame
    if tag is not None:
        tower = open_clip.create_model(
            model,
            pretrained=tag,
            force_image_size=None if uses_timm else size,
            force_patch_dropout=0.0,
            force_quick_gelu=quick_gelu,  # can only enable it
            quick_gelu=quick_gelu,
        ).visual
    else:
        # Build only the image tower: the text tower may be larger, and may have to be downloaded.
        vision = {**vision, "image_size": size, "patch_dropout": 0.0, "timm_model_pretrained": False}
        tower = open_clip.model._build_vision_tower(config["embed_dim"], vision, quick_gelu)
    if uses_timm:
        trunk = tower.trunk
        patch_size = trunk.patch_embed.feat_ratio()
        check_tiling(size, patch_size)
        if trunk.patch_embed.img_size != (size, size):
            trunk.set_input_size(size)  # interpolates the positions
        return trunk, size, patch_size, trunk.num_features
    tower.proj, tower.output_tokens = None, True
    return tower, size, tower.patch_size[0], tower.ln_post.normalized_shape[0]


def _clip_mean_std(open_clip: Any, model: str, tags: Sequence[str]) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of the tags if they agree, otherwise OpenAI's."""
    openai = (tuple(open_clip.OPENAI_DATASET_MEAN), tuple(open_clip.OPENAI_DATASET_STD))
    configs = [open_clip.get_pretrained_cfg(model, tag) for tag in tags]
    found = {(tuple(cfg.get("mean", openai[0])), tuple(cfg.get("std", openai[1]))) for cfg in configs}
    return found.pop() if len(found) == 1 else openai


register_backbone("clip_vit")(ClipViT)
for _name, _model in CLIP_SIZES.items():
    register_backbone(_name)(functools.partial(ClipViT, model=_model))
