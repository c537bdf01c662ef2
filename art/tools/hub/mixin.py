"""A model as ``huggingface_hub``'s mixin takes it and gives it. Imported where that package is known to be there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin

from art.model.pretrained import CONFIG_FILE, VideoClassifier, load_model
from art.tools.hub.card import CARD_FILE
from art.tools.hub.repository import download


class SharedModel(ModelHubMixin):
    """Gives the mixin ``config.json`` in the form of ``save_pretrained``, which it leaves as it is, and a card.

    The models are no subclasses of the mixin: the package is an extra, and its form of ``config.json``, the arguments
    of ``__init__``, does not hold what a model needs.

    Args:
        model: the classifier.
        card: what its ``README.md`` says.
    """

    def __init__(self, model: VideoClassifier, card: str = "") -> None:
        self.model = model
        self.card = card

    def _save_pretrained(self, save_directory: Path) -> None:
        self.model.save_pretrained(save_directory)
        _forget_place(save_directory / CONFIG_FILE)
        (save_directory / CARD_FILE).write_text(self.card, encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,
    ) -> SharedModel:
        return cls(load_model(download(model_id, revision=revision, token=token)))


def _forget_place(config: Path) -> None:
    """Of a file that the weights began with, only its name is for others to see: loading a model needs none of it."""
    content = json.loads(config.read_text(encoding="utf-8"))
    pretrained = content["options"]["pretrained"]
    if pretrained is not None:
        content["options"]["pretrained"] = Path(pretrained).name
        config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
