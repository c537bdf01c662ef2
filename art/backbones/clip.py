"""``clip_vit`` and ``clip_vit_*``: the image tower of any ViT of open_clip on each frame (extra ``[clip]``)."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from art.backbones.adapted import AdaptedBackbone, Colours, check_tiling, chosen_colours, is_tag
from art.backbones.checkpoint import load_by_name, read_checkpoint
from art.backbones.interface import Features, layered, register_backbone
from art.backbones.timm_vit import is_timm_vit, load_timm, timm_features, timm_layers
from art.backbones.uniformerv2_weights import interpolated
from art.extras import import_extra

# The usual sizes have names of their own; every other model of open_clip is an option of ``clip_vit``.
SIZES = {
    "clip_vit_b_32": "ViT-B-32",
    "clip_vit_b_16": "ViT-B-16",
    "clip_vit_l_14": "ViT-L-14",
    "clip_vit_l_14_336": "ViT-L-14-336",
    "clip_vit_h_14": "ViT-H-14",
    "clip_vit_g_14": "ViT-g-14",
    "clip_vit_bigg_14": "ViT-bigG-14",
}


class ClipViT(AdaptedBackbone):
    """The image tower of an open_clip model on each frame by itself.

    ``tokens`` are the tower's patch tokens, ``class_token`` the mean over time of what it projects into the space of
    the texts: both are open_clip's own, from before that projection (its final normalisation is on both, or, in a model
    that pools first, on the class token alone). A tower that open_clip takes from timm (SigLIP, EVA, ViTamin) gives
    what :class:`~art.backbones.timm_vit.TimmViT` does.

    Args:
        num_frames: T; any number works.
        pretrained: a tag that open_clip knows for the model (downloaded on first use), or the path of a checkpoint with
            open_clip's names: the whole model, or its image tower, with or without "visual.". Positions are
            interpolated to ``input_size``. A file does not tell whether it was trained with QuickGELU.
        model: open_clip's name of a model with a ViT.
        input_size: height and width of a frame in pixels, a multiple of the patch size; None is the model's own.
        quick_gelu: the activation x · sigmoid(1.702 x), as in OpenAI's weights; None is the model's own. It must be
            that of the tag.
        frozen: no gradients, no dropout.
        gradient_checkpointing: keep only the input of each block in training and compute the block again in the
            backward pass: less memory, more time, the same result.
        colour_mean: of red, green and blue; None is that of the tag, else that of all the model's tags where they
            agree, else OpenAI's.
        colour_std: likewise, the deviations.

    Raises:
        ModuleNotFoundError: open_clip is not installed.
        FileNotFoundError: ``pretrained`` is neither a tag of the model nor a file.
        ValueError: open_clip does not know the model, or its image tower is no ViT; a tag of another activation; a
            checkpoint of another model; a value out of range.
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
        colour_mean: Sequence[float] | None = None,
        colour_std: Sequence[float] | None = None,
    ) -> None:
        open_clip = import_extra("open_clip", extra="clip", needed_by="backbone 'clip_vit'")
        config = _known_vit(open_clip, model)
        tags = open_clip.list_pretrained_tags_by_model(model)
        tagged = is_tag(pretrained, tags, model)
        config["quick_gelu"] = config.get("quick_gelu", False) if quick_gelu is None else quick_gelu
        if tagged:
            _check_activation(open_clip, model, str(pretrained), config["quick_gelu"])
        tower, size, patch_size, channels = _tower(open_clip, model, config, input_size, pretrained if tagged else None)
        tower.set_grad_checkpointing(gradient_checkpointing)
        super().__init__(
            tower,
            channels=channels,
            input_size=size,
            patch_size=patch_size,
            colours=chosen_colours(
                colour_mean, colour_std, _colours(open_clip, model, [str(pretrained)] if tagged else tags)
            ),
            frozen=frozen,
        )
        self.of_timm = "timm_model_name" in config["vision_cfg"]
        if pretrained is not None and not tagged:
            self._load(pretrained, model)

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """See :class:`~art.backbones.interface.Backbone`.

        Raises:
            ValueError: another shape, or frames of another size than ``input_size``.
            TypeError: another dtype.
        """
        video = self.prepared(video)
        tokens, pooled = self._features(video.flatten(0, 1))
        frames = video.shape[:2]
        return Features(tokens.unflatten(0, frames), pooled.unflatten(0, frames).mean(1), self.grid)

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """The embedding, and each block; or layers as timm counts them, of a tower of timm."""
        if self.of_timm:
            return timm_layers(self.model)
        embedding = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.")
        tower: Any = self.model
        return layered(
            tower, embedding, [f"transformer.resblocks.{i}." for i in range(len(tower.transformer.resblocks))]
        )

    def _features(
        self, frames: Float[Tensor, "bt 3 height width"]
    ) -> tuple[Float[Tensor, "bt n c"], Float[Tensor, "bt c"]]:
        if self.of_timm:
            return timm_features(self.model, frames)
        pooled, tokens = self.model(frames)
        return tokens, pooled

    def _load(self, path: str, model: str) -> None:
        state = read_checkpoint(path, prefixes=("module.",))
        if any(name.startswith("visual.") for name in state):  # the rest of a whole model is for the texts
            state = {n.removeprefix("visual."): tensor for n, tensor in state.items() if n.startswith("visual.")}
        if self.of_timm:
            state = {n.removeprefix("trunk."): tensor for n, tensor in state.items() if not n.startswith("head.")}
            load_timm(self.model, state, self.grid, source=path, model=f"open_clip's {model}")
            return
        state.pop("proj", None)
        if "positional_embedding" in state:
            own = self.model.state_dict()["positional_embedding"]
            state["positional_embedding"] = interpolated(state["positional_embedding"], own.shape)
        load_by_name(self.model, state, source=path, fits=f"a checkpoint of open_clip's {model}, or of its image tower")


