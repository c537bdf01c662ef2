"""``timm_vit``: a vision transformer of timm on each frame (extra ``[timm]``)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from art.backbones.adapted import AdaptedBackbone, chosen_colours, is_tag
from art.backbones.checkpoint import load_by_name, read_checkpoint
from art.backbones.interface import Features, register_backbone
from art.extras import import_extra

# timm's modules whose models say patch tokens of one grid, behind the tokens of the whole frame.
MODULES = (
    "vision_transformer",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vitamin",
    "deit",
    "eva",
    "beit",
)
# What timm's classifiers hold behind the features.
CLASSIFIERS = ("head.", "head_dist.")


@register_backbone("timm_vit")
class TimmViT(AdaptedBackbone):
    """A vision transformer of timm on each frame by itself.

    ``tokens`` are the patch tokens of the last layer, as timm's ``forward_features`` gives them; ``class_token`` is the
    mean over time of what enters timm's classifier: the class token, the mean or the attention pooling of the patches,
    by the model.

    Args:
        num_frames: T; any number works.
        pretrained: a tag that timm knows for the model (downloaded on first use), or the path of a checkpoint with
            timm's names, as ``.safetensors`` or as ``torch.save`` wrote it; the classifier is left out. Positions are
            interpolated to ``input_size``.
        model: timm's name of a ViT, DeiT, EVA, BEiT or ViTamin.
        input_size: height and width of a frame in pixels, a multiple of the patch size; None is the model's own.
        drop_path: stochastic depth of the last block, rising from 0 at the first.
        frozen: no gradients, no dropout.
        gradient_checkpointing: keep only the input of each block in training and compute the block again in the
            backward pass: less memory, more time, the same result.
        colour_mean: of red, green and blue; None is that of the tag, or of the model's first tag.
        colour_std: likewise, the deviations.

    Raises:
        ModuleNotFoundError: timm is not installed.
        FileNotFoundError: ``pretrained`` is neither a tag of the model nor a file.
        ValueError: timm does not know the model, or it is no such transformer; a checkpoint of another one; a value out
            of range.
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
        colour_mean: Sequence[float] | None = None,
        colour_std: Sequence[float] | None = None,
    ) -> None:
        timm = import_extra("timm", extra="timm", needed_by="backbone 'timm_vit'")
        name = _known_vit(timm, model)
        tags = [full.removeprefix(f"{name}.") for full in timm.list_pretrained(f"{name}.*")]
        tagged = is_tag(pretrained, tags, name)
        # The size is said in any case: a tag must not decide it, because a saved model is built again without the tag.
        size = timm.get_pretrained_cfg(name).input_size[-1] if input_size is None else input_size
        options: dict[str, Any] = {"num_classes": 0, "img_size": size, "drop_path_rate": drop_path}
        vit = timm.create_model(f"{name}.{pretrained}" if tagged else model, pretrained=tagged, **options)
        vit.set_grad_checkpointing(gradient_checkpointing)
        cfg = vit.pretrained_cfg
        super().__init__(
            vit,
            channels=vit.num_features,
            input_size=size,
            patch_size=vit.patch_embed.feat_ratio(),
            colours=chosen_colours(colour_mean, colour_std, (cfg["mean"], cfg["std"])),
            frozen=frozen,
        )
        if pretrained is not None and not tagged:
            load_timm(vit, read_checkpoint(pretrained, prefixes=("module.",)), self.grid, source=pretrained, model=name)

    def forward(self, video: Shaped[Tensor, "b t 3 height width"]) -> Features:
        """See :class:`~art.backbones.interface.Backbone`.

        Raises:
            ValueError: another shape, or frames of another size than ``input_size``.
            TypeError: another dtype.
        """
        video = self.prepared(video)
        tokens, pooled = timm_features(self.model, video.flatten(0, 1))
        frames = video.shape[:2]
        return Features(tokens.unflatten(0, frames), pooled.unflatten(0, frames).mean(1), self.grid)

    def parameters_by_depth(self) -> list[list[nn.Parameter]]:
        """Layers as timm counts them."""
        return timm_layers(self.model)


def timm_layers(vit: Any) -> list[list[nn.Parameter]]:
    """The parameters of a transformer of timm by depth; what comes after its blocks is with the last of them."""
    from timm.models import group_parameters

    parameters = dict(vit.named_parameters())
    groups = group_parameters(vit, vit.group_matcher(coarse=False))  # layer number -> names
    layers: list[list[nn.Parameter]] = []
    for number in sorted(groups):
        behind = len(layers) > 1 and not any(name.startswith("blocks.") for name in groups[number])
        if not behind:
            layers.append([])
        layers[-1] += [parameters[name] for name in groups[number]]
    return layers


def timm_features(
    vit: Any, frames: Float[Tensor, "bt 3 height width"]
) -> tuple[Float[Tensor, "bt n c"], Float[Tensor, "bt c"]]:
    """Patch tokens, and what enters the classifier, of a transformer of timm."""
    tokens = vit.forward_features(frames)
    return tokens[:, vit.num_prefix_tokens :], vit.forward_head(tokens, pre_logits=True)


def is_timm_vit(timm: Any, name: str) -> bool:
    """Whether :func:`timm_features` fits timm's model ``name``."""
    return timm.models.is_model_in_modules(name, MODULES)


def load_timm(vit: Any, state: Mapping[str, Tensor], grid: tuple[int, int], *, source: str, model: str) -> None:
    """Load ``state`` into a transformer of timm, without its classifier; positions are interpolated to ``grid``.

    Raises:
        ValueError: names or shapes differ: all of them, and what would fit.
    """
    from timm.layers import resample_abs_pos_embed

    state = {name: tensor for name, tensor in state.items() if not name.startswith(CLASSIFIERS)}
    own = vit.state_dict().get("pos_embed")
    positions = state.get("pos_embed")
    if own is not None and positions is not None and positions.ndim == 3 and positions.shape != own.shape:
        prefix = own.shape[1] - grid[0] * grid[1]  # some models have no position for the class token
        state["pos_embed"] = resample_abs_pos_embed(positions, list(grid), num_prefix_tokens=prefix)
    load_by_name(vit, state, source=source, fits=f"a checkpoint of timm's {model}, with timm's names")


def _known_vit(timm: Any, model: str) -> str:
    """The name without a tag, of a model that timm knows and that is a transformer of patches."""
    name = model.split(".")[0]
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(module=""), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"model {model!r} is not one of timm's{hint}; see timm.list_models()")
    if not is_timm_vit(timm, name):
        raise ValueError(
            f"model {model!r} has no patch tokens of one grid; expected a model of timm's modules "
            f"{', '.join(MODULES)}, such as 'vit_base_patch16_224'"
        )
    return name
