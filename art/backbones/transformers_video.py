"""Backbones ``videomae``, ``vivit``, ``timesformer``, ``vjepa2`` and ``videoprism``: video models of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor, nn

from art.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Features, check_layer
from art.backbones.transformers_base import Family, TransformersBackbone, block_names, register_families, square


@dataclass(frozen=True, kw_only=True)
class VideoFamily(Family):
    """Properties of one family of video models."""

    # Returns tokens [B, T', N, C] for a hidden state [B, L, C] and T' = frames / frames of a patch.
    split: Callable[[Tensor, int], Tensor]
    num_prefix: int = 0  # class tokens in front of the hidden state; without one, x_cls is the mean of the tokens
    # Runs the model on [B, T, 3, H, W], with the hidden states of its blocks if the third argument is True.
    run: Callable[[Any, Tensor, bool], Any] = lambda model, video, hidden: model.base_model(
        video, output_hidden_states=hidden
    )


def _drop_classifier(model: Any) -> None:
    model.classifier = nn.Identity()


def _drop_predictor(model: Any) -> None:
    del model.predictor


def _run_vjepa2(model: Any, video: Tensor, hidden: bool) -> Any:
    """Run the encoder alone. The library copies the tokens that the masks select: here, one of each clip."""
    mask = [torch.zeros(video.shape[0], 1, dtype=torch.long, device=video.device)]
    return model(video, context_mask=mask, target_mask=mask, skip_predictor=True, output_hidden_states=hidden)


def _split_videoprism(hidden: Tensor, steps: int) -> Tensor:
    """Split the last hidden state ``[B, T·N, C]``."""
    return hidden.unflatten(1, (steps, -1))


def _resize_timesformer(published: Any, own: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Interpolate positions in space and time as transformers does in its forward pass."""
    space, time = (f"timesformer.embeddings.{name}_embeddings" for name in ("position", "time"))
    state = {name: tensor for name, tensor in published.state_dict().items() if name in (space, time)}
    if state[space].shape != own[space].shape:
        side, target = (int((positions.shape[1] - 1) ** 0.5) for positions in (state[space], own[space]))
        grid = state[space][:, 1:].transpose(1, 2).unflatten(2, (side, side))
        grid = F.interpolate(grid, (target, target), mode="nearest").flatten(2).transpose(1, 2)
        state[space] = torch.cat([state[space][:, :1], grid], dim=1)
    if time in state and state[time].shape != own[time].shape:
        length = own[time].shape[1]
        state[time] = F.interpolate(state[time].transpose(1, 2), length, mode="nearest").transpose(1, 2)
    return state


