"""CLIP's text tower through open_clip (extra ``[clip]``): any of its models, by pretrained tag or local file."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from art.extras import import_extra


class ClipText:
    """The text tower of an open_clip model.

    Args:
        model: open_clip's model name.
        pretrained: a tag that open_clip knows for it (downloaded on first use), or the path of a checkpoint.
        normalize: scale each vector to length 1, as CLIP compares them.
        device: where the texts are encoded.
        batch_size: texts a forward pass.

    Raises:
        ModuleNotFoundError: open_clip is not installed.
        ValueError: open_clip does not know the model.
    """

    def __init__(
        self,
        model: str = "ViT-B-16",
        pretrained: str = "openai",
        *,
        normalize: bool = True,
        device: str = "cpu",
        batch_size: int = 256,
    ) -> None:
        open_clip = _import_open_clip()
        _check_model(open_clip, model)
        self._model = open_clip.create_model(model, pretrained=pretrained, device=device).eval()
        self._tokenizer = open_clip.get_tokenizer(model)
        self._normalize, self._device, self._batch_size = normalize, device, batch_size

    @staticmethod
    def width_of(model: str = "ViT-B-16", **_: Any) -> int:
        """Channels of a text's vector, without the weights."""
        open_clip = _import_open_clip()
        _check_model(open_clip, model)
        return int(open_clip.get_model_config(model)["embed_dim"])

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n c"]:
        """See :class:`~art.text.protocol.TextEncoder`."""
        vectors = []
        for start in range(0, len(texts), self._batch_size):
            tokens = self._tokenizer(list(texts[start : start + self._batch_size])).to(self._device)
            vectors.append(self._model.encode_text(tokens, normalize=self._normalize).float().cpu())
        return torch.cat(vectors)


def _check_model(open_clip: ModuleType, model: str) -> None:
    if model not in open_clip.list_models():
        raise ValueError(f"text_options.model {model!r} is not one of open_clip's; see open_clip.list_models()")


def _import_open_clip() -> ModuleType:
    return import_extra(
        "open_clip", extra="clip", needed_by="text_encoder='clip'", instead="choose text_encoder='wordllama'"
    )
