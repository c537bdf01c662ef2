"""Published weights of UniFormerV2, and CLIP's from which it begins: by local path, by name, in both directions."""

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

from art.backbones.checkpoint import load_by_name, read_checkpoint

if TYPE_CHECKING:
    from art.backbones.uniformerv2 import UniFormerV2

PREFIX = "backbone."
# The published head, transformer.proj, by the names of NormalisedLinear; its dropout, number 1, has no parameters.
HEAD = {
    "transformer.proj.0.weight": "norm.weight",
    "transformer.proj.0.bias": "norm.bias",
    "transformer.proj.2.weight": "weight",
    "transformer.proj.2.bias": "bias",
}
# What the published frozen variant does not train: the image model, with the local MHRA in its blocks if there are any.
OF_IMAGES = ("conv1.", "class_embedding", "positional_embedding", "ln_pre.", "transformer.resblocks.")
# What a CLIP checkpoint holds beside the image tower, and at the end of that tower for the text to be compared with.
CLIP_TEXT = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection", "text.")
CLIP_SCALARS = ("logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size")
CLIP_IMAGE_END = ("proj", "ln_post.weight", "ln_post.bias")


class NormalisedLinear(nn.Linear):
    """The published classification head: LayerNorm, then a linear layer. (Its dropout stands before it here.)"""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.norm = nn.LayerNorm(in_features)

    def forward(self, input: Float[Tensor, "*batch c"]) -> Float[Tensor, "*batch y"]:
        """Logits."""
        return super().forward(self.norm(input))


def load(backbone: UniFormerV2, path: str, sizes: Mapping[str, Mapping[str, int]]) -> dict[str, Tensor]:
    """Load the checkpoint at ``path`` into ``backbone``; see :class:`~art.backbones.uniformerv2.UniFormerV2`.

    Args:
        backbone: what to fill.
        path: of a file that :func:`~art.backbones.checkpoint.read_checkpoint` reads.
        sizes: the backbones by name, of which one may fit better.

    Returns:
        The checkpoint's classification head, by the names of :class:`NormalisedLinear`; empty where it has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or one that does not fit: all names and shapes, and what would fit.
    """
    state = _image_tower(read_checkpoint(path, prefixes=("module.", PREFIX)))
    head = {ours: state.pop(theirs) for theirs, ours in HEAD.items() if theirs in state}
    fits = _what_fits(state, sizes)
    own = backbone.state_dict()
    # An image model has nothing of what is there for videos; one that has a part of it must have all.
    of_videos = [name for name in own if _is_for_videos(name)]
    from_images = not any(_is_for_videos(name) for name in state)
    for name, fit in (("conv1.weight", inflated), ("positional_embedding", interpolated)):
        if name in state:
            state[name] = fit(state[name], own[name].shape)
    load_by_name(backbone, state, source=path, fits=fits, may_lack=of_videos if from_images else ())
    return head


def labels_of(head: dict[str, Tensor], labels: Sequence[int] | str | None, source: str) -> dict[str, Tensor]:
    """The head with these labels alone, in this order.

    Args:
        head: what :func:`load` returned.
        labels: indices, the path of a JSON list of them, or None for all.
        source: the checkpoint, for the error.

    Raises:
        ValueError: the checkpoint has no head or half of one, or the labels are no indices into it.
        FileNotFoundError: there is no such JSON file.
    """
    missing = [theirs for theirs, ours in HEAD.items() if ours not in head]
    if missing:
        raise ValueError(
            f"keep_head is True, but {source} lacks {', '.join(missing)} of a classification head; "
            "give a checkpoint of a whole classifier, or keep_head=False for a new head"
        )
    count = len(head["weight"])
    chosen = json.loads(Path(labels).read_text()) if isinstance(labels, str) else labels
    if chosen is None:
        return head
    wrong = [label for label in chosen if not (type(label) is int and 0 <= label < count)]
    if wrong:
        raise ValueError(f"head_labels holds {wrong[:5]}, expected indices 0 to {count - 1} into the head of {source}")
    rows = torch.tensor(list(chosen), dtype=torch.long)
    return {**head, "weight": head["weight"][rows], "bias": head["bias"][rows]}


