"""Checkpoints of UniFormerV2 and CLIP: loading by name into the backbone, and the published names of its state dict."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from art.backbones.base import load_by_name, read_checkpoint

if TYPE_CHECKING:
    from art.backbones.uniformerv2 import UniFormerV2

PREFIX = "backbone."
# Published name → name in NormalizedLinear. The published head, transformer.proj, also has a dropout, number 1.
HEAD = {
    "transformer.proj.0.weight": "norm.weight",
    "transformer.proj.0.bias": "norm.bias",
    "transformer.proj.2.weight": "weight",
    "transformer.proj.2.bias": "bias",
}
# Parameters of the image model, fixed in the published frozen variant. Its blocks include the local MHRA, if any.
IMAGE_PARAMETERS = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.", "transformer.resblocks.")
# Parameters of CLIP's text tower, its scalars, and the projection at the end of its image tower; none are used.
CLIP_TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "text.")
CLIP_SCALARS = ("logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size")
CLIP_IMAGE_END = ("proj", "ln_post.weight", "ln_post.bias")


class NormalizedLinear(nn.Linear):
    """The published classification head, LayerNorm and a linear layer. (Its dropout is applied before it here.)"""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.norm = nn.LayerNorm(in_features)

    def forward(self, input: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch y"]:
        """Return the logits."""
        return super().forward(self.norm(input))


def load(backbone: UniFormerV2, path: str, sizes: Mapping[str, Mapping[str, int]]) -> dict[str, Tensor]:
    """Load a checkpoint, see ``pretrained`` of :class:`~art.backbones.uniformerv2.UniFormerV2`.

    Args:
        sizes: architectures by backbone name, for the error message.

    Returns:
        The state dict of the checkpoint's head, named as in :class:`NormalizedLinear`; empty if it has none.
    """
    state = _image_tower(read_checkpoint(path, prefixes=("module.", PREFIX)))
    head = {ours: state.pop(theirs) for theirs, ours in HEAD.items() if theirs in state}
    expected = _matching_options(state, sizes)
    own = backbone.state_dict()
    # An image model has no video parameters; a checkpoint with some of them must have all.
    is_image_model = not any(_is_video_parameter(name) for name in state)
    optional = [name for name in own if is_image_model and _is_video_parameter(name)]
    for name, resize in (("conv1.weight", inflate), ("positional_embedding", interpolate_positions)):
        if name in state:
            state[name] = resize(state[name], own[name].shape)
    load_by_name(backbone, state, source=path, expected=expected, optional=optional)
    return head


def select_labels(head: dict[str, Tensor], labels: Sequence[int] | str | None, source: str) -> dict[str, Tensor]:
    """Return the state dict that :func:`load` returned, with only these labels in this order.

    Args:
        labels: indices, the path of a JSON list of them, or None for all.
        source: the checkpoint, for error messages.

    Raises:
        ValueError: If the head is missing or incomplete, or a label is out of range.
    """
    missing = [theirs for theirs, ours in HEAD.items() if ours not in head]
    if missing:
        raise ValueError(
            f"keep_head is True, but {source} lacks {', '.join(missing)} of a classification head; "
            "pass a checkpoint with a head, or keep_head=False for a new head"
        )
    count = len(head["weight"])
    indices = json.loads(Path(labels).read_text(encoding="utf-8")) if isinstance(labels, str) else labels
    if indices is None:
        return head
    invalid = [index for index in indices if not (type(index) is int and 0 <= index < count)]
    if invalid:
        raise ValueError(
            f"head_labels contains {invalid[:5]}, expected indices 0 to {count - 1} into the head of {source}"
        )
    rows = torch.tensor(list(indices), dtype=torch.long)
    return {**head, "weight": head["weight"][rows], "bias": head["bias"][rows]}


def published_state(backbone: UniFormerV2, head: NormalizedLinear | None = None) -> dict[str, Tensor]:
    """Return the state dict of backbone and head with the published names, the inverse of :func:`load`."""
    state = dict(backbone.state_dict())
    if head is not None:
        state.update({theirs: head.state_dict()[ours] for theirs, ours in HEAD.items()})
    return {PREFIX + name: tensor for name, tensor in state.items()}


def inflate(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Inflate a 2-D convolution to a 3-D one of ``shape``: its kernel becomes the middle frame, the others are zero.

    Returns ``weight`` unchanged unless it is 4-D and ``shape`` is 5-D.
    """
    if weight.ndim != 4 or len(shape) != 5:
        return weight
    before = shape[2] // 2
    return F.pad(weight[:, :, None], (0, 0, 0, 0, before, shape[2] - 1 - before))


def interpolate_positions(positions: Tensor, shape: Sequence[int]) -> Tensor:
    """Interpolate the position embeddings of a class token and a square grid to the grid of ``shape``, bicubic.

    Returns ``positions`` unchanged if the grid is the same, is not square, or the number of channels differs.
    """
    if positions.ndim != 2 or positions.shape[0] == shape[0] or positions.shape[1] != shape[1]:
        return positions
    side, target = math.isqrt(positions.shape[0] - 1), math.isqrt(shape[0] - 1)
    if side**2 != positions.shape[0] - 1 or side == 0:
        return positions
    grid = positions[1:].float().T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, (target, target), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([positions[:1].float(), grid.flatten(2)[0].T])


def _is_video_parameter(name: str) -> bool:
    """Return whether a parameter does not exist in an image model."""
    return ".lmhra" in name or name.startswith(
        ("transformer.temporal_cls_token", "transformer.balance", "transformer.dpe.", "transformer.dec.")
    )


def _image_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return CLIP's image tower without its projection; a state dict of UniFormerV2 is returned unchanged."""
    if any(_is_video_parameter(name) for name in state):
        return state
    if any(name.startswith("visual.") for name in state):
        image_names = [n for n in state if n not in CLIP_SCALARS and not n.startswith(CLIP_TEXT)]
        state = {name.removeprefix("visual."): state[name] for name in image_names}
    return {name: tensor for name, tensor in state.items() if name not in CLIP_IMAGE_END}


def _matching_options(state: Mapping[str, Tensor], sizes: Mapping[str, Mapping[str, int]]) -> str:
    """Describe the backbone and the options that match a checkpoint, derived from its names and shapes."""
    known = ", ".join(sizes)
    first, positions = state.get("conv1.weight"), state.get("positional_embedding")
    if first is None or first.ndim not in (4, 5) or positions is None or positions.ndim != 2:
        return (
            f"a checkpoint of UniFormerV2 or of CLIP's image tower (OpenAI's or open_clip's names), for one of {known}"
        )
    width, patch_size, layers = first.shape[0], first.shape[-1], _count(state, "transformer.resblocks.")
    size = {"width": width, "layers": layers, "patch_size": patch_size}
    input_size = math.isqrt(max(0, positions.shape[0] - 1)) * patch_size
    matches = [name for name, other in sizes.items() if all(other[key] == value for key, value in size.items())]
    matches.sort(key=lambda name: sizes[name]["input_size"] != input_size)
    options = [] if matches else [f"{key}={value}" for key, value in {**size, "input_size": input_size}.items()]
    if any(_is_video_parameter(name) for name in state):
        options.append(f"local_mhra={len({name.split('.')[3] for name in state if '.lmhra' in name})}")
        options.append(f"temporal_downsample={first.ndim == 5 and first.shape[2] > 1}")
        options.append(f"{_count(state, 'transformer.dec.')} global_blocks")
        options.append(f"frozen={'transformer.balance' not in state}")
    return f"{matches[0] if matches else 'a backbone'} with {', '.join(options) or 'any options'}"


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