def _known_vit(open_clip: Any, model: str) -> dict[str, Any]:
    """open_clip's configuration of a model whose image tower says patch tokens of one grid."""
    known = open_clip.list_models()
    if model not in known:
        near = difflib.get_close_matches(model, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"model {model!r} is not one of open_clip's{hint}; see open_clip.list_models()")
    config = open_clip.get_model_config(model)
    vision = config["vision_cfg"]
    name = vision.get("timm_model_name")
    timm = import_extra("timm", extra="timm", needed_by=f"model {model!r}") if name else None
    other = isinstance(vision.get("layers"), list) if timm is None else not is_timm_vit(timm, name)
    if other or vision.get("attentional_pool"):
        raise ValueError(
            f"the image tower of model {model!r} leaves no patch tokens of one grid; expected a ViT without "
            "attentional pooling, such as 'ViT-B-16'"
        )
    return config


def _tower(
    open_clip: Any, model: str, config: dict[str, Any], input_size: int | None, tag: str | None
) -> tuple[Any, int, int, int]:
    """The image tower without its projection, the size of a frame and of a patch in pixels, and its channels."""
    vision, quick_gelu = config["vision_cfg"], config["quick_gelu"]
    size = vision.get("image_size", 224) if input_size is None else input_size
    of_timm = "timm_model_name" in vision
    if not of_timm:
        check_tiling(size, vision.get("patch_size", 16))  # open_clip would leave a part of the frame out
    if tag is not None:
        tower = open_clip.create_model(
            model,
            pretrained=tag,
            force_image_size=None if of_timm else size,
            force_patch_dropout=0.0,
            force_quick_gelu=quick_gelu,  # which only turns it on
            quick_gelu=quick_gelu,
        ).visual
    else:
        # The tower alone: the other one may be larger, and may have to be downloaded.
        vision = {**vision, "image_size": size, "patch_dropout": 0.0, "timm_model_pretrained": False}
        tower = open_clip.model._build_vision_tower(config["embed_dim"], vision, quick_gelu)
    if of_timm:
        trunk = tower.trunk
        patch_size = trunk.patch_embed.feat_ratio()
        check_tiling(size, patch_size)
        if trunk.patch_embed.img_size != (size, size):
            trunk.set_input_size(size)  # with its positions interpolated
        return trunk, size, patch_size, trunk.num_features
    tower.proj, tower.output_tokens = None, True
    return tower, size, tower.patch_size[0], tower.ln_post.normalized_shape[0]


def _check_activation(open_clip: Any, model: str, tag: str, quick_gelu: bool) -> None:
    trained = open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False)
    if trained != quick_gelu:
        raise ValueError(
            f"{tag!r} of {model} was trained with quick_gelu={trained}, but the backbone has quick_gelu={quick_gelu}; "
            f"give quick_gelu={trained}, which is saved with the model"
        )


def _colours(open_clip: Any, model: str, tags: Sequence[str]) -> Colours:
    """The mean and deviation with which all of these tags were trained, else OpenAI's."""
    openai = (tuple(open_clip.OPENAI_DATASET_MEAN), tuple(open_clip.OPENAI_DATASET_STD))
    trained = [open_clip.get_pretrained_cfg(model, tag) for tag in tags]
    found = {(tuple(cfg.get("mean", openai[0])), tuple(cfg.get("std", openai[1]))) for cfg in trained}
    return found.pop() if len(found) == 1 else openai


register_backbone("clip_vit")(ClipViT)
for _name, _model in SIZES.items():
    register_backbone(_name)(functools.partial(ClipViT, model=_model))