def published_state(backbone: UniFormerV2, head: NormalisedLinear | None = None) -> dict[str, Tensor]:
    """Backbone and head under the published names, as the published implementation loads them; see :func:`load`."""
    state = dict(backbone.state_dict())
    if head is not None:
        state.update({theirs: head.state_dict()[ours] for theirs, ours in HEAD.items()})
    return {PREFIX + name: tensor for name, tensor in state.items()}


def inflated(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """A convolution of pictures as one of volumes of ``shape``: its middle frame, so that it sees one frame as before.

    Anything but a 4-D ``weight`` for a 5-D ``shape`` is given back as it is.
    """
    if weight.ndim != 4 or len(shape) != 5:
        return weight
    before = shape[2] // 2
    return F.pad(weight[:, :, None], (0, 0, 0, 0, before, shape[2] - 1 - before))


def interpolated(positions: Tensor, shape: Sequence[int]) -> Tensor:
    """Position embeddings of a class token and a square grid, bicubic, for the square grid of ``shape``.

    Given back as they are where the grid is the same, and where they are no such embeddings of as many channels.
    """
    if positions.ndim != 2 or positions.shape[0] == shape[0] or positions.shape[1] != shape[1]:
        return positions
    side, target = math.isqrt(positions.shape[0] - 1), math.isqrt(shape[0] - 1)
    if side**2 != positions.shape[0] - 1 or side == 0:
        return positions
    grid = positions[1:].float().T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, (target, target), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([positions[:1].float(), grid.flatten(2)[0].T])


def _is_for_videos(name: str) -> bool:
    """Whether a parameter is none of an image model's."""
    return ".lmhra" in name or name.startswith(
        ("transformer.temporal_cls_token", "transformer.balance", "transformer.dpe.", "transformer.dec.")
    )


def _image_tower(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's image tower without its end, where ``state`` is CLIP's; every other state, and name, stays as it is."""
    if any(_is_for_videos(name) for name in state):
        return state
    if any(name.startswith("visual.") for name in state):
        of_images = [n for n in state if n not in CLIP_SCALARS and not n.startswith(CLIP_TEXT)]
        state = {name.removeprefix("visual."): state[name] for name in of_images}
    return {name: tensor for name, tensor in state.items() if name not in CLIP_IMAGE_END}


def _what_fits(state: Mapping[str, Tensor], sizes: Mapping[str, Mapping[str, int]]) -> str:
    """The backbone and its options to which a checkpoint belongs, read off its names and shapes."""
    known = ", ".join(sizes)
    first, positions = state.get("conv1.weight"), state.get("positional_embedding")
    if first is None or first.ndim not in (4, 5) or positions is None or positions.ndim != 2:
        return (
            f"a checkpoint of UniFormerV2 or of CLIP's image tower (OpenAI's or open_clip's names), for one of {known}"
        )
    width, patch_size, layers = first.shape[0], first.shape[-1], _count(state, "transformer.resblocks.")
    size = {"width": width, "layers": layers, "patch_size": patch_size}
    input_size = math.isqrt(max(0, positions.shape[0] - 1)) * patch_size
    near = [name for name, other in sizes.items() if all(other[key] == value for key, value in size.items())]
    near.sort(key=lambda name: sizes[name]["input_size"] != input_size)
    options = [] if near else [f"{key}={value}" for key, value in {**size, "input_size": input_size}.items()]
    if any(_is_for_videos(name) for name in state):
        options.append(f"local_mhra={len({name.split('.')[3] for name in state if '.lmhra' in name})}")
        options.append(f"temporal_downsample={first.ndim == 5 and first.shape[2] > 1}")
        options.append(f"as many global_blocks as {_count(state, 'transformer.dec.')}")
        options.append(f"frozen={'transformer.balance' not in state}")
    return f"{near[0] if near else 'a backbone'} with {', '.join(options) or 'any options'}"


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
