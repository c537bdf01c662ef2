"""To the Hugging Face Hub and from it (extra ``[hub]``).

``huggingface_hub``'s mixin is not used: it writes and reads a ``config.json`` of its own form, and a model here is
saved in one form only, whether it is on a disk or on the Hub. Of a repository two files are fetched, the configuration
as JSON and the weights as safetensors: nothing in it is unpickled or run.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from art.extras import import_extra
from art.pretrained import CONFIG_FILE, WEIGHTS_FILE, VideoClassifier, load_model

from .card import CARD_FILE, model_card

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*[A-Za-z0-9]", re.ASCII)
EVALUATION_FILE = "evaluation.json"


def is_repository(name: str | os.PathLike[str]) -> bool:
    """Whether ``name`` means a repository: a string "user/name" under which there is no local path.

    Examples:
        >>> from art.hub import is_repository
        >>> is_repository("user/name"), is_repository("runs/motion")  # there is such a folder
        (True, False)
    """
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and not Path(name).exists()


def download(repository: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder with the model of a repository, in the cache of ``huggingface_hub``: what is there stays there.

    Args:
        repository: "user/name".
        revision: branch, tag or commit; None is the newest. Name a commit to get the same weights always.
        token: for a private repository; None takes the one that ``hf auth login`` stored, if any.

    Raises:
        ModuleNotFoundError: the extra ``hub`` is not installed.
        FileNotFoundError: no such repository or revision, none that may be seen, or one without the two files.
        OSError: the Hub cannot be reached, and the cache does not have the model.
    """
    hub = import_extra("huggingface_hub", extra="hub", needed_by=f"{repository!r}, which is no local folder,")
    errors = hub.errors
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            path = hub.hf_hub_download(repository, name, revision=revision, token=token)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            at = "" if revision is None else f" at revision {revision!r}"
            raise FileNotFoundError(
                f"{repository} is no local folder, and on the Hub there is none{at} that may be seen; check the name, "
                "or log in with `hf auth login` if it is private"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            raise ConnectionError(
                f"{repository} is no local folder, and the Hub cannot be reached for its {name}, which the cache does "
                "not have; check the path, or the connection"
            ) from error
        except errors.EntryNotFoundError as error:
            raise FileNotFoundError(
                f"{repository} on the Hub has no {name}; expected what push_to_hub writes: {CONFIG_FILE} and "
                f"{WEIGHTS_FILE} (weights in another form are not loaded, because that could run code)"
            ) from error
    return Path(path).parent


def push_to_hub(
    model: VideoClassifier | str | os.PathLike[str],
    repository: str,
    *,
    evaluation: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    license: str | None = None,
    message: str = "Upload model",
) -> str:
    """Put a model on the Hub: ``config.json``, ``model.safetensors`` and a card, in one commit.

    Args:
        model: a model, or the folder of a checkpoint or a run.
        repository: "user/name", made if need be.
        evaluation: of this model, for the card: what ``evaluation.json`` holds, or its path. None: of a folder, the one
            beside it (a run's is of its last checkpoint); else the card says that there is none.
        private: of a repository that is made.
        revision: the branch to commit to; None is "main".
        token: None takes the one that ``hf auth login`` stored.
        license: of the weights, by the Hub's names, such as "apache-2.0"; None says nothing.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        ModuleNotFoundError: the extra ``hub`` is not installed.
        ValueError: ``repository`` is no "user/name", or ``evaluation`` is of other classes.
        FileNotFoundError: there is no such checkpoint or evaluation.
        OSError: the Hub refuses, or cannot be reached.
    """
    if _NAME.fullmatch(repository) is None:
        raise ValueError(f"repository is {repository!r}, expected 'user/name'")
    hub = import_extra("huggingface_hub", extra="hub", needed_by="push_to_hub")
    if not isinstance(model, VideoClassifier):
        from art.engine.evaluate import find_checkpoint

        folder = find_checkpoint(Path(model))
        evaluation = _beside(folder) if evaluation is None else evaluation
        model = load_model(folder)
    measured: Mapping[str, Any] | None
    if isinstance(evaluation, str | os.PathLike):
        measured = json.loads(Path(evaluation).read_text(encoding="utf-8"))
    else:
        measured = evaluation
    card = model_card(model, repository, measured, license=license)
    api = hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as staging:
        model.save_pretrained(staging)
        _forget_place(Path(staging) / CONFIG_FILE)
        (Path(staging) / CARD_FILE).write_text(card, encoding="utf-8")
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=staging,
            allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE],
            commit_message=message,
            revision=revision,
        )
    return str(commit.commit_url)


def _forget_place(config: Path) -> None:
    """Of a file that the weights began with, only its name is for others to see: loading a model needs none of it."""
    content = json.loads(config.read_text(encoding="utf-8"))
    pretrained = content["options"]["pretrained"]
    if pretrained is not None:
        content["options"]["pretrained"] = Path(pretrained).name
        config.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _beside(checkpoint: Path) -> Path | None:
    """The evaluation of a checkpoint, where there is one: in its folder, or, of a run's last one, in the run's."""
    places = [checkpoint]
    if (checkpoint.parent.name, checkpoint.name) == ("checkpoints", "last"):
        places.append(checkpoint.parent.parent)
    return next((path for place in places if (path := place / EVALUATION_FILE).is_file()), None)