def _resize_videoprism(published: Any, own: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Interpolate positions in space and time with the functions of transformers, which use only shapes."""
    space, time = (f"{name}_embeddings.position_embeddings" for name in ("spatial", "temporal"))
    size = config.image_size
    return {
        space: published.spatial_embeddings.interpolate_pos_encoding(own[space], size, size).detach(),
        time: published.temporal_embeddings.interpolate_pos_encoding(own[time]).detach(),
    }


FAMILIES = {
    "videomae": VideoFamily(
        model="VideoMAEForVideoClassification",
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        patch=lambda config: (config.tubelet_size, square(config.patch_size)),
        split=lambda hidden, steps: hidden.unflatten(1, (steps, -1)),
        fixed=("image_size",),  # positions are a function of the patch index, which extends to more frames
        prune=_drop_classifier,
        # A checkpoint without a classifier has no normalization in front of it either.
        unused=("classifier.", "decoder.", "encoder_to_decoder.", "mask_token", "fc_norm."),
    ),
    "vivit": VideoFamily(
        model="VivitForVideoClassification",
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        patch=lambda config: (config.tubelet_size[0], config.tubelet_size[1]),
        split=lambda hidden, steps: hidden[:, 1:].unflatten(1, (steps, -1)),
        num_prefix=1,
        fixed=("num_frames", "image_size"),
        prune=_drop_classifier,
        unused=("classifier.", "pooler.", "vivit.pooler."),
    ),
    "timesformer": VideoFamily(
        model="TimesformerForVideoClassification",
        image_mean=(0.45, 0.45, 0.45),
        image_std=(0.225, 0.225, 0.225),
        patch=lambda config: (1, square(config.patch_size)),
        split=lambda hidden, steps: hidden[:, 1:].unflatten(1, (-1, steps)).transpose(1, 2),
        num_prefix=1,
        resize=_resize_timesformer,
        prune=_drop_classifier,
        unused=("classifier.",),
    ),
    "vjepa2": VideoFamily(
        model="VJEPA2Model",
        input_size=256,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        patch=lambda config: (config.tubelet_size, square(config.patch_size)),
        split=lambda hidden, steps: hidden.unflatten(1, (steps, -1)),
        size_field="crop_size",
        frames_field="frames_per_clip",
        colors_field="in_chans",
        run=_run_vjepa2,
        overrides={"pred_num_hidden_layers": 0},
        prune=_drop_predictor,
        unused=("predictor.", "vjepa2.predictor.", "pooler.", "classifier."),
    ),
    "videoprism": VideoFamily(
        model="VideoPrismVisionModel",
        input_size=288,
        image_mean=(0.0, 0.0, 0.0),
        image_std=(1.0, 1.0, 1.0),
        patch=lambda config: (config.tubelet_size[0], config.tubelet_size[1]),
        split=_split_videoprism,
        resize=_resize_videoprism,
        unused=("auxiliary_layers.", "head.", "head_layernorm.", "classifier.", "video_model.", "text_model."),
        key_mapping={r"^video_model\.vision_model\.": "vision_model."},  # with a text tower
    ),
}


class TransformersVideo(TransformersBackbone):
    """A video model of transformers: VideoMAE, ViViT, TimeSformer, V-JEPA 2, or VideoPrism.

    ``tokens`` are the last hidden state; the frames of one patch share the same tokens. ``class_token`` is the input of
    the library's classifier: the class token or, for VideoMAE, which has none, the normalized mean of the tokens (with
    ``use_mean_pooling=False`` too, where the library takes the first patch). V-JEPA 2 and VideoPrism have no class
    token either, and their classifiers pool by attention: ``class_token`` is the mean of the tokens. V-JEPA 2 is its
    encoder alone; its predictor is never run.

    Args:
        name: of the backbone.
        family: properties of the family.
        num_frames: T, a multiple of the frames in a patch.
        pretrained: a directory written by ``save_pretrained`` of transformers, or the name "owner/model" on the Hugging
            Face Hub (downloaded on first use). A classifier, decoder, predictor or text tower is ignored. The
            architecture must be that of the other arguments, so that a saved model can be rebuilt without it. Positions
            of TimeSformer and VideoPrism are interpolated to ``num_frames`` and ``input_size``, as transformers does;
            those of V-JEPA 2 are a function of frame, row and column, and support any number and size; those of
            VideoMAE support any number of frames of the checkpoint's size; those of ViViT support only the checkpoint's
            number and size.
        input_size: height and width of a frame in pixels, a multiple of the patch size. Default: 224; 256 for V-JEPA 2
            and 288 for VideoPrism.
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

    family: VideoFamily

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

        Tokens of ``layers`` are hidden states as the library returns them: those of V-JEPA 2 before its last
        normalization. The blocks of VideoPrism are its spatial ones, which do not see other frames, then its temporal
        ones.
        """
        video = self.normalize(video)
        if video.shape[1] != self.num_frames:
            raise ValueError(
                f"video has {video.shape[1]} frames per clip (shape {list(video.shape)}), expected {self.num_frames}; "
                f"build the backbone with num_frames={video.shape[1]}"
            )
        blocks = [check_layer(layer, len(block_names(self.model))) for layer in layers]
        output = self.family.run(self.model, video, bool(blocks))
        hidden, steps = output.last_hidden_state, self.num_frames // self.tubelet
        tokens, prefix = self.family.split(hidden, steps), self.family.num_prefix
        class_token = hidden[:, 0] if prefix else hidden.mean(1)
        norm = getattr(self.model, "fc_norm", None)
        named = {"tokens": tokens, "class_token": class_token if norm is None else norm(class_token)}
        for layer, block in zip(layers, blocks, strict=True):
            named[f"tokens.{layer}"] = self._split_block(output.hidden_states[block + 1], block, tokens.shape)
        if prefix:
            named["prefix"] = hidden[:, None, :prefix]
        return named

    def _split_block(self, hidden: Tensor, block: int, shape: Sequence[int]) -> Tensor:
        """Return the hidden state of a block as ``[B, T', N, C]``."""
        if hidden.shape[0] == shape[0]:
            return self.family.split(hidden, shape[1])
        model: Any = self.model  # VideoPrism: [B·T, N, C] in space, [B·N, T, C] in time
        if block < model.config.num_spatial_layers:
            return hidden.reshape(shape)
        return hidden.reshape(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)


register_families(TransformersVideo, FAMILIES)
