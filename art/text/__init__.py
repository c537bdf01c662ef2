"""Text encoders, which map texts to vectors, built by name.

``wordllama`` reads the weights in a PyPI package; ``clip`` is a text tower of open_clip (extra ``[clip]``).
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from art.extras import import_extra

__all__ = ["TEXT_ENCODERS", "TextEncoder", "build_text_encoder", "text_width"]

_TABLE = Path("weights") / "l2_supercat_256.safetensors"
_TOKENIZER = Path("tokenizers") / "l2_supercat_tokenizer_config.json"


class TextEncoder(Protocol):
    """Maps texts to vectors of C_t channels.

    Examples:
        >>> import torch
        >>> from art.model.semantics import encode_prompts
        >>> def lengths(texts):  # any such function is a text encoder
        ...     return torch.tensor([[float(len(text))] for text in texts])
        >>> encode_prompts(lengths, ["walk", "jump high"], ["a video of {label}"]).tolist()
        [[[15.0], [20.0]]]
    """

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n c"]:
        """Return one float32 vector per text, without gradient."""
        ...


class WordLlamaText:
    """Mean of the pretrained token embeddings in the package ``wordllama``: 32,000 tokens, C_t = 256, no word order.

    The package's own loader downloads its files; this class reads them from the wheel.
    """

    def __init__(self) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        directory = _find_wordllama()
        self._table = load_file(directory / _TABLE)["embedding.weight"].float()
        self._tokenizer = Tokenizer.from_file(str(directory / _TOKENIZER))

    @staticmethod
    def embedding_dim() -> int:
        """Return C_t."""
        return 256

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n c"]:
        """Return one float32 vector per text.

        Raises:
            ValueError: If a text has no tokens; the message contains its index.
        """
        vectors = []
        for index, text in enumerate(texts):
            tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
            if not tokens:
                raise ValueError(f"texts[{index}] is {text!r}, which has no tokens; expected at least one word")
            vectors.append(self._table[torch.tensor(tokens)].mean(0))
        return torch.stack(vectors) if vectors else self._table.new_zeros(0, self._table.shape[1])


class ClipText:
    """The text tower of an open_clip model.

    Args:
        model: open_clip's name of the model.
        pretrained: a tag of the model in open_clip (downloaded on first use), or the path of a checkpoint.
        normalize: normalize each vector to length 1.
        device: device to encode on.
        batch_size: texts per forward pass.

    Raises:
        ModuleNotFoundError: If open_clip is not installed.
        ValueError: If open_clip has no such model.
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
        open_clip = _import_open_clip(model)
        self._model = open_clip.create_model(model, pretrained=pretrained, device=device).eval()
        self._tokenizer = open_clip.get_tokenizer(model)
        self._normalize, self._device, self._batch_size = normalize, device, batch_size

    @staticmethod
    def embedding_dim(model: str = "ViT-B-16", **_: Any) -> int:
        """Return C_t from the model's configuration, without its weights."""
        return int(_import_open_clip(model).get_model_config(model)["embed_dim"])

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n c"]:
        """Return one float32 vector per text, on the CPU."""
        vectors = []
        for start in range(0, len(texts), self._batch_size):
            tokens = self._tokenizer(list(texts[start : start + self._batch_size])).to(self._device)
            vectors.append(self._model.encode_text(tokens, normalize=self._normalize).float().cpu())
        return torch.cat(vectors)


TEXT_ENCODERS: dict[str, type[WordLlamaText] | type[ClipText]] = {"wordllama": WordLlamaText, "clip": ClipText}


def build_text_encoder(name: str, **options: Any) -> TextEncoder:
    """Build a text encoder.

    Args:
        name: ``"wordllama"`` (bundled, no download) or ``"clip"`` (requires the extra ``[clip]``).
        options: keyword arguments of the encoder's constructor.

    Raises:
        ValueError: If the name is unknown.

    Examples:
        >>> from art.text import build_text_encoder
        >>> encoder = build_text_encoder("wordllama")
        >>> encoder(["walk", "walk and hold out the right arm"]).shape
        torch.Size([2, 256])
    """
    return _encoder_class(name)(**options)


def text_width(name: str, **options: Any) -> int:
    """Return C_t, the number of channels of a text encoder, without downloading its weights.

    Arguments are those of :func:`build_text_encoder`.

    Raises:
        ValueError: If the name is unknown.

    Examples:
        >>> from art.text import text_width
        >>> text_width("wordllama")
        256
    """
    return _encoder_class(name).embedding_dim(**options)


def _encoder_class(name: str) -> type[WordLlamaText] | type[ClipText]:
    if name not in TEXT_ENCODERS:
        close = difflib.get_close_matches(name, TEXT_ENCODERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"text_encoder {name!r} is unknown; expected one of {', '.join(TEXT_ENCODERS)}{hint}")
    return TEXT_ENCODERS[name]


def _find_wordllama() -> Path:
    """Return the directory of the package, without importing it."""
    spec = importlib.util.find_spec("wordllama")
    directories = list(spec.submodule_search_locations or ()) if spec else []
    for directory in map(Path, directories):
        if (directory / _TABLE).is_file() and (directory / _TOKENIZER).is_file():
            return directory
    raise FileNotFoundError(
        f"the package 'wordllama' with {_TABLE} and {_TOKENIZER} was not found in {directories or 'this environment'}; "
        "pip install wordllama, or choose text_encoder='clip'"
    )


def _import_open_clip(model: str) -> ModuleType:
    open_clip = import_extra(
        "open_clip", extra="clip", needed_by="text_encoder='clip'", instead="choose text_encoder='wordllama'"
    )
    if model not in open_clip.list_models():
        raise ValueError(f"text_options.model {model!r} is not a model of open_clip; see open_clip.list_models()")
    return open_clip
