"""Backbones ``dinov3``, ``dinov2``, ``dinov2_with_registers`` and ``siglip2``: image models of transformers, applied to
each frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from art.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Features, check_layer
from art.backbones.transformers_base import Family, TransformersBackbone, block_names, register_families, square


@dataclass(frozen=True, kw_only=True)
class ImageFamily(Family):
    """Properties of one family of image models."""

    frames_field: str | None = None
    num_prefix: Callable[[Any], int]  # returns the number of class and register tokens for a configuration
    norm: str  # the last normalization


def _drop_mask_token(model: Any) -> None:
    model.embeddings.mask_token = None


def _resize_dinov2(published: Any, own: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Interpolate positions with the function of transformers, which uses only the shape of its first argument."""
    name, size = "embeddings.position_embeddings", config.image_size
    return {name: published.embeddings.interpolate_pos_encoding(own[name], size, size).detach()}


def _resize_siglip(published: Any, own: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Interpolate positions with the function of transformers, which uses only the shape of its first argument."""
    name, size = "embeddings.position_embedding.weight", config.image_size
    return {name: published.embeddings.interpolate_pos_encoding(own[name][None], size, size)[0].detach()}


def _patch(config: Any) -> tuple[int, int]:
    return 1, square(config.patch_size)


_DINO: dict[str, Any] = {
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
    "patch": _patch,
    "prune": _drop_mask_token,
    "unused": ("embeddings.mask_token",),
}
FAMILIES = {
    "dinov3": ImageFamily(
        **_DINO,
        model="DINOv3ViTModel",
        # Those of ViT-B: the defaults of transformers are those of a ViT-S without registers, which is not published.
        defaults={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_register_tokens": 4,
        },
        num_prefix=lambda config: 1 + config.num_register_tokens,
        norm="norm",
    ),
    "dinov2": ImageFamily(
        **_DINO, model="Dinov2Model", num_prefix=lambda config: 1, norm="layernorm", resize=_resize_dinov2
    ),
    "dinov2_with_registers": ImageFamily(
        **_DINO,
        model="Dinov2WithRegistersModel",
        defaults={"patch_size": 14},  # as published
        num_prefix=lambda config: 1 + config.num_register_tokens,
        norm="layernorm",
        resize=_resize_dinov2,
    ),
    "siglip2": ImageFamily(
        model="SiglipVisionModel",
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        patch=_patch,
        num_prefix=lambda config: 0,
        norm="post_layernorm",
        resize=_resize_siglip,
        unused=("text_model.", "logit_scale", "logit_bias"),
    ),
}


class TransformersImage(TransformersBackbone):
    """An image model of transformers applied to each frame: DINOv3, DINOv2 without or with registers, or SigLIP 2.

    ``tokens`` are the patch tokens of the last hidden state; ``class_token`` is the mean over time of the library's
    ``pooler_output``: the class token of DINO, and the attention pooling of SigLIP 2, which has no class token. The
    class and register tokens are "prefix" in :meth:`named_features`.

    ``siglip2`` also loads SigLIP: checkpoints of a fixed resolution of both are of one class. Those of SigLIP 2 with
    "naflex" in their names, of any aspect ratio, are not supported: their input is a list of patches with a mask and
    the height and width of the grid of each image, and they interpolate positions for each.

    Args:
        name: of the backbone.
        family: properties of the family.
        num_frames: T; any number works.
        pretrained: a directory written by ``save_pretrained`` of transformers, or the name "owner/model" on the Hugging
            Face Hub (downloaded on first use). A text tower is ignored. The architecture must be that of the other
            arguments, so that a saved model can be rebuilt without it. Positions are interpolated to ``input_size``, as
            transformers does; those of DINOv3 are a function of row and column.
        input_size: height and width of a frame in pixels, a multiple of the patch size. Default: 224.
        frozen: see :class:`~art.backbones.base.AdaptedBackbone`.
        gradient_checkpointing: see :class:`~art.backbones.base.AdaptedBackbone`.
        image_mean: means of the color normalization. Default: those of the checkpoint, if it has a preprocessor
            configuration, otherwise those of the published training.
        image_std: its standard deviations, with the same default.
        config: fields of the family's configuration in transformers. Defaults: those of the base model (ViT-B).

    Raises:
        ModuleNotFoundError: If transformers is not installed.
        FileNotFoundError: If ``pretrained`` is neither a directory nor the name of a repository.
        ValueError: If patches do not tile a frame, the configuration rejects a value, or the checkpoint has another
            architecture: the message lists the fields or names that differ.
        TypeError: If the configuration has no such field.
    """

    family: ImageFamily
    framewise = True

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """Return the features of ``video``; ``class_token`` is the mean over the frames."""
        named = self.named_features(video)
        return Features(named["tokens"], named["class_token"], self.grid)

    def named_features(
        self, video: Shaped[Tensor, "b t 3 height width"], layers: Sequence[int] = ()
    ) -> dict[str, Tensor]:
        """Return the features to store; see :meth:`Backbone.named_features`.

        Tokens of ``layers`` are normalized as those of the last.
        """
        frames, batch, model = self.normalize(video).flatten(0, 1), video.shape[:2], self.model
        blocks = [check_layer(layer, len(block_names(model))) for layer in layers]
        output = model(frames, output_hidden_states=bool(blocks))
        prefix = self.family.num_prefix(model.config)
        hidden, norm = output.last_hidden_state, getattr(model, self.family.norm)
        named = {"tokens": hidden[:, prefix:]}
        for layer, block in zip(layers, blocks, strict=True):
            named[f"tokens.{layer}"] = norm(output.hidden_states[block + 1][:, prefix:])
        if prefix:
            named["prefix"] = hidden[:, :prefix]
        named = {name: tensor.unflatten(0, batch) for name, tensor in named.items()}
        return {**named, "class_token": output.pooler_output.unflatten(0, batch).mean(1)}


register_families(TransformersImage, FAMILIES)
