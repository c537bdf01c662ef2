"""The embedded text encoder: the pretrained token table that the PyPI package ``wordllama`` ships in its wheel.

A text is the mean of its tokens' vectors, as that package defines it. Its own loader asks a hub; the two files are read
here directly, so nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

_TABLE = Path("weights") / "l2_supercat_256.safetensors"
_TOKENIZER = Path("tokenizers") / "l2_supercat_tokenizer_config.json"


_WIDTH = 256


class WordLlamaText:
    """Mean of pretrained token vectors; 32,000 tokens, C_t = 256. Word order does not matter to it."""

    def __init__(self) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        folder = _package_folder()
        self._table = load_file(folder / _TABLE)["embedding.weight"].float()
        self._tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))

    @staticmethod
    def width_of() -> int:
        """Channels of a text's vector."""
        return _WIDTH

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n c"]:
        """See :class:`~art.text.protocol.TextEncoder`.

        Raises:
            ValueError: a text without a single token; the message gives its index.
        """
        vectors = []
        for index, text in enumerate(texts):
            tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
            if not tokens:
                raise ValueError(f"texts[{index}] is {text!r}: it has no tokens; give a text with at least one word")
            vectors.append(self._table[torch.tensor(tokens)].mean(0))
        return torch.stack(vectors) if vectors else self._table.new_zeros(0, self._table.shape[1])


def _package_folder() -> Path:
    spec = importlib.util.find_spec("wordllama")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        if (Path(folder) / _TABLE).is_file() and (Path(folder) / _TOKENIZER).is_file():
            return Path(folder)
    raise FileNotFoundError(
        f"the package 'wordllama' with {_TABLE} and {_TOKENIZER} inside was not found in "
        f"{folders or 'this environment'}; pip install wordllama, or choose text_encoder='clip'"
    )
